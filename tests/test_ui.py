"""python -m pytest tests/test_ui.py

MLflow's server as `lora-exp ui` starts it: it answers, takes new runs, and ends with the process.
"""

from __future__ import annotations

import json
import os
import signal
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
from places import free_port

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.tracking.recorder import Recorder, Ticket

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """A recorder on a new sqlite store."""
    return Recorder.open(TrackingSettings("sqlite", f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/artifacts"))


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


@pytest.fixture
def served(recorder: Recorder, tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[bytes], str]]]:
    """A function that starts the UI as `lora-exp ui` does, and waits until it answers; all of it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def serve() -> tuple[subprocess.Popen[bytes], str]:
        store, port = recorder.settings, free_port()
        code = (
            "import lora_exp.commands.ui as r; from lora_exp.config.settings import TrackingSettings as T\n"
            f"r.serve_ui(T('sqlite', {store.uri!r}, {store.artifacts!r}), {port})"
        )
        command = [sys.executable, "-c", code]
        with (tmp_path / "ui.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert process.poll() is None, (tmp_path / "ui.log").read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                return process, address
            except OSError:
                time.sleep(0.1)
        raise AssertionError((tmp_path / "ui.log").read_text())

    yield serve
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_ui_serves_runs_and_artifacts_takes_new_ones_and_ends_whole(
    recorder: Recorder, folder: Path, served: Callable[[], tuple[subprocess.Popen[bytes], str]]
) -> None:
    result = made_run(pictures_and_labels()[1])[0]
    result = replace(result, provenance=result.provenance | {"config": "rank: 4\n"})
    run_id = recorder.record_run(result, folder, None, Ticket.new())
    process, address = served()
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

    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.terminate()
    process.wait(10)
    assert psutil.wait_procs(family, timeout=10)[1] == []
    began = time.monotonic()
    with pytest.raises(LoraExpError, match=r"tracking\.uri=http"):
        remote.record_run(result, folder, None, Ticket.new())
    assert time.monotonic() - began < 15
