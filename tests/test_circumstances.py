"""python -m pytest tests/test_circumstances.py

Hostile circumstances, as real processes meet them: a command ends well, or with one line and exit code 1 or 2. What
was computed is never lost.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from forkserver import Process, start

from lora_exp.config.settings import TrackingSettings
from lora_exp.model.data import ImageData
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.tracking.recorder import Recorder

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

QUICK = ("model=tiny", "data.limit=2000", "finetune.steps=2")
OFF = (*QUICK, "tracking=off")
SWEEP = ("-m", *OFF, "adapter.rank=1,2")


def interpreter(folder: Path, *arguments: str, unset: str = "", **how: Any) -> subprocess.Popen[str]:
    """Start a command with an interpreter of its own, whose start is a circumstance too."""
    environment = {name: value for name, value in os.environ.items() if name != unset} | how.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    command = [sys.executable, "-m", "lora_exp", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, encoding="utf-8", **pipes)


def ended(process: Process, *codes: int) -> tuple[str, str]:
    """What a process wrote, having ended as it may."""
    out, err = process.communicate(timeout=300)
    out, err = out or "", err or ""
    assert process.returncode in codes, out + err
    assert "Traceback" not in out + err and "Exception ignored" not in err and "Error" not in err.partition(": ")[0]
    lines = [line for line in err.splitlines() if line.startswith("lora-exp: ")]
    assert len(lines) == (0 if process.returncode == 0 else 1), out + err
    return out, err


def lora_exp(folder: Path, *arguments: str, codes: tuple[int, ...] = (0,), **how: Any) -> tuple[str, str]:
    return ended(start(arguments, folder, **how), *codes)


def results(lab: Path) -> int:
    return len(list(lab.glob("cache/store/results/*/*")))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Path:
    """A working folder whose name has spaces and is not ASCII, with data, and a base in the store."""
    folder = tmp_path_factory.mktemp("circumstances") / "a größere 数字 lab"
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "data").symlink_to(data_root)
    lora_exp(folder, *SWEEP, "report.name=first")
    return folder


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that is there, and can't be written to by a process that is `bound`."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


PLACES = [
    ["store.folder={}/store"],
    ["data=fashion_mnist", "data.root={}/data"],
    ["hydra.run.dir={}/run"],
    ["-m", "hydra.sweep.dir={}/sweep"],
    ["tracking=sqlite", "tracking.uri=sqlite:///{}/mlflow.db"],
    ["tracking=sqlite", "tracking.artifacts={}/artifacts"],
    ["-m", "report.folder={}"],
]


@pytest.mark.parametrize("arguments", PLACES, ids=" ".join)
@pytest.mark.parametrize("kind", ["closed", "a file"])
def test_a_place_that_can_not_be_written_to_is_one_line(
    lab: Path, closed: Path, tmp_path: Path, arguments: list[str], kind: str
) -> None:
    place = closed
    if kind == "a file":
        place = tmp_path / "file"
        place.write_text("mine")
    flags = ["-m"] if "-m" in arguments else []
    filled = [argument.format(place) for argument in arguments if argument != "-m"]
    before = results(lab)
    _, err = lora_exp(lab, *flags, *OFF, *filled, codes=(1, 2), bound=True)
    assert str(place) in err
    assert results(lab) >= before
    assert kind == "closed" or place.read_text() == "mine"


def test_a_working_folder_that_can_not_be_written_to_is_one_line(closed: Path, data_root: Path) -> None:
    _, err = lora_exp(closed, *OFF, f"data.root={data_root}", codes=(2,), bound=True)
    assert "must be a folder that can be written to" in err


def test_a_report_takes_the_place_of_reports_only(lab: Path) -> None:
    mine = lab / "multirun_reports" / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("two years of work")
    before = set(lab.glob("runs/*/*"))
    _, err = lora_exp(lab, *SWEEP, "report.name=mine", codes=(2,))
    assert set(lab.glob("runs/*/*")) == before  # refused before anything ran
    assert "mine" in err
    assert (mine / "thesis.txt").read_text() == "two years of work"


def removed_while_running(folder: Path, place: str, *arguments: str, codes: tuple[int, ...]) -> tuple[str, str]:
    """Run, and remove what matches `place` as soon as it is there (a base is being trained then)."""
    process = start(arguments, folder)
    until = time.monotonic() + 120
    while not (found := list(folder.glob(place))):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return ended(process, *codes)


def test_a_run_whose_folder_is_removed_is_kept_in_the_store(lab: Path) -> None:
    slow = (*OFF, "data.limit=12000", "base.seed=11")
    before = results(lab)
    removed_while_running(lab, "gone", *slow, "hydra.run.dir=gone", codes=(0, 1, 2))
    assert results(lab) == before + 1
    out, _ = lora_exp(lab, *slow, "hydra.run.dir=gone")
    assert "training base" not in out and (lab / "gone" / RESULT).is_file()


def test_a_sweep_whose_folder_is_removed_is_kept_in_the_store(lab: Path) -> None:
    slow = (*SWEEP, "data.limit=12000", "base.seed=12", "report.name=gone")
    before = results(lab)
    removed_while_running(lab, "gone sweep", *slow, "hydra.sweep.dir='gone sweep'", codes=(0, 1, 2))
    assert results(lab) == before + 2
    lora_exp(lab, *slow, "hydra.sweep.dir='gone sweep'")
    assert set(read_sweep(lab / "gone sweep").frame["status"]) == {"finished"}


def test_a_store_or_report_folder_that_is_removed_is_made_again(lab: Path) -> None:
    slow = (*SWEEP, "data.limit=12000", "base.seed=13", "store.folder=other", "report.folder=reports")
    (lab / "reports").mkdir()
    removed_while_running(lab, "other", *slow, "report.name=a", codes=(0, 1, 2))
    removed_while_running(lab, "reports", *slow, "report.name=b", codes=(0,))
    assert (lab / "reports" / "b" / "report.md").is_file()


def test_a_clock_that_goes_backwards_costs_nothing(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "real, calls = time.time_ns, iter(range(10**9))\n"
        "time.time_ns = lambda: real() - next(calls) * 10**10\n"
        "time.time = lambda: time.time_ns() / 10**9\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    command = ("-m", *QUICK, "adapter.rank=1,3", "report.name=back")
    out, _ = lora_exp(lab, *command, environment=os.environ | {"PYTHONPATH": paths})
    assert "Mean of 2 finished runs" in out


def recorded(lab: Path, experiment: str) -> list[Any]:
    here = TrackingSettings("sqlite", f"sqlite:///{lab}/mlflow.db", str(lab / "mlartifacts"), experiment)
    recorder = Recorder.open(here)
    return list(recorder.client.search_runs([recorder.experiment_id]))


def test_names_with_spaces_and_of_any_alphabet_are_names(lab: Path) -> None:
    own = (
        "report.name='größere 数字 🙂'",
        "tracking.experiment='versuch 数字 🙂'",
        "hydra.sweep.dir='läufe 1/数字 🙂'",
    )
    lora_exp(lab, "-m", *QUICK, "adapter.rank=1,2", "store.folder='cache/läger 数字'", *own)
    assert (lab / "multirun_reports" / "größere 数字 🙂" / "report.md").is_file()
    assert list(read_sweep(lab / "läufe 1" / "数字 🙂").frame["status"]) == ["finished"] * 2
    runs = recorded(lab, "versuch 数字 🙂")
    assert len(runs) == 3
    assert all(run.info.status == "FINISHED" for run in runs)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", f"report.name={'n' * 500}"],
        [f"hydra.run.dir=runs/{'n' * 500}"],
        ["-m", f"hydra.sweep.dir=runs/{'n' * 500}"],
        [f"store.folder={'n' * 500}"],
        [f"data.root={'n' * 500}"],
        ["tracking=sqlite", f"tracking.uri=sqlite:///{'n' * 500}"],
        ["tracking=sqlite", f"tracking.artifacts={'n' * 500}"],
        ["tracking=sqlite", f"tracking.experiment={'n' * 501}"],
        ["-m", f"report.folder={'n' * 500}"],
    ],
    ids=lambda arguments: arguments[-1].partition("=")[0],
)
def test_names_that_are_too_long_are_one_line(lab: Path, arguments: list[str]) -> None:
    flags = ["-m"] if "-m" in arguments else []
    lora_exp(lab, *flags, *OFF, *(argument for argument in arguments if argument != "-m"), codes=(1, 2))


def test_a_very_long_config_is_on_record_whole_or_its_cut_is_stated(lab: Path) -> None:
    patterns = [f"{'*' * (1 + at // 5)}{'?' * (at % 5)}*" for at in range(300)]
    layers = "[" + ",".join(["linear1", "'[lä]inear*'"] * 370) + "]"
    ranks = "{" + ",".join(f"{pattern}:{1 + at % 4}" for at, pattern in enumerate(patterns)) + "}"
    name = "x" * 200
    lora_exp(
        lab,
        *("-m", *QUICK, "adapter.rank=1,2", f"adapter.layers={layers}", f"adapter.rank_pattern={ranks}"),
        *(f"report.name={name}", f"tracking.experiment='{'größe' * 100}'", f"hydra.sweep.dir={name}/{name}"),
    )
    runs = recorded(lab, "größe" * 100)
    assert len(runs) == 3
    for run in runs:
        assert len(run.info.run_name) <= 250
        if run.data.tags["kind"] == "run":
            assert len(run.data.params["layers"]) == 6000 and len(run.data.params["rank_pattern"]) == 6000
            assert run.data.tags["cut"].startswith("rank_pattern, layers: ")
            config = (Path(run.info.artifact_uri) / "config.yaml").read_text(encoding="utf-8")
            assert all(pattern in config for pattern in patterns)
            assert config.count("linear1") == 370


@pytest.mark.parametrize(
    ("unset", "environment"),
    [("HOME", {"TMPDIR": "/nowhere"}), ("PATH", {"TMPDIR": "/proc", "LC_ALL": "C"})],
    ids=["no HOME, TMPDIR missing", "no PATH, TMPDIR read-only, C"],
)
def test_an_odd_environment_changes_nothing(lab: Path, unset: str, environment: Mapping[str, str]) -> None:
    before = set(lab.glob("multirun_reports/*/report.md"))
    out, _ = ended(interpreter(lab, "-m", *QUICK, "adapter.rank=1,2", unset=unset, env=dict(environment)), 0)
    assert "Mean of 2 finished runs" in out
    assert len(set(lab.glob("multirun_reports/*/report.md")) - before) == 1


def test_a_terminal_without_unicode_gets_escapes(lab: Path, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to((lab / "cache" / "data").resolve())
    out, _ = ended(interpreter(tmp_path, "-m", *OFF, "adapter=lora,full", env=ascii_only), 0)
    assert "Mean of 2 finished runs" in out
    _, err = ended(interpreter(lab, *OFF, env=ascii_only), 2)
    assert "working folder" in err


@pytest.mark.parametrize(
    ("number", "given"), [(0, OFF), (1, OFF), (2, QUICK)], ids=["stdin", "stdout", "stderr, where MLflow's log goes"]
)
def test_a_closed_stream_stops_nothing(lab: Path, number: int, given: tuple[str, ...]) -> None:
    before = set(lab.glob("multirun_reports/*/report.md"))
    ended(interpreter(lab, "-m", *given, "adapter.rank=1,2", preexec_fn=lambda: os.close(number)), 0)
    assert len(set(lab.glob("multirun_reports/*/report.md")) - before) == 1


@pytest.mark.parametrize(
    ("arguments", "reader"),
    [
        *((SWEEP, reader) for reader in ("one line", "full disk")),
        *((("--help",), reader) for reader in ("closed at once", "one line", "full disk")),
    ],
)
def test_output_that_nobody_reads_stops_nothing(lab: Path, arguments: tuple[str, ...], reader: str) -> None:
    before = set(lab.glob("runs/*/*/**/result.json"))
    if reader == "full disk":
        with Path("/dev/full").open("w") as full:
            process = interpreter(lab, *arguments, stdout=full)
        ended(process, 0, 1)
    else:
        process = interpreter(lab, *arguments)
        assert process.stdout is not None and process.stderr is not None
        if reader == "one line":
            process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(300) in (0, 1) and "Traceback" not in err and "ignored" not in err
        assert len(err.splitlines()) == process.returncode
    assert len(set(lab.glob("runs/*/*/**/result.json")) - before) == (2 if "-m" in arguments else 0)


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()

    def remove() -> None:
        (tmp_path / "gone").rmdir()

    _, err = ended(interpreter(tmp_path / "gone", *OFF, preexec_fn=remove), 2)
    assert "working folder" in err
