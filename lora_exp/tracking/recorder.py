"""Writes runs to MLflow; only the process that launches jobs does.

A run is created once its result exists and is closed at once, so that a killed job leaves nothing RUNNING;
only the parent run of a sweep is open while the sweep goes on. Results lie in their folders before.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import TrackingSettings
from lora_exp.storage.result import ADAPTER, RESULT, RunResult
from lora_exp.tracking.connection import VIEW, connected, one_line
from lora_exp.tracking.facts import NOTE, curve_of, data_of, metrics_of, tags_of

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep

# MLflow's limits, in characters.
NAME_LIMIT, PARAMETER_LIMIT, TAG_LIMIT = 250, 6000, 8000
REPORT_PAGES = ("report.html", "report.md")


@dataclass(frozen=True)
class Ticket:
    """What a run is known by before MLflow has given it an id, and the time it is recorded under (ms since 1970).

    `again` tells that it was handed in before, so that the store may have the run already.
    """

    name: str
    time: int
    again: bool


@dataclass(frozen=True)
class Recorder:
    """Writes runs to one experiment of one store; `client` is an `mlflow.MlflowClient`."""

    settings: TrackingSettings
    client: Any
    experiment_id: str

    @classmethod
    def open(cls, settings: TrackingSettings) -> Recorder:
        """Connect to the store, making it and the experiment where there is none yet.

        Raises LoraExpError when that is not possible, for a silent server after about 3 s.
        """
        place = connected(settings)
        return cls(place.settings, place.client, place.experiment_id)

    def start_sweep(self, name: str, command: str, parameters: Mapping[str, str], ticket: Ticket | None = None) -> str:
        """Open the parent run of a sweep and return its id. Raises LoraExpError, as all methods do."""
        from mlflow.entities import Param

        tags = {"kind": "sweep", "command": command, NOTE: f"```\n{command}\n```"}
        with self._run(name, tags, _now(), None, ticket) as run:
            params = [Param(key, _cut(value, PARAMETER_LIMIT)) for key, value in parameters.items()]
            self.client.log_batch(run.info.run_id, params=params, synchronous=True)
        return str(run.info.run_id)

    def finish_sweep(
        self, parent: str, status: str, time: int, sweep: Sweep | None, runs: Mapping[int, str], report: Path | None
    ) -> None:
        """Close the parent run as `status` (FINISHED, FAILED or KILLED), with the sweep's summary and report, if any.

        `runs` are the ids of the sweep's runs by job, `time` (ms since 1970) is when it ended.
        """
        from mlflow.entities import Metric, RunTag

        from lora_exp.tracking.sweep_facts import metrics_of_sweep

        with one_line(self.settings.uri):
            try:
                if sweep is not None:
                    points = metrics_of_sweep(sweep.frame).items()
                    tags = self._summary(parent, sweep, runs, report)
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

    def _summary(self, parent: str, sweep: Sweep, runs: Mapping[int, str], report: Path | None) -> dict[str, str]:
        from lora_exp.storage.table import representative
        from lora_exp.tracking.sweep_facts import Pages, description_of

        pages = [f"report/{name}" for name in REPORT_PAGES if report is not None and (report / name).is_file()]
        places = Pages(
            runs={job: self.page(run) for job, run in runs.items()},
            all_runs=self.children_page(parent),
            report=self.page(parent, pages[0]) if pages else None,
        )
        tags, lowest = {NOTE: description_of(sweep, places)}, representative(sweep.frame)
        return tags if lowest is None else tags | {"lowest_sum_run": runs[lowest]}

    def page(self, run: str, artifact: str = "") -> str:
        """Where MLflow shows a run, or one of its artifacts, as its descriptions link to it."""
        place = f"{run}/artifacts/{artifact}" if artifact else run
        return f"#/experiments/{self.experiment_id}/runs/{place}?{VIEW}"

    def children_page(self, parent: str) -> str:
        """Where MLflow lists the runs of a sweep: sorted, since it hides them behind their parent otherwise."""
        query = {"searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'"}
        query |= {"orderByKey": "metrics.`target_error`", "orderByAsc": "true"}
        asked = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        return f"#/experiments/{self.experiment_id}/runs?{VIEW}&{asked}"

    def record_run(
        self,
        result: RunResult,
        folder: Path,
        overrides: Sequence[str],
        config: str,
        parent: str | None,
        ticket: Ticket | None = None,
    ) -> str:
        """Record a result whose files lie in `folder`, and return the run's id.

        A diverged run is FAILED and has no errors: MLflow takes NaN for 0, and filters would find it. The
        duration that MLflow shows is the job's share of fine-tuning and evaluation.
        """
        from mlflow.entities import Metric, Param

        end = _now() if ticket is None else ticket.time
        start = end - int(1000 * sum(result.times.get(stage, 0) for stage in ("fine_tuning", "evaluation")))
        parameters, tags = result.parameters(), {"kind": "run", **tags_of(result, overrides)}
        if cut := [name for name, value in parameters.items() if len(value) > PARAMETER_LIMIT]:
            tags["cut"] = f"{', '.join(cut)}: the first {PARAMETER_LIMIT} characters; config.yaml has the whole"
        points = [(key, value, 0) for key, value in metrics_of(result).items()]
        points += [("loss", loss, step) for step, loss in curve_of(result)]
        with self._run(result.name, tags, start, parent, ticket) as run:
            self.client.log_batch(
                run.info.run_id,
                metrics=[Metric(key, value, end, step) for key, value, step in points if math.isfinite(value)],
                params=[Param(key, _cut(value, PARAMETER_LIMIT)) for key, value in parameters.items()],
                synchronous=True,
            )
            self.client.log_inputs(run.info.run_id, _inputs(result))
            self._attach(run, [folder / RESULT, folder / ADAPTER], folder / "figures", config)
            self.client.set_terminated(run.info.run_id, "FAILED" if result.diverged else "FINISHED", end)
        return str(run.info.run_id)

    def record_failure(
        self,
        name: str,
        overrides: Sequence[str],
        error: str,
        folder: Path,
        parent: str | None,
        ticket: Ticket | None = None,
        stopped: bool = False,
    ) -> str:
        """Record a job that has no result, with the reason and the logs in `folder`; its id.

        It is FAILED, or KILLED where halving `stopped` it.
        """
        command, status = shlex.join(overrides), "stopped" if stopped else "failed"
        note = f"**{status.capitalize()}:** {error}\n\n```\nlora-exp {command}\n```"
        tags = {"kind": "run", "status": status, "error": error, "overrides": command, NOTE: note}
        now = _now() if ticket is None else ticket.time
        with self._run(name, tags, now, parent, ticket) as run:
            self._attach(run, sorted(folder.glob("*.log")), None, None)
            self.client.set_terminated(run.info.run_id, "KILLED" if stopped else "FAILED", now)
        return str(run.info.run_id)

    def reopen(self, run: str) -> None:
        """Let a run that ended go on."""
        with one_line(self.settings.uri):
            self.client.update_run(run, status="RUNNING")

    def forget(self, ticket: str) -> None:
        """Take the run of that ticket, if there is one, out of sight; MLflow can restore it."""
        with one_line(self.settings.uri):
            for run in self._of_ticket(ticket):
                self.client.delete_run(run.info.run_id)

    def known(self, run: str | None) -> str | None:
        """That run, if this experiment has it."""
        with one_line(self.settings.uri):
            found = self.client.search_runs([self.experiment_id], f"attributes.run_id = '{run}'") if run else []
        return run if found else None

    def _of_ticket(self, ticket: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], f"tags.ticket = '{ticket}'"))

    @contextlib.contextmanager
    def _run(
        self, name: str, tags: dict[str, str], start: int, parent: str | None, ticket: Ticket | None
    ) -> Iterator[Any]:
        """A new run, or the one that an earlier try with this ticket left.

        Whatever interrupts the block leaves it KILLED instead of RUNNING.
        """
        if parent:
            tags = tags | {"mlflow.parentRunId": parent, NOTE: f"{tags[NOTE]}\n\n[The sweep]({self.page(parent)})"}
        tags |= {"ticket": ticket.name} if ticket else {}
        tags = {key: _cut(value, TAG_LIMIT) for key, value in tags.items()}
        with one_line(self.settings.uri):
            run, *_ = (self._of_ticket(ticket.name) if ticket is not None and ticket.again else []) or [
                self.client.create_run(self.experiment_id, start, tags, _cut(name, NAME_LIMIT))
            ]
            try:
                yield run
            except BaseException:
                with contextlib.suppress(Exception):
                    self.client.set_terminated(run.info.run_id, "KILLED")
                raise

    def _attach(self, run: Any, files: Sequence[Path], figures: Path | None, config: str | None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # Not through the client, which reads the whole run from the store once more to find this address.
        artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.settings.uri)
        for file in files:
            if file.is_file():
                artifacts.log_artifact(str(file))
        if figures is not None and figures.is_dir():
            artifacts.log_artifacts(str(figures), "figures")
        if config is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "config.yaml"
                file.write_text(config, encoding="utf-8")
                artifacts.log_artifact(str(file))


def _inputs(result: RunResult) -> list[Any]:
    """The data of a run as MLflow's entities, made directly: MLflow's own way wants the arrays."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_SOURCE_NAME

    found = []
    for part in data_of(result):
        source = json.dumps({"tags": {MLFLOW_SOURCE_NAME: f"lora-exp data={part.name}"}})
        dataset = Dataset(part.name, part.digest, "code", source, part.schema, part.profile)
        found.append(DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, part.context)]))
    return found


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 10**6


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
