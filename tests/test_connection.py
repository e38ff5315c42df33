"""python -m pytest tests/test_connection.py

The tracking store as it is opened: by several processes at once, damaged, absent or silent.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.tracking.connection import check
from lora_exp.tracking.recorder import Recorder

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_processes_that_open_a_fresh_store_at_once_share_it(tmp_path: Path) -> None:
    code = (
        "from lora_exp.tracking.recorder import Recorder, Ticket\n"
        "from lora_exp.config.settings import TrackingSettings\n"
        "Recorder.open(TrackingSettings()).start_sweep('s', 'c', {}, Ticket.new())"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(racer.communicate()[1].decode(), racer.returncode) for racer in racers] == [("", 0)] * 3
    here = TrackingSettings("sqlite", f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "mlartifacts"))
    recorder = Recorder.open(here)
    runs = recorder.client.search_runs([recorder.experiment_id])
    assert [run.info.run_name for run in runs] == ["s"] * 3


def test_what_can_not_be_a_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    (tmp_path / "file").touch()
    sound = f"sqlite:///{tmp_path}/mlflow.db"
    refused = {
        TrackingSettings(
            uri=f"sqlite:///{tmp_path}/notes.txt"
        ): f"tracking.uri=sqlite:///{tmp_path}/notes.txt: file is",
        TrackingSettings(uri=f"sqlite:///{tmp_path}/file/m.db"): f"tracking.uri=sqlite:///{tmp_path}/file/m.db: ",
        TrackingSettings(uri="postgresql://host/db"): "tracking.uri=postgresql://host/db: must be sqlite:///FILE",
        TrackingSettings(uri="sqlite:///:memory:"): "tracking.uri=sqlite:///:memory:: must be sqlite:///FILE",
        TrackingSettings(uri="sqlite:///a?b=c"): "tracking.uri=sqlite:///a?b=c: must be sqlite:///FILE",
        TrackingSettings(uri=sound, artifacts=f"{tmp_path}/file"): f"tracking.artifacts={tmp_path}/file: must be",
        TrackingSettings("server", "ftp://host"): "tracking.uri=ftp://host: must be http://HOST:PORT",
        TrackingSettings("off"): "tracking.kind=off: keeps no runs",
    }
    for settings, start in refused.items():
        with pytest.raises(LoraExpError) as raised:
            Recorder.open(replace(settings, artifacts=settings.artifacts.replace("mlartifacts", f"{tmp_path}/a")))
        assert str(raised.value).startswith(start)
        assert "\n" not in str(raised.value)


def test_a_deleted_experiment_is_one_line(tmp_path: Path) -> None:
    store = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=f"{tmp_path}/artifacts")
    gone = Recorder.open(replace(store, experiment="gone"))
    gone.client.delete_experiment(gone.experiment_id)
    with pytest.raises(LoraExpError, match=r"tracking\.experiment=gone: is deleted"):
        Recorder.open(replace(store, experiment="gone"))


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(LoraExpError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        check(TrackingSettings("server", "http://user:secret@127.0.0.1:5000/x"))
    assert "secret" not in str(raised.value) and str(raised.value).startswith("tracking.uri: must not hold ")


def test_a_server_that_is_absent_or_silent_is_found_out_within_five_seconds() -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        for port in (silent.getsockname()[1], closed.getsockname()[1]):
            began = time.monotonic()
            with pytest.raises(LoraExpError) as raised:
                Recorder.open(TrackingSettings("server", f"http://127.0.0.1:{port}"))
            assert time.monotonic() - began < 5
            line = f"tracking.uri=http://127.0.0.1:{port}: no MLflow server answers there ("
            assert str(raised.value).startswith(line)
            assert "\n" not in str(raised.value)
