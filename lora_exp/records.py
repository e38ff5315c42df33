"""The only place that knows MLflow: one run for each job, written once its result exists, under a sweep's parent.

Nothing here is on the way of a result: it lies in the job's folder before it is recorded.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lora_exp.result import ADAPTER, RESULT, RunResult
from lora_exp.settings import TrackingSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own limits: characters of a parameter, metrics of one batch.
PARAMETER_LENGTH = 6000
CURVE_POINTS = 500
REACH_SECONDS = 5


class TrackingError(OSError):
    """The tracking store can't be reached; the message is one line."""


@dataclass(frozen=True)
class Recorder:
    """Writes runs to one MLflow experiment; only the launching process has one."""

    client: MlflowClient
    experiment_id: str

    @staticmethod
    def open(tracking: TrackingSettings) -> Recorder:
        """Connect, and make store and experiment where they are not there yet.

        Raises TrackingError when that is not possible.
        """
        _quiet()
        uri = store_uri(tracking)
        if tracking.kind == "server":
            _reach(uri)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            if tracking.kind == "server":
                client = MlflowClient(tracking_uri=uri)
                return Recorder(client, _experiment(client, tracking.experiment, None))
            file = Path(uri.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            # Processes that race to create a fresh store destroy it.
            with FileLock(file.with_name(file.name + ".lock")):
                client = MlflowClient(tracking_uri=uri)
                artifacts = Path(tracking.artifacts).absolute()
                return Recorder(client, _experiment(client, tracking.experiment, artifacts.as_uri()))
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise TrackingError(f"tracking.uri={tracking.uri}: can't be used ({reason})") from error

    def start_sweep(self, name: str, command: str, parameters: Mapping[str, str]) -> str:
        """The parent run that a sweep's runs are shown under; returns its id."""
        tags = {
            "mlflow.note.content": f"A sweep of {parameters.get('jobs', '?')} jobs:\n\n    {command}",
            "kind": "sweep",
        }
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        self._log(run.info.run_id, [], parameters)
        return str(run.info.run_id)

    def finish_sweep(self, parent: str, report: Path, metrics: Mapping[str, float], status: str) -> None:
        """Give the parent its report and summary figures, and end it (`FINISHED`, `FAILED` or `KILLED`)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._log(parent, [Metric(name, value, now, 0) for name, value in sorted(metrics.items())], {})
        if report.is_dir():
            self.client.log_artifacts(parent, str(report), "report")
        self.client.set_terminated(parent, status)

    def record_run(
        self, result: RunResult, folder: Path, overrides: Sequence[str], config: str, parent: str | None
    ) -> str:
        """Record a finished or diverged run with the files of its `folder`; returns the run's id.

        A diverged run gets no errors, since MLflow stores NaN as 0 and filters would match it, and is FAILED.
        """
        now = int(time.time() * 1000)
        seconds = sum(result.times.get(stage, 0.0) for stage in ("fine_tuning", "evaluation"))
        run = self.client.create_run(
            self.experiment_id,
            start_time=now - int(1000 * seconds),
            run_name=result.spec.name,
            tags=_tags(result, overrides, parent),
        )
        run_id = str(run.info.run_id)
        self._log(run_id, _metrics(result, now), _parameters(result))
        self.client.log_text(run_id, config, "config.yaml")
        for name in (RESULT, ADAPTER):
            self.client.log_artifact(run_id, str(folder / name))
        if (folder / "figures").is_dir():
            self.client.log_artifacts(run_id, str(folder / "figures"), "figures")
        self.client.set_terminated(run_id, "FAILED" if result.diverged else "FINISHED", now)
        return run_id

    def record_failure(self, name: str, overrides: Sequence[str], error: str, folder: Path, parent: str | None) -> str:
        """Record a job that has no result, with the reason; returns the run's id."""
        tags = {"status": "failed", "error": error, "overrides": " ".join(overrides), "folder": str(folder)}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment_id, run_name=name, tags=_short(tags))
        self.client.set_terminated(run.info.run_id, "FAILED")
        return str(run.info.run_id)

    def _log(self, run_id: str, metrics: list[Any], parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        shown = [Param(name, value) for name, value in _short(parameters).items()]
        self.client.log_batch(run_id, metrics=metrics, params=shown)


def store_uri(tracking: TrackingSettings) -> str:
    """The URI with an absolute path, so that it means the same from any folder."""
    if tracking.kind == "server":
        return tracking.uri
    if not tracking.uri.startswith("sqlite:///"):
        raise TrackingError(f"tracking.uri={tracking.uri}: must be sqlite:///FILE (or take tracking=server)")
    return f"sqlite:///{Path(tracking.uri.removeprefix('sqlite:///')).absolute()}"


def serve_ui(tracking: TrackingSettings, port: int) -> int:
    """Run the MLflow UI on 127.0.0.1 until it is interrupted; returns its exit code."""
    if tracking.kind == "off":
        raise TrackingError("tracking=off: nothing is recorded; take tracking=sqlite")
    if tracking.kind == "server":
        print(f"the runs are shown at {tracking.uri}")
        return 0
    Recorder.open(tracking)
    _quiet()
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    print(f"MLflow opens at http://127.0.0.1:{port} in about 10 seconds; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri(tracking), *address]
    server = subprocess.Popen(command, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _quiet() -> None:
    """MLflow reads these when it is imported, or its server when it starts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def _reach(uri: str) -> None:
    """Find out in seconds, rather than by MLflow's minutes of retries, whether a server answers."""
    if not uri.startswith(("http://", "https://")):
        raise TrackingError(f"tracking.uri={uri}: must be http://HOST:PORT")
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SECONDS).close()  # noqa: S310 - http(s) only
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"tracking.uri={uri}: no MLflow server answers ({reason}); start one, or take tracking=sqlite"
        ) from error


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artifacts))


