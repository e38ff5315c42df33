"""python -m pytest tests/test_store_hazards.py

What may happen to a store in use, with real runs: damage, a full disk, many processes at once, tampered bases.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forkserver
import psutil
import pytest
import torch
from forkserver import Process
from places import busy, data_in
from safetensors.torch import load, save

from lora_exp.commands.store import verify_lines
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.data import ImageData
from lora_exp.storage.pruning import activity
from lora_exp.storage.result import ADAPTER, RESULT, from_json
from lora_exp.storage.store import ENTRY, Store
from lora_exp.storage.sweep_file import Failure
from lora_exp.training.base import SECONDS, SHA256, WEIGHTS
from lora_exp.training.laboratory import Laboratory

MODEL, DATA = ModelSpec((16,)), DataSpec("mnist", limit=1000)
SPECS = [RunSpec(MODEL, DATA, BaseSpec(), AdapterSpec(rank=2), FinetuneSpec((digit,), steps=3)) for digit in range(4)]
QUICK = ("model=tiny", "data.limit=1000", "finetune.steps=3")
FULL = 100_000  # bytes: the weights of the tiny model are more


@pytest.fixture
def laboratory(tmp_path: Path, data_root: Path, mnist: ImageData) -> Laboratory:
    store = Store(tmp_path / "store")
    store.prepare()
    return Laboratory(store, data_in(data_root), torch.device("cpu"), 1, LocalExecutor(1, 2**30))


@pytest.fixture
def folder(tmp_path: Path, data_root: Path, mnist: ImageData) -> Path:
    """A working folder where the data is prepared already."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    return tmp_path


def numbers(laboratory: Laboratory) -> dict[RunSpec, tuple[object, bytes]]:
    found = {}
    for spec, files in laboratory.run(SPECS):
        assert not isinstance(files, Failure), files.error
        found[spec] = from_json(files[RESULT].decode()).outcome, files[ADAPTER]
    return found


def start(folder: Path, *arguments: str, **limits: int) -> Process:
    return forkserver.start([*arguments, *QUICK], folder, stderr=subprocess.STDOUT, **limits)


def trainings(log: str) -> int:
    return log.count("training base")


def test_damaged_bases_and_results_are_set_aside_and_made_anew_by_the_next_run(laboratory: Laboratory) -> None:
    first = numbers(laboratory)
    store = laboratory.store
    for at, (spec, name) in enumerate(zip(SPECS, (RESULT, ADAPTER, ENTRY, RESULT), strict=True)):
        path = store.folder("results", laboratory.result_key(spec)) / name
        content = path.read_bytes()
        other = store.folder("results", laboratory.result_key(SPECS[at - 1])) / name
        path.write_bytes([content[:-9], bytes([content[0] ^ 4]) + content[1:], b"", other.read_bytes()][at])
    base = store.folder("bases", laboratory.base_key(SPECS[0])) / WEIGHTS
    base.write_bytes(base.read_bytes()[:-1] + b"\xff")
    assert numbers(laboratory) == first
    assert len(list((store.root / "damaged").iterdir())) == 5
    assert verify_lines(store) == (["6 entries checked, 0 damaged"], True)  # base, promise, four results


def weights_with(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[dict[str, bytes]], None]:
    def tamper(files: dict[str, bytes]) -> None:
        weights = load(files[WEIGHTS])
        change(weights)
        files[WEIGHTS] = save(weights)

    return tamper


def set_to_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["linear1.weight"][3, 3] = float("nan")


TAMPERINGS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "not finite": weights_with(set_to_nan),
    "of shape": weights_with(lambda weights: weights.update({"linear1.bias": torch.zeros(17)})),
    "a float32 tensor": weights_with(lambda weights: weights.update({"linear1.bias": torch.zeros(16).double()})),
    "linear2.weight must be": weights_with(lambda weights: weights.__delitem__("linear2.weight")),
    "other weights than": weights_with(lambda weights: weights.update({"linear1.bias": torch.zeros(16)})),
    "holds no weights": lambda files: files.update({WEIGHTS: struct.pack("<Q", 2**40) + files[WEIGHTS][8:]}),
    "holds no predictions": lambda files: files.update({"predictions.safetensors": save({})}),
    "must be a float32 tensor of shape (10000,": lambda files: files.update(
        {"predictions.safetensors": save({f"test_{part}": torch.zeros(3) for part in ("logits", "losses")})}
    ),
    "could not convert": lambda files: files.update({SECONDS: b"soon"}),
    f"than {SHA256} says": lambda files: files.__delitem__(SHA256),
}


