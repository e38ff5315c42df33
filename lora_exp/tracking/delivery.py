"""Brings what lies in the folders of jobs to MLflow, each once, whatever was killed or away in between.

A job's folder holds `mlflow.json`: a ticket, written before the run is made in MLflow and tagged there, and the run's
id, written when all of it has arrived. A ticket without a run means that a delivery was cut short; what it left is
then looked up by the ticket and completed.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT, read
from lora_exp.storage.sweep_file import FAILURE, note, read_about, read_failure, write_json
from lora_exp.tracking.recorder import Recorder, Ticket

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep

log = logging.getLogger(__name__)

TICKET = "mlflow.json"
PAUSE = 15.0  # seconds for which a store that failed is left alone


class Delivery:
    """Delivers to one tracking store; one that fails is left alone for a while, so that no job waits for it."""

    def __init__(self, recorder: Recorder | None) -> None:
        """Without a recorder nothing is delivered, and nothing is missing."""
        self.recorder = recorder
        self._away_until = 0.0

    def deliver(self, folder: Path, parent: str | None) -> bool:
        """Record what lies in a job's folder, once; whether it is recorded. Never raises for the store's sake."""
        if self.recorder is None:
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            _deliver(self.recorder, folder, parent)
        except LoraExpError as error:
            self._left_alone(error)
            return False
        return True

    def open_parent(self, folder: Path) -> str | None:
        """The parent run of the sweep in `folder`, made or found by its ticket; None while it can't be had."""
        about = read_about(folder)
        if self.recorder is None or about.get("parent_run"):
            return about.get("parent_run")
        again = bool(about.get("parent_asked"))
        ticket = Ticket(about["ticket"], _now(), again)
        note(folder, parent_asked=True)
        try:
            jobs = {"jobs": str(about.get("search", {}).get("trials") or len(about["jobs"]))}  # a search has none yet
            parent = self.recorder.start_sweep(about["name"], about["command"], jobs, ticket)
        except LoraExpError as error:
            self._left_alone(error)
            return None
        note(folder, parent_run=parent)
        return parent

    def reopen_parent(self, folder: Path) -> None:
        """Let the parent run of a sweep that is resumed go on."""
        about = note(folder, ended=None)
        if self.recorder is not None and about.get("parent_run"):
            try:
                self.recorder.reopen(about["parent_run"])
            except LoraExpError as error:
                self._left_alone(error)

    def close_parent(self, folder: Path) -> bool:
        """Close the parent run as `sweep.json` says that the sweep ended; whether it is closed.

        A sweep that has its report gets its summary too, which links to the runs of all jobs that are recorded.
        """
        from lora_exp.storage.sweep_folder import read_sweep

        about = read_about(folder)
        ended, parent = about.get("ended"), about.get("parent_run")
        if self.recorder is None or (ended or {}).get("recorded"):
            return True
        if not ended or not parent or time.monotonic() < self._away_until:
            return False
        try:
            report = None if ended["report"] is None else Path(ended["report"])
            sweep = None if report is None else read_sweep(folder)
            runs = {} if sweep is None else _runs_of(sweep)
            self.recorder.finish_sweep(parent, ended["status"], ended.get("time") or _now(), sweep, runs, report)
        except LoraExpError as error:
            self._left_alone(error)
            return False
        note(folder, ended=ended | {"recorded": True})
        return True

    def _left_alone(self, error: LoraExpError) -> None:
        self._away_until = time.monotonic() + PAUSE
        log.warning("%s; results are kept, and are recorded when it is back", error)

    def deliver_all(self, folders: Iterable[Path], parent: str | None) -> int:
        """Record all that is not yet; how many are still missing."""
        return sum(not self.deliver(folder, parent) for folder in folders if not is_delivered(folder))


def _runs_of(sweep: Sweep) -> dict[int, str]:
    """The ids of the runs that MLflow has, by job."""
    folders = zip(sweep.frame["job"], sweep.frame["folder"], strict=True)
    found = {int(job): recorded_run(Path(folder)) for job, folder in folders}
    return {job: run for job, run in found.items() if run is not None}


def recorded_run(folder: Path) -> str | None:
    """The id of the run that a job's folder has in MLflow; None where it is not known."""
    run = _ticket(folder).get("run")
    return None if run is None else str(run)


def is_delivered(folder: Path) -> bool:
    """Whether what lies in a job's folder is in MLflow, or nothing lies there."""
    kind = _kind(folder)
    return kind is None or (recorded_run(folder) is not None and _ticket(folder).get("kind") == kind)


def _deliver(recorder: Recorder, folder: Path, parent: str | None) -> None:
    """Raises LoraExpError."""
    if is_delivered(folder):
        return
    kind, known = _kind(folder), _ticket(folder)
    if known and known.get("kind") != kind:  # it failed before, and has a result now
        recorder.forget(known["ticket"])
        known = {}
    ticket = Ticket(known["ticket"], int(known["time"]), True) if known else Ticket(uuid.uuid4().hex, _now(), False)
    about = {"ticket": ticket.name, "time": ticket.time, "kind": kind, "run": None}
    if not known:
        write_json(folder / TICKET, about)
    if kind == RESULT:
        result = read(folder)
        facts = result.provenance
        run = recorder.record_run(result, folder, facts["overrides"], facts["config"], parent, ticket)
    else:
        job = read_failure(folder)
        stopped = job.stopped is not None
        run = recorder.record_failure(job.name, job.overrides, job.error, folder, parent, ticket, stopped=stopped)
    write_json(folder / TICKET, about | {"run": run})


def _kind(folder: Path) -> str | None:
    """What a job's folder holds to be recorded."""
    return next((name for name in (RESULT, FAILURE) if (folder / name).is_file()), None)


def _ticket(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / TICKET).read_text(encoding="utf-8"))
        return dict(found) if {"ticket", "time"} <= set(found) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _now() -> int:
    return time.time_ns() // 10**6