def _short(texts: Mapping[str, str]) -> dict[str, str]:
    """Texts within MLflow's limits; a cut is stated, and the whole config is an artifact."""
    cut = " ... (cut; the whole is in config.yaml)"
    limit = PARAMETER_LENGTH - len(cut)
    return {k: v if len(v) <= PARAMETER_LENGTH else v[:limit] + cut for k, v in texts.items()}


def _parameters(result: RunResult) -> dict[str, str]:
    """Flat names that the compare page can show side by side."""
    spec = result.spec
    values: dict[str, Any] = {
        "rank": spec.adapter.rank,
        "alpha": spec.adapter.alpha,
        "scaling": spec.adapter.scaling,
        "digit": ",".join(str(digit) for digit in spec.finetune.digit),
        "seed": spec.finetune.seed,
        "learning_rate": spec.finetune.learning_rate,
        "batch_size": spec.finetune.batch_size,
        "steps": result.outcome.steps,
        "replay": spec.finetune.replay,
        "layers": ",".join(spec.adapter.layers),
        "init_std": spec.adapter.init_std,
        "model": "-".join(str(width) for width in spec.model.hidden),
        "rectify_logits": spec.model.rectify_logits,
        "data": spec.data.name,
        "data_limit": spec.data.limit,
        "data_validation": spec.data.validation,
        "base_epochs": spec.base.epochs,
        "base_batch_size": spec.base.batch_size,
        "base_learning_rate": spec.base.learning_rate,
        "base_seed": spec.base.seed,
    }
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def _metrics(result: RunResult, now: int) -> list[Any]:
    """Errors, counts and times; the loss curve step by step, thinned where it is long."""
    from mlflow.entities import Metric

    out = result.outcome
    values: dict[str, float] = {
        "overhead_percent": out.overhead_percent,
        "parameters_adapter": out.parameters_adapter,
        "parameters_total": out.parameters_total,
        **{f"seconds/{stage}": seconds for stage, seconds in result.times.items()},
    }
    if not result.diverged:
        names = ("target_error", "target_error_before", "other_error", "other_error_before", "forgetting")
        values |= {name: getattr(out, name) for name in names}
        values |= {"accuracy": out.after.accuracy, "accuracy_before": out.before.accuracy}
        for digit, (before, after) in enumerate(zip(out.before.errors, out.after.errors, strict=True)):
            values[f"errors_before/digit_{digit}"] = before
            values[f"errors_after/digit_{digit}"] = after
    found = [Metric(name, float(value), now, 0) for name, value in values.items()]
    every = math.ceil(len(out.loss_curve) / CURVE_POINTS)
    curve = [(step, loss) for step, loss in enumerate(out.loss_curve, 1) if math.isfinite(loss) and step % every == 0]
    return found + [Metric("loss", loss, now, step) for step, loss in curve]


def _tags(result: RunResult, overrides: Sequence[str], parent: str | None) -> dict[str, str]:
    out, facts = result.outcome, result.provenance
    gain = f"target error {100 * out.target_error_before:.2f} % -> {100 * out.target_error:.2f} %"
    price = f"other digits {100 * out.other_error_before:.2f} % -> {100 * out.other_error:.2f} %"
    note = f"**{gain}**, {price} ({out.parameters_adapter:,} parameters, +{out.overhead_percent:.3f} %)"
    if result.diverged:
        note = f"Diverged: the loss was not finite at step {out.diverged_at}."
    tags = {
        "status": "diverged" if result.diverged else "finished",
        "kind": "run",
        "overrides": " ".join(overrides),
        "spec": result.spec.key,
        "base_sha256": out.base_sha256_after,
        "adapter_sha256": out.adapter_sha256,
        "commit": str(facts.get("commit")),
        "promise": str(facts.get("promise")),
        "device": str(facts.get("device")),
        "torch": str(facts.get("versions", {}).get("torch")),
        "mlflow.note.content": f"{note}\n\n    lora-exp {' '.join(overrides)}",
    }
    if result.diverged:
        tags["diverged_at"] = str(out.diverged_at)
    if len(out.loss_curve) > CURVE_POINTS:
        tags["loss_curve"] = f"every {math.ceil(len(out.loss_curve) / CURVE_POINTS)}th step; all are in {RESULT}"
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    return _short(tags)
