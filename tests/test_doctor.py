"""python -m pytest tests/test_doctor.py

The doctor as users call it, on sound and on broken installations.
"""

from __future__ import annotations

import importlib.metadata
import lzma
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import forkserver
import pytest
import torch
from places import QUICK

import lora_exp
from lora_exp.commands import doctor
from lora_exp.config.settings import DataFolder
from lora_exp.config.spec import DataSpec
from lora_exp.data.prepared import is_damaged, prepared_sha256
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER
from lora_exp.storage.store import ENTRY, Store

ROOT = Path(lora_exp.__file__).parents[1]
KEY = "ab" * 32


def examine(folder: Path, *arguments: str, code: int, package: Path = ROOT) -> list[str]:
    """What is printed, all of it; a traceback or a line of another form is none of it."""
    if package == ROOT:
        done = forkserver.run(["doctor", *arguments], folder)
    else:
        command = [sys.executable, "-m", "lora_exp", "doctor", *arguments]
        environment = os.environ | {"PYTHONPATH": str(package)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok    ", "WRONG ")) for line in lines)
    return lines


def wrong(lines: list[str]) -> str:
    [line] = [line for line in lines if line.startswith("WRONG")]
    return line


@pytest.fixture
def folder(tmp_path: Path, data_root: Path, mnist: ImageData) -> Path:
    """A working folder with a store of one entry and prepared data."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    store_of(tmp_path).prepare()
    store_of(tmp_path).put("results", KEY, {"a.bin": b"content"})
    return tmp_path


def store_of(folder: Path) -> Store:
    return Store(folder / "cache" / "store")


def test_where_all_is_well_every_line_says_so_and_nothing_is_made(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    lines = examine(folder, code=0)
    assert [line.split()[0] for line in lines] == ["ok"] * len(lines)
    subjects = [line.split()[1] for line in lines]
    assert list(dict.fromkeys(subjects)) == [
        *("python", "device", "products", "executor", "mnist", "data", "store", "leftovers", "tracking", "disk")
    ]
    assert subjects.count("disk") == 5
    assert " 0 locks held" in "\n".join(lines)
    assert sorted(folder.rglob("*")) == before


def test_an_empty_folder_is_well_too(tmp_path: Path) -> None:
    examine(tmp_path, code=0)
    assert list(tmp_path.iterdir()) == []


def test_an_override_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    done = forkserver.run(["doctor", "store.foldr=x"], tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("lora-exp: store.foldr: no such key")


def test_a_damaged_record_is_found_at_once_and_a_damaged_file_by_the_full_look(folder: Path) -> None:
    path = store_of(folder).folder("results", KEY)
    (path / "a.bin").write_bytes(b"CONTENT")
    examine(folder, code=0)
    lines = examine(folder, "--full", code=1)
    assert f"results {KEY}: a.bin is damaged; mend: lora-exp store verify" in "\n".join(lines)
    (path / ENTRY).write_bytes(b"{")
    assert f"results {KEY}: {ENTRY} is damaged" in "\n".join(examine(folder, code=1))
    forkserver.run(["store", "verify"], folder)
    assert "1 set aside" in "\n".join(examine(folder, "--full", code=0))


def test_a_flipped_bit_in_the_adapter_of_a_run_is_found_by_the_full_look(folder: Path) -> None:
    run = folder / "runs" / "2026-01-01" / "12-00-00" / "3"
    forkserver.run([*QUICK, "finetune.steps=2", "tracking=off", f"hydra.run.dir={run}"], folder)
    assert "1 finished runs, 0 damaged" in "\n".join(examine(folder, "--full", code=0))
    content = bytearray((run / ADAPTER).read_bytes())
    content[-1] ^= 1
    (run / ADAPTER).write_bytes(content)
    examine(folder, code=0)
    lines = examine(folder, "--full", code=1)
    assert any(f"{run / ADAPTER}: is damaged" in line and "lora-exp resume" in line for line in lines)


def test_what_a_killed_writer_left_is_found(folder: Path) -> None:
    left = store_of(folder).root / "partial" / f"{os.uname().nodename}-{'0' * 32}"
    left.mkdir()
    assert f"{left} was left by a killed process" in wrong(examine(folder, code=1))


def test_held_locks_and_running_processes_are_counted(folder: Path) -> None:
    with store_of(folder).lock("bases", KEY):
        assert "1 locks held" in "\n".join(examine(folder, code=0))


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + bytes(4000), None])
def test_a_database_that_cannot_be_used_is_found(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "mlflow.db").mkdir()
    else:
        (folder / "mlflow.db").write_bytes(content)
    line = wrong(examine(folder, code=1))
    assert "tracking.uri=sqlite:///mlflow.db: is damaged or not a database of MLflow" in line and "move it away" in line


def test_a_database_with_damaged_pages_is_found(folder: Path) -> None:
    assert forkserver.run(["model=tiny", "data.limit=1000", "finetune.steps=3"], folder).returncode == 0
    assert "mlflow.db: intact, 1 runs" in "\n".join(examine(folder, code=0))
    with (folder / "mlflow.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096 * 20)
    assert "tracking.uri=" in wrong(examine(folder, code=1))


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that is none of MLflow's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_does_not_answer_as_mlflow_is_found(folder: Path, stranger: str) -> None:
    for uri, says in ((stranger, "HTTP 404"), ("http://127.0.0.1:9", "refused")):
        line = wrong(examine(folder, "tracking=server", f"tracking.uri={uri}", code=1))
        assert uri in line and says in line and "use tracking=sqlite" in line
    assert "runs are not recorded" in "\n".join(examine(folder, "tracking=off", code=0))


def test_every_place_where_no_folder_can_be_made_is_found(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    keys = ("store.folder", "report.folder", "data.root", "tracking.artifacts", "hydra.run.dir")
    lines = examine(folder, *(f"{key}=file/folder" for key in keys), code=1)
    for name in ("store", "reports", "data", "artifacts", "runs"):
        [line] = [line for line in lines if line.split()[1:3] == ["disk", f"{name}:"]]
        assert line.startswith("WRONG") and f"{name}: {folder / 'file'} is not a writable folder" in line


def test_a_store_that_is_a_file_is_found(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    lines = examine(folder, "store.folder=file", "--full", code=1)
    assert sum(line.startswith("WRONG") for line in lines) == 2


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [roomy] = doctor._place("store", tmp_path)
    monkeypatch.setattr(doctor, "MIN_FREE", 1e9)
    [full] = doctor._place("store", tmp_path / "to be made")
    assert roomy.ok and not full.ok and "make room" in full.message


@pytest.mark.parametrize("damage", ["flip", "cut", "raw"])
def test_damaged_data_is_found(folder: Path, data_root: Path, damage: str) -> None:
    own = folder / "own"
    shutil.copytree(data_root, own)
    path = own / ("MNIST/raw/t10k-labels-idx1-ubyte" if damage == "raw" else "mnist.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert str(path) in wrong(examine(folder, "data.root=own", code=1))
    shutil.rmtree(own)


def test_the_hash_of_prepared_data_is_the_one_that_runs_look_for(data_root: Path, mnist: ImageData) -> None:
    assert not is_damaged(data_root / "mnist.safetensors")
    assert prepared_sha256(DataSpec("mnist"), DataFolder(str(data_root))) == mnist.sha256


def test_a_package_whose_mnist_is_damaged_is_found(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "package"
    for name in ("lora_exp", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "lora_exp" / "data" / "mnist" / "t10k-labels-idx1-ubyte.xz"
    path.write_bytes(lzma.compress(b"other labels"))
    line = wrong(examine(folder, code=1, package=copy))
    assert f"{path} is not the published file; install lora-exp again" in line


def test_a_library_that_is_too_old_or_absent_is_found_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pandas":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.1.0" if name == "torch" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = [finding.message for finding in doctor._libraries() if not finding.ok]
    assert any(line.startswith("torch 2.1.0; mend: pip install 'torch") for line in found)
    assert any(line.startswith("pandas is absent; mend: pip install 'pandas>=") for line in found)
    assert len(found) == 2


def test_a_python_that_is_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    first = next(doctor._libraries())
    assert not first.ok and first.message.startswith("3.9.1, >=3.11 is needed; ")


def test_an_absent_device_is_found(folder: Path) -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    lines = examine(folder, f"device={absent}", code=1)
    assert f"device={absent}: this machine has none" in "\n".join(lines)


def test_whatever_a_check_raises_is_a_finding() -> None:
    def broken() -> Iterator[doctor.Finding]:
        yield doctor.Finding("begun")
        raise RuntimeError("two\nlines")

    assert list(doctor._findings(broken())) == [doctor.Finding("begun"), doctor.Finding("two lines", ok=False)]
