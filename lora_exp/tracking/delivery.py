"""Record the results of jobs in MLflow exactly once, however often a process is killed or the store is away.

A job's folder holds `mlflow.json` with a ticket, written before the run is created in MLflow and saved there as a tag,
and the run's id, written when the run is complete. A ticket without an id means that a delivery was interrupted: the
next one looks the run up by its ticket and completes it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT, read
from lora_exp.storage.sweep_file import FAILURE, note, read_about, read_failure, write_json
from lora_exp.tracking.connection import settle
from lora_exp.tracking.recorder import ACTIVE, DELETED, Recorder, Ticket, now
from lora_exp.tracking.run_names import run_name, varied_keys, varied_words

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep

log = logging.getLogger(__name__)

TICKET = "mlflow.json"
PAUSE = 15.0  # seconds without another attempt after the store failed


class Delivery:
    """Record the jobs of a process in one tracking store.

    No method raises when the store fails: a warning is logged, and for PAUSE seconds no other job waits for the store.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        """With `tracking=off` nothing is recorded, and everything counts as recorded."""
        self._settings = settings
        self._paused_until = 0.0
        self._parents: dict[Path, str] = {}
        self._varied: dict[Path, list[str]] = {}  # by the folder of a sweep
        self._is_parent_deleted = False

    @property
    def is_off(self) -> bool:
        """Whether nothing is recorded."""
        return self._settings.kind == "off"

    @functools.cached_property
    def recorder(self) -> Recorder:
        """What writes to the store, which is opened on first use. Raises LoraExpError when it can't be opened."""
        return Recorder.open(self._settings)

    def deliver(self, folder: Path, parent: str | None) -> bool:
        """Record what a job's folder holds, once. Return whether it is recorded."""
        if self.is_off:
            return True
        if not self._is_paused():
            with self._logged_errors():
                _deliver(self.recorder, folder, parent, self._varied_in(folder.parent) if parent else [])
                return True
        return False

    def deliver_all(self, folders: Iterable[Path], parent: str | None) -> int:
        """Record every job that is not recorded yet. Return how many still are not."""
        return sum(not self.deliver(folder, parent) for folder in folders if not is_delivered(folder))

    def open_parent(self, folder: Path) -> str | None:
        """The parent run of the sweep in `folder`, created or found by its ticket; None while the store is away."""
        if self.is_off or folder in self._parents:  # sweep.json of thousands of jobs takes long to read
            return self._parents.get(folder)
        about = read_about(folder)
        parent: str | None = about.get("parent_run")
        if parent is None and not self._is_paused():
            parent = self._new_parent(folder, about)
        if parent is not None:
            self._parents[folder] = parent
        return parent

    def _new_parent(self, folder: Path, about: Mapping[str, Any]) -> str | None:
        """Create the parent run, or find it by its ticket."""
        ticket = Ticket(about["ticket"], now(), is_retry=bool(about.get("parent_asked")))
        note(folder, parent_asked=True)
        # A search has no jobs yet when its parent is opened, and how many a contest will have nobody knows.
        jobs = about.get("search", {}).get("trials") or len(about["jobs"])
        parameters = {"contest": about["contest"]} if "contest" in about else {"jobs": str(jobs)}
        if words := varied_words(varied_keys(about)):
            parameters["varied"] = words
        parent = None
        with self._logged_errors():
            parent = self.recorder.start_sweep(about["name"], about["command"], parameters, ticket)
        if parent is not None:
            note(folder, parent_run=parent)
        return parent

    def _varied_in(self, sweep: Path) -> list[str]:
        """The keys in which the jobs of the sweep in that folder differ. Raises LoraExpError."""
        if sweep not in self._varied:
            self._varied[sweep] = varied_keys(read_about(sweep))
        return self._varied[sweep]

    def compare(self, folders: Iterable[Path], sweep: Path | None, restore: bool = False) -> int | None:
        """Ask the store for what the folders of jobs, and of their sweep, say that it has.

        What it does not know, such as after its database was moved away, counts as not recorded from now on. What was
        deleted there stays so, unless `restore` says otherwise; return how many runs that are, None if the store fails.
        """
        deleted = 0
        with self._logged_errors():
            about = {} if sweep is None else read_about(sweep)
            if sweep is not None and (parent := about.get("parent_run")):
                stage = self._stage(parent, restore)
                self._is_parent_deleted |= stage == DELETED
                deleted += stage == DELETED
                if stage is None:
                    ended = about.get("ended")
                    note(sweep, parent_run=None, ended=ended and ended | {"recorded": False})
            for folder in folders:
                known = _ticket(folder)
                if run := known.get("run"):
                    stage = self._stage(run, restore)
                    deleted += stage == DELETED
                    if stage is None:
                        write_json(folder / TICKET, known | {"run": None})
            return deleted
        return None

    def _stage(self, run: str, restore: bool) -> str | None:
        stage = self.recorder.stage(run)
        if stage == DELETED and restore:
            self.recorder.restore(run)
            return ACTIVE
        return stage

    def reopen_parent(self, folder: Path) -> None:
        """Set the parent run of a sweep that is resumed to RUNNING."""
        about = read_about(folder)
        if not self.is_off and about.get("parent_run") and not self._is_parent_deleted:
            with self._logged_errors():
                self.recorder.reopen(about["parent_run"])

    def close_parent(self, folder: Path) -> bool:
        """Close the parent run with the status that `sweep.json` gives. Return whether it is closed.

        A sweep with a report gets its summary too, which links to the runs of all jobs.
        """
        from lora_exp.storage.sweep_folder import read_sweep

        about = read_about(folder)
        ended, parent = about.get("ended"), about.get("parent_run")
        if self.is_off or self._is_parent_deleted or (ended or {}).get("recorded"):
            return True
        if ended and parent and not self._is_paused():
            report = None if ended["report"] is None else Path(ended["report"])
            sweep = None if report is None else read_sweep(folder)
            runs = {} if sweep is None else _runs_of(sweep)
            with self._logged_errors():
                self.recorder.finish_sweep(parent, ended["status"], ended.get("time") or now(), sweep, runs, report)
                note(folder, ended=ended | {"recorded": True})
                return True
        return False

    def end(self) -> None:
        """Leave the store whole on disk."""
        if not self.is_off:
            settle(self._settings)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    @contextlib.contextmanager
    def _logged_errors(self) -> Iterator[None]:
        """A block whose LoraExpError is logged, and after which no attempt is made for PAUSE seconds."""
        try:
            yield
        except LoraExpError as error:
            self._paused_until = time.monotonic() + PAUSE
            log.warning("%s; results are kept, and `lora-exp sync` records them when the store takes them", error)


