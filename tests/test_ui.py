"""python -m pytest tests/test_ui.py

MLflow's server as `lora-exp ui` starts it: it answers, takes new runs, and ends with the process, whatever ends that.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from made_results import made_run, pictures_and_labels
from mlflow_pages import served
from places import free_port

from lora_exp.commands.ui import LOG
from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.tracking.recorder import Recorder, Ticket

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """A recorder on a new sqlite store."""
    place = tmp_path_factory.mktemp("store")
    return Recorder.open(TrackingSettings("sqlite", f"sqlite:///{place}/mlflow.db", f"{place}/artifacts"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, with the files that a run leaves."""
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    for name in ("result.json", "adapter.safetensors", "predictions.safetensors", "figures/loss.png"):
        (run / name).write_bytes(name.encode())
    return run


def artifacts(recorder: Recorder, run_id: str, path: str | None = None) -> list[str]:
    return sorted(file.path for file in recorder.client.list_artifacts(run_id, path))


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(recorder: Recorder, tmp_path: Path) -> Iterator[Start]:
    """A function that starts `lora-exp ui` on the store, or with other arguments; it ends with the test."""
    started: list[subprocess.Popen[str]] = []
    store = recorder.settings
    usual = ("--port", str(free_port()), f"tracking.uri={store.uri}", f"tracking.artifacts={store.artifacts}")

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lora_exp", "ui", *(arguments or usual)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, **streams, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def family_while_starting(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The server, which does not answer yet."""
    assert process.stdout is not None
    assert process.stdout.readline() == "starting MLflow's server, about 10 seconds ...\n"
    own = psutil.Process(process.pid)
    while not (found := own.children(recursive=True)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    assert found
    return found


def test_the_ui_serves_runs_and_artifacts_takes_new_ones_and_ends_whole(
    recorder: Recorder, folder: Path, start: Start, tmp_path: Path
) -> None:
    result = made_run(pictures_and_labels()[1])[0]
    result = replace(result, provenance=result.provenance | {"config": "rank: 4\n"})
    run_id = recorder.record_run(result, folder, None, Ticket.new())
    process = start()
    addresses = served(process)
    address = addresses.server
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:  # as soon as the addresses are printed
        assert answer.read() == b"OK"
    assert addresses.sweeps.endswith("&viewStateShareKey=lora_exp_sweeps")
    assert addresses.runs.endswith("&viewStateShareKey=lora_exp_runs")
    assert "security middleware" in (tmp_path / LOG).read_text().lower()
    query = {"experiment_ids": [recorder.experiment_id], "filter": "params.rank = '4'"}
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/runs/search", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert [run["info"]["run_id"] for run in json.load(answer)["runs"]] == [run_id]
    wanted = urllib.parse.urlencode({"path": "config.yaml", "run_uuid": run_id})
    with urllib.request.urlopen(f"{address}/get-artifact?{wanted}", timeout=10) as answer:
        assert answer.read() == b"rank: 4\n"

    remote = Recorder.open(TrackingSettings("server", address, experiment="remote"))
    parent = remote.start_sweep("s", "c", {}, Ticket.new())
    child = remote.record_run(result, folder, parent, Ticket.new())
    remote.finish_sweep(parent, "FINISHED", 1_800_000_000_000, None, {}, folder / "figures")
    [run] = remote.client.search_runs([remote.experiment_id], "metrics.target_error < 0.1")
    assert run.info.run_id == child
    assert artifacts(remote, child) == ["adapter.safetensors", "config.yaml", "figures", "result.json"]
    assert artifacts(remote, parent, "report") == ["report/loss.png"]
    printed = start("tracking=server", f"tracking.uri={address}", "tracking.experiment=remote").communicate(timeout=60)
    assert f"\nsweeps   {address}/#/experiments/{remote.experiment_id}/runs?" in printed[0]
    assert f"\nruns     {address}/#/experiments/{remote.experiment_id}/runs?" in printed[0]

    family = family_of(process)
    process.terminate()
    assert process.wait(10) == 0 and process.stdout and process.stderr
    assert process.stderr.read() == ""
    assert process.stdout.read().splitlines() == [
        f"Other ways in, such as {address} alone, land in MLflow's GenAI view, which hides most of a run.",
        f"Its log is in {LOG}. Ctrl-C ends it.",
    ]
    assert psutil.wait_procs(family, timeout=10)[1] == []
    began = time.monotonic()
    with pytest.raises(LoraExpError, match=r"tracking\.uri=http"):
        remote.record_run(result, folder, None, Ticket.new())
    assert time.monotonic() - began < 15


def test_an_interrupt_ends_a_server_that_is_still_starting(start: Start) -> None:
    process = start()
    family = family_while_starting(process)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=10), process.returncode) == (("", ""), 0)
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_server_that_does_not_start_is_told_in_one_line_that_names_its_log(start: Start, tmp_path: Path) -> None:
    process = start()
    family = family_while_starting(process)
    for own in family:
        own.kill()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err == f"lora-exp: MLflow's server did not start; {LOG} says why\n"
    assert (tmp_path / LOG).is_file()


@pytest.mark.long
def test_a_server_that_ends_later_is_told_too(start: Start) -> None:
    process = start()
    served(process)
    family = family_of(process)
    psutil.Process(process.pid).children()[0].kill()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, f"lora-exp: MLflow's server has ended; {LOG} says why\n")
    assert psutil.wait_procs(family, timeout=10)[1] == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told of its parent's end")
def test_the_server_ends_with_a_command_that_is_killed(start: Start) -> None:
    process = start()
    served(process)
    family = family_of(process)
    process.kill()
    assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_port_that_is_taken_is_refused_before_anything_starts(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("--port", str(port))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"lora-exp: --port {port}: can't be used (")
    assert list(tmp_path.iterdir()) == []