@pytest.mark.parametrize("says", TAMPERINGS)
def test_a_base_whose_checksums_hold_but_whose_content_does_not_is_set_aside_in_one_line_and_trained_again(
    laboratory: Laboratory, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    first = laboratory.base(SPECS[0])
    store, key = laboratory.store, laboratory.base_key(SPECS[0])
    files = dict(store.read("bases", key) or {})
    TAMPERINGS[says](files)
    shutil.rmtree(store.folder("bases", key))
    store.put("bases", key, files)
    caplog.clear()  # an earlier test may have left the root logger at INFO
    with caplog.at_level(logging.INFO):
        again = laboratory.base(SPECS[0])
    assert again.model.sha256() == first.model.sha256()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert says in warning and "set aside in" in warning and "\n" not in warning
    assert trainings(caplog.text) == 1
    caplog.clear()
    laboratory.base(SPECS[0])
    assert trainings(caplog.text) == 0


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[dict[str, int]]:
    """`folder` is on a full disk; where none may be mounted, no process can write a file as large as it must.

    Yields how to start a process that meets that.
    """
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        yield {"file_size": FULL}
        return
    try:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(2 * 2**20 - FULL))
        yield {}
        ballast.unlink(missing_ok=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("way", [[], ["-m"]])
def test_a_full_disk_is_one_clear_line_and_with_room_the_same_command_works(folder: Path, way: list[str]) -> None:
    disk = folder / "disk"
    arguments = [*way, "tracking=off", "store.folder=disk/store", "finetune.digit=5"]
    with full_disk(disk) as limits:
        failed = start(folder, *arguments, **limits)
        said = failed.communicate(timeout=120)[0]
        assert failed.returncode == 1, said
        [line] = [line for line in said.splitlines() if line.startswith("lora-exp: ")]
        assert f"{disk / 'store'}: " in line and "make room" in line and "Traceback" not in said
        store = Store(disk / "store")
        assert list((store.root / "partial").iterdir()) == []
        assert verify_lines(store) == (["0 entries checked, 0 damaged"], True)
        (disk / "ballast").unlink(missing_ok=True)
        works = start(folder, *arguments)
        said = works.communicate(timeout=120)[0]
        assert works.returncode == 0, said
        assert verify_lines(store) == (["3 entries checked, 0 damaged"], True)  # base, promise, result


def test_a_file_that_may_not_grow_is_told_as_a_full_disk_is(folder: Path) -> None:
    failed = start(folder, "tracking=off", "finetune.digit=5", file_size=FULL)
    said = failed.communicate(timeout=120)[0]
    assert failed.returncode == 1 and "make room" in said and "Traceback" not in said, said
    assert list((folder / "cache" / "store" / "partial").iterdir()) == []


def test_four_sweeps_at_once_share_base_store_and_a_fresh_database_and_have_folders_of_their_own(folder: Path) -> None:
    digits = ("1,2", "2,3", "3,4", "4,5")
    sweeps = [start(folder, "-m", f"finetune.digit={swept}", "device.threads=1") for swept in digits]
    said = [sweep.communicate(timeout=300)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0] * 4, "\n".join(said)
    assert sum(map(trainings, said)) == 1
    assert not any(word in text for text in said for word in ("Traceback", "Error", "WARNING"))
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall()
        [(errors,)] = database.execute("SELECT count(*) FROM metrics WHERE key = 'target_error'").fetchall()
    assert rows == [("FINISHED", 12)]  # four sweeps and their eight runs
    assert errors == 8
    store = Store(folder / "cache" / "store")
    assert verify_lines(store) == (["7 entries checked, 0 damaged"], True)  # base, promise, five digits
    assert list((store.root / "partial").iterdir()) == []
    assert len(list(folder.glob(f"runs/*/*/*/{RESULT}"))) == 8
    asked = [json.loads(path.read_text())["jobs"] for path in folder.glob("runs/*/*/sweep.json")]
    assert sorted(jobs[0][0] for jobs in asked) == [f"finetune.digit={swept[0]}" for swept in digits]
    assert len(list(folder.glob("multirun_reports/*/report.md"))) == 4
    assert not os.path.lexists(folder / "mlflow.db.new")


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_no_process_outlives_a_killed_sweep_and_none_keeps_its_locks(folder: Path, executor: str) -> None:
    jobs = ("adapter.rank=1,4", "finetune.steps=200000", "tracking=off", f"executor={executor}")
    process = forkserver.start(["-m", *QUICK, *jobs], folder)
    busy(process, "", seconds=6.0)  # a pack trains, and would for many minutes
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert activity(Store(folder / "cache" / "store")).processes == 0