def _runs_of(sweep: Sweep) -> dict[int, str]:
    """The ids of the recorded runs, by job."""
    folders = zip(sweep.frame["job"], sweep.frame["folder"], strict=True)
    return {int(job): run for job, folder in folders if (run := recorded_run(Path(folder))) is not None}


def recorded_run(folder: Path) -> str | None:
    """The id of the run of a job's folder in MLflow; None when it is not recorded."""
    run = _ticket(folder).get("run")
    return None if run is None else str(run)


def is_delivered(folder: Path) -> bool:
    """Whether what a job's folder holds is in MLflow, or it holds nothing."""
    kind = _kind(folder)
    return kind is None or (recorded_run(folder) is not None and _ticket(folder).get("kind") == kind)


def _deliver(recorder: Recorder, folder: Path, parent: str | None, varied: Sequence[str]) -> None:
    """Record a job of a sweep in which these keys vary, or a single run. Raises LoraExpError."""
    if is_delivered(folder):
        return
    kind, known = _kind(folder), _ticket(folder)
    if known and known.get("kind") != kind:  # it failed before, and has a result now
        recorder.delete(known["ticket"])
        known = {}
    ticket = Ticket(known["ticket"], int(known["time"]), is_retry=True) if known else Ticket.new()
    about = {"ticket": ticket.name, "time": ticket.time, "kind": kind, "run": None}
    if not known:
        write_json(folder / TICKET, about)
    if kind == RESULT:
        result = read(folder)
        name = run_name(varied, result.provenance["overrides"], folder, result.target_text)
        run = recorder.record_run(result, folder, parent, ticket, name)
    else:
        failure = read_failure(folder)
        name = run_name(varied, failure.overrides, folder)
        run = recorder.record_failure(failure, folder, parent, ticket, name)
    write_json(folder / TICKET, about | {"run": run})


def _kind(folder: Path) -> str | None:
    """The file in a job's folder that is to be recorded, if any."""
    return next((name for name in (RESULT, FAILURE) if (folder / name).is_file()), None)


def _ticket(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / TICKET).read_text(encoding="utf-8"))
        return dict(found) if {"ticket", "time"} <= set(found) else {}
    except (OSError, ValueError, TypeError):
        return {}
