"""Write runs to MLflow. Of all processes of a run or a sweep one alone does (`sweeps/recording.py`).

A run is created after its result is on disk, and is closed at once, so that a killed job leaves no run RUNNING. Only
the parent run of a sweep stays open while the sweep goes on.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import TrackingSettings
from lora_exp.storage.result import ADAPTER, RESULT, RunResult
from lora_exp.tracking import facts, summary, views
from lora_exp.tracking.connection import connect, translated_errors

if TYPE_CHECKING:
    from lora_exp.storage.sweep_file import FailedJob
    from lora_exp.storage.sweep_folder import Sweep

# MLflow's limits, in characters.
NAME_LIMIT, PARAMETER_LIMIT, TAG_LIMIT = 250, 6000, 8000
ACTIVE, DELETED = "active", "deleted"  # MLflow's lifecycle stages
REPORT_PAGES = ("contest.html", "report.html", "report.md")


@dataclass(frozen=True)
class Ticket:
    """An idempotency key: identifies a run before MLflow has given it an id.

    `time` (ms since 1970) is the end that is recorded of the run. `is_retry` says that the ticket was used before, so
    that MLflow may have the run already.
    """

    name: str
    time: int
    is_retry: bool

    @classmethod
    def new(cls) -> Ticket:
        """A ticket that was never used."""
        return cls(uuid.uuid4().hex, now(), False)


@dataclass(frozen=True)
class Recorder:
    """Write runs to one experiment of one tracking store. `client` is an `mlflow.MlflowClient`.

    All methods raise LoraExpError, of one line, when the store can't be read or written.
    """

    settings: TrackingSettings
    client: Any
    experiment_id: str

    @classmethod
    def open(cls, settings: TrackingSettings) -> Recorder:
        """Connect to the store; create it and the experiment where they do not exist. See `connection.connect`."""
        return cls(*connect(settings))

    def start_sweep(self, name: str, command: str, parameters: Mapping[str, str], ticket: Ticket) -> str:
        """Open the parent run of a sweep; return its id."""
        from mlflow.entities import Param

        tags = {"kind": "sweep", "command": command, facts.NOTE: f"```\n{command}\n```"}
        with self._run(name, tags, ticket.time, None, ticket) as run:
            params = [Param(key, _cut(value, PARAMETER_LIMIT)) for key, value in parameters.items()]
            self.client.log_batch(run.info.run_id, params=params, synchronous=True)
        return str(run.info.run_id)

    def finish_sweep(
        self, parent: str, status: str, time: int, sweep: Sweep | None, runs: Mapping[int, str], report: Path | None
    ) -> None:
        """Close the parent run as `status` (FINISHED, FAILED or KILLED), with the sweep's summary and report, if any.

        `runs` are the ids of the sweep's runs by job. `time` (ms since 1970) is when the sweep ended.
        """
        from mlflow.entities import Metric, RunTag

        with translated_errors(self.settings.uri):
            try:
                if sweep is not None:
                    from lora_exp.storage.recommendation import recommendations

                    # A contest has a verdict, and recommends nothing by the runs that led to it.
                    found = [] if sweep.contest else recommendations(sweep.frame)
                    points = summary.metrics_of_sweep(sweep.frame, found).items()
                    tags = summary.tags_of_sweep(sweep, found, self._links(parent, runs, report), runs)
                    self.client.log_batch(
                        parent,
                        metrics=[Metric(key, value, time, 0) for key, value in points if math.isfinite(value)],
                        tags=[RunTag(key, _cut(value, TAG_LIMIT)) for key, value in tags.items()],
                        synchronous=True,
                    )
                if report is not None and report.is_dir():
                    self.client.log_artifacts(parent, str(report), "report")
            finally:
                self.client.set_terminated(parent, status, time)

    def _links(self, parent: str, runs: Mapping[int, str], report: Path | None) -> summary.Links:
        pages = [f"report/{name}" for name in REPORT_PAGES if report is not None and (report / name).is_file()]
        return summary.Links(
            runs={job: self.page(run) for job, run in runs.items()},
            all_runs=views.children_page(self.experiment_id, parent),
            report=self.page(parent, pages[0]) if pages else None,
        )

    def save_views(self) -> dict[str, str]:
        """Save the views of the experiment in MLflow's UI; return their addresses below MLflow's, by `sweep`, `run`."""
        with translated_errors(self.settings.uri):
            return views.save_views(self.client, self.experiment_id, now())

    def page(self, run: str, artifact: str = "") -> str:
        """The address of a run, or of one of its artifacts, as descriptions link to it."""
        return views.run_page(self.experiment_id, run, artifact)

    def record_run(
        self, result: RunResult, folder: Path, parent: str | None, ticket: Ticket, name: str | None = None
    ) -> str:
        """Record a result whose files are in `folder`, as `name` or else by its own; return the run's id.

        A diverged run is FAILED and has no errors: MLflow stores NaN as 0, which filters would find. The duration in
        MLflow is the job's share of fine-tuning and evaluation.
        """
        from mlflow.entities import Metric, Param

        start = ticket.time - int(1000 * sum(result.times.get(stage, 0) for stage in ("fine_tuning", "evaluation")))
        parameters, tags = result.parameters(), {"kind": "run", **facts.tags_of(result)}
        if cut := [name for name, value in parameters.items() if len(value) > PARAMETER_LIMIT]:
            tags["cut"] = f"{', '.join(cut)}: the first {PARAMETER_LIMIT} characters; config.yaml has all of it"
        points = [(key, value, 0) for key, value in facts.metrics_of(result).items()]
        points += [("loss", loss, step) for step, loss in facts.curve_of(result)]
        with self._run(name or result.name, tags, start, parent, ticket) as run:
            self.client.log_batch(
                run.info.run_id,
                metrics=[Metric(key, value, ticket.time, step) for key, value, step in points if math.isfinite(value)],
                params=[Param(key, _cut(value, PARAMETER_LIMIT)) for key, value in parameters.items()],
                synchronous=True,
            )
            self.client.log_inputs(run.info.run_id, facts.data_of(result))
            self._attach(run, [folder / RESULT, folder / ADAPTER, folder / "figures"], result.provenance.get("config"))
            self.client.set_terminated(run.info.run_id, "FAILED" if result.diverged else "FINISHED", ticket.time)
        return str(run.info.run_id)

    def record_failure(
        self, failure: FailedJob, folder: Path, parent: str | None, ticket: Ticket, name: str | None = None
    ) -> str:
        """Record a job without a result from its `failure.json` and the logs in `folder`; return the run's id.

        Its status is FAILED, or KILLED when successive halving stopped it.
        """
        command, status = shlex.join(failure.overrides), "failed" if failure.stopped is None else "stopped"
        note = f"**{status.capitalize()}:** {failure.error}\n\n```\nlora-exp {command}\n```"
        tags = {"kind": "run", "status": status, "error": failure.error, "overrides": command, facts.NOTE: note}
        with self._run(name or failure.name, tags, ticket.time, parent, ticket) as run:
            self._attach(run, sorted(folder.glob("*.log")))
            self.client.set_terminated(run.info.run_id, "KILLED" if status == "stopped" else "FAILED", ticket.time)
        return str(run.info.run_id)

    def reopen(self, run: str) -> None:
        """Set a run that ended to RUNNING."""
        with translated_errors(self.settings.uri):
            self.client.update_run(run, status="RUNNING")

    def delete(self, ticket: str) -> None:
        """Delete the run of that ticket, if there is one. MLflow can restore it."""
        with translated_errors(self.settings.uri):
            for run in self._of_ticket(ticket):
                self.client.delete_run(run.info.run_id)

    def has(self, run: str) -> bool:
        """Whether the store has a run with that id, which is not deleted."""
        return self.stage(run) == ACTIVE

    def stage(self, run: str) -> str | None:
        """ACTIVE or DELETED; None where the store knows no run with that id."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.settings.uri):
            try:
                return str(self.client.get_run(run).info.lifecycle_stage)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def restore(self, run: str) -> None:
        """Undo the deletion of a run."""
        with translated_errors(self.settings.uri):
            self.client.restore_run(run)

    def _of_ticket(self, ticket: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], f"tags.ticket = '{ticket}'"))

    @contextlib.contextmanager
    def _run(self, name: str, tags: dict[str, str], start: int, parent: str | None, ticket: Ticket) -> Iterator[Any]:
        """A new run, or the one that an earlier attempt with this ticket left.

        An exception in the block leaves the run KILLED instead of RUNNING.
        """
        tags = tags | {"ticket": ticket.name}
        if parent:
            link = f"[The sweep]({self.page(parent)})"
            tags |= {"mlflow.parentRunId": parent, facts.NOTE: f"{tags[facts.NOTE]}\n\n{link}"}
        tags = {key: _cut(value, TAG_LIMIT) for key, value in tags.items()}
        with translated_errors(self.settings.uri):
            known = self._of_ticket(ticket.name) if ticket.is_retry else []
            run = known[0] if known else self.client.create_run(self.experiment_id, start, tags, _cut(name, NAME_LIMIT))
            try:
                yield run
            except BaseException:
                with contextlib.suppress(Exception):
                    self.client.set_terminated(run.info.run_id, "KILLED")
                raise

    def _attach(self, run: Any, files: Sequence[Path], config: str | None = None) -> None:
        """Upload those of `files` and folders that exist, and the config, if any."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # The client would read the whole run again to find this address.
        artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.settings.uri)
        for file in files:
            if file.is_file():
                artifacts.log_artifact(str(file))
            elif file.is_dir():
                artifacts.log_artifacts(str(file), file.name)
        if config is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "config.yaml"
                file.write_text(config, encoding="utf-8")
                artifacts.log_artifact(str(file))


def now() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 10**6


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
