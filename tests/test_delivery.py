"""python -m pytest tests/test_delivery.py

Every run reaches MLflow once, also when its server goes away. The long tests have a real server, stopped, and a proxy
that loses an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_results import made_run, pictures_and_labels, write_failure, write_run, write_sweep
from mlflow import MlflowClient
from places import QUICK, Place, free_port

from lora_exp.config.settings import TrackingSettings
from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_file import end_sweep, note, read_about
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.varied import label, varied
from lora_exp.tracking.delivery import TICKET, Delivery, is_delivered
from lora_exp.tracking.recorder import Recorder, Ticket

OF_MLFLOW = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow 3.17


class Server:
    """A real MLflow server on a database of its own, which can be stopped at once and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        store += ["--artifacts-destination", str(self.folder / "served")]
        command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"],
                stdout=log,
                stderr=log,
                env=os.environ | quiet,
                start_new_session=True,
            )
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def runs(self) -> Counter[tuple[str, str]]:
        """(name, status) of all runs, and how often each is there."""
        with sqlite3.connect(self.folder / "server.db") as database:
            return Counter(database.execute("SELECT name, status FROM runs WHERE lifecycle_stage = 'active'"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def place(tmp_path: Path, data_root: Path, mnist: ImageData) -> Place:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(data_root)
    return Place(tmp_path)


def each_once(server: Server, place: Place) -> None:
    """The parent and every job, finished, and none of them twice."""
    frame = read_sweep(place.sweep()).frame
    names = [label(row, varied(frame)) for row in frame.to_dict("records")]
    parents = {key for key in server.runs() if not key[0].startswith("class ")}
    assert len(parents) == 1 and {status for _, status in server.runs()} == {"FINISHED"}
    assert {key: count for key, count in server.runs().items() if key not in parents} == {
        (name, "FINISHED"): 1 for name in names
    }
    # The summary with its links, each of its numbers, and the data of each job.
    with sqlite3.connect(server.folder / "server.db") as database:
        [(description,)] = database.execute(
            "SELECT value FROM tags JOIN runs USING (run_uuid) WHERE key = 'mlflow.note.content' AND name = ?",
            [next(iter(parents))[0]],
        )
        points = database.execute("SELECT count(*) FROM metrics WHERE key = 'mean_target_error'").fetchone()
        inputs = database.execute("SELECT count(*) FROM inputs").fetchone()
        known = {run for (run,) in database.execute("SELECT run_uuid FROM runs WHERE name LIKE 'class %'")}
    assert description.startswith(f"{len(names)} jobs: {len(names)} finished.")
    assert "by balanced accuracy on half of the test images" in description and "| [class " in description
    assert set(re.findall(r"\]\(#/experiments/\d+/runs/(\w+)\?workflowType=machine_learning\)", description)) <= known
    assert points == (1,) and inputs == (2 * len(names),)


@pytest.fixture
def settings(database: TrackingSettings, request: pytest.FixtureRequest) -> TrackingSettings:
    """An experiment of the test's own."""
    return replace(database, experiment=request.node.name)


@OF_MLFLOW
@pytest.mark.parametrize("lost", range(2), ids=["the parent", "a job"])
def test_a_store_that_answers_too_late_has_each_run_once(
    settings: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    labels = pictures_and_labels()[1][:500]
    sweep = write_sweep(tmp_path / "sweep", [made_run(labels, rank=rank) for rank in (1, 2)])
    note(sweep, ticket=Ticket.new().name)  # as a real sweep has
    answers = iter(range(10))

    def losing_an_answer(client: Any, *arguments: Any) -> Any:
        run = create_run(client, *arguments)
        if next(answers) == lost:
            raise ConnectionError("the server has gone away")
        return run

    create_run = MlflowClient.create_run
    monkeypatch.setattr(MlflowClient, "create_run", losing_an_answer)
    jobs = [sweep / "0", sweep / "1"]
    missing: list[int] = []
    ends: dict[Path, int] = {}
    for _ in range(3):  # each is a process that goes on
        delivery = Delivery(settings)
        missing.append(delivery.deliver_all(jobs, delivery.open_parent(sweep)))
        for job in jobs:
            if (job / TICKET).exists():  # the first attempt is when the run ended
                ends.setdefault(job, json.loads((job / TICKET).read_text())["time"])
    assert missing[0] > 0 and missing[1:] == [0, 0]
    recorder = Recorder.open(settings)
    runs = recorder.client.search_runs([recorder.experiment_id])
    assert sorted(run.data.tags["kind"] for run in runs) == ["run", "run", "sweep"]
    assert {run.info.end_time for run in runs if run.data.tags["kind"] == "run"} == set(ends.values())
    assert {read_about(sweep)["parent_run"]} == {run.info.run_id for run in runs if run.data.tags["kind"] == "sweep"}


@OF_MLFLOW
def test_a_job_that_failed_and_then_finished_is_recorded_as_finished_only(
    settings: TrackingSettings, tmp_path: Path
) -> None:
    folder, delivery = tmp_path / "0", Delivery(settings)
    write_failure(folder, "no memory", ["adapter.rank=4"])
    client, experiment = delivery.recorder.client, delivery.recorder.experiment_id

    def statuses() -> list[str]:
        assert delivery.deliver_all([folder], None) == 0 and is_delivered(folder)
        return [run.info.status for run in client.search_runs([experiment])]

    assert statuses() == ["FAILED"]
    result, predictions = made_run(pictures_and_labels()[1][:500])
    write_run(tmp_path / "again", (result, predictions))
    for path in (tmp_path / "again").iterdir():
        path.rename(folder / path.name)
    assert not is_delivered(folder)
    assert statuses() == ["FINISHED"] == statuses()


@OF_MLFLOW
def test_a_sweep_that_is_closed_in_the_store_needs_the_store_no_more(
    settings: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(tmp_path / "sweep", ["no luck"])
    note(sweep, ticket=Ticket.new().name)
    delivery = Delivery(settings)
    assert delivery.open_parent(sweep) is not None and not delivery.close_parent(sweep)  # it goes on
    end_sweep(sweep, "FAILED", None)
    assert delivery.close_parent(sweep)
    monkeypatch.setattr(Recorder, "finish_sweep", lambda *_: pytest.fail("it is closed once more"))
    assert Delivery(settings).close_parent(sweep)


@OF_MLFLOW
def test_a_run_that_names_a_store_of_its_own_is_recorded_there_only_when_it_is_trusted(place: Place) -> None:
    place.run(*QUICK, "finetune.steps=2", "tracking.uri=sqlite:///other.db")
    [run] = [str(path.parent) for path in place.folder.glob("runs/*/*/result.json")]
    (place.folder / "other.db").unlink()
    err = place.run("sync", run, code=2)[1]
    assert err.startswith(f"lora-exp: {run}: its config names a tracking store of its own") and "--trust" in err
    assert "tracking.uri=sqlite:///other.db" in err and not (place.folder / "other.db").exists()
    assert place.run("sync", "--trust", run)[0] == "all of it is in MLflow\n"
    assert (place.folder / "other.db").exists()


@OF_MLFLOW
def test_sync_asks_mlflow_for_each_run_and_says_what_is_gone_and_what_was_deleted(place: Place) -> None:
    place.run("-m", *QUICK, "finetune.steps=2", "adapter.rank=1,2")
    database, sweep = place.folder / "mlflow.db", str(place.sweep())
    wal = place.folder / "mlflow.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0, "the database alone is not whole"
    for name in ("moved", "emptied"):
        database.rename(place.folder / name)
        if name == "emptied":
            database.touch()
        assert place.run("sync", sweep)[0] == "all of it is in MLflow\n"
        assert place.statuses() == {"FINISHED": 3}
    client = MlflowClient(f"sqlite:///{database}")
    for gone in (
        read_about(place.sweep())["parent_run"],
        json.loads((place.sweep() / "0" / TICKET).read_text())["run"],
    ):
        client.delete_run(gone)
        told = f"1 runs were deleted in MLflow and stay so; lora-exp sync --restore {sweep} brings them back"
        assert place.run("sync", sweep)[0] == f"{told}\nall others are in MLflow\n"
        place.run("resume", sweep)
        assert place.statuses() == {"FINISHED": 2}
        assert place.run("sync", "--restore", sweep)[0] == "all of it is in MLflow\n"
        assert place.statuses() == {"FINISHED": 3}
    client.delete_experiment(client.get_experiment_by_name("lora_exp").experiment_id)
    for arguments in (["sync", sweep], ["resume", sweep], [*QUICK, "finetune.steps=2"]):
        assert place.run(*arguments, code=2)[1] == (
            "lora-exp: tracking.experiment=lora_exp: is deleted in MLflow; restore it there, or choose another\n"
        )
    assert "is deleted in MLflow" in place.run("doctor", code=1)[0]


@pytest.mark.long
def test_a_server_that_is_away_for_half_a_minute_gets_all_runs_and_for_good_what_sync_brings(
    server: Server, place: Place
) -> None:
    tracking = ("tracking=server", f"tracking.uri={server.address}")
    jobs = ("finetune.steps=9000", "adapter.rank=1,2,3,4,5,6,7,8", "finetune.digit=range(0,10)")
    process = place.start("-m", *QUICK, *tracking, *jobs)
    while sum(server.runs().values()) < 4:  # the parent and some jobs
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    server.stop()
    time.sleep(30)
    server.start()
    while sum(server.runs().values()) < 60 and process.poll() is None:
        time.sleep(0.1)
    server.stop()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert f"lora-exp sync {place.sweep()}" in out
    assert (read_sweep(place.sweep()).frame["status"] == "finished").all()
    server.start()
    assert place.run("sync", str(place.sweep()))[0].strip() == "all of it is in MLflow"
    each_once(server, place)
    place.run("sync", str(place.sweep()))
    each_once(server, place)


@pytest.mark.long
def test_a_run_whose_creation_was_carried_out_but_not_answered_is_there_once(server: Server, place: Place) -> None:
    with lossy(server.port, b"runs/create", skip=1) as (port, lost):
        tracking = ("tracking=server", f"tracking.uri=http://127.0.0.1:{port}")
        jobs = ("finetune.steps=5", "finetune.digit=1,2,3")
        out, _ = place.run("-m", *QUICK, *tracking, *jobs)
        assert lost == [b"runs/create"]
        assert f"lora-exp sync {place.sweep()}" in out
        assert sum(server.runs().values()) == 2  # the parent, and one job, of which nothing is known here
        place.run("sync", str(place.sweep()))
    each_once(server, place)


class lossy:
    """A proxy before a server, which swallows one answer: that to the request after `skip` others of its kind."""

    def __init__(self, port: int, kind: bytes, skip: int) -> None:
        self.server, self.kind, self.skip = port, kind, skip
        self.lost: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> tuple[int, list[bytes]]:
        threading.Thread(target=self._accept, daemon=True).start()
        return int(self.listener.getsockname()[1]), self.lost

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.server)) as server:
            swallow = threading.Event()

            def answers() -> None:
                with contextlib.suppress(OSError):  # the other side has gone
                    while data := server.recv(65536):
                        if swallow.is_set():
                            client.shutdown(socket.SHUT_RDWR)
                            return
                        client.sendall(data)

            threading.Thread(target=answers, daemon=True).start()
            try:
                while data := client.recv(65536):
                    if self.kind in data:
                        self.skip -= 1
                        if self.skip == -1:
                            self.lost.append(self.kind)
                            swallow.set()
                    server.sendall(data)
            except OSError:
                return
