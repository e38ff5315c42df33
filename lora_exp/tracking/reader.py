"""Read recorded runs back from the tracking store. Nothing in it is changed."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_exp.config.settings import TrackingSettings
from lora_exp.errors import LoraExpError
from lora_exp.storage.result import RESULT
from lora_exp.storage.sweep_file import Failure, write_failure, write_whole
from lora_exp.tracking.connection import existing_store, translated_errors

log = logging.getLogger(__name__)


def fetch_run(settings: TrackingSettings, run: str, names: Sequence[str]) -> dict[str, bytes]:
    """The content of the artifacts `names` of a recorded run, by name; names that it lacks are left out.

    Raises LoraExpError when there is no such store, or no such run in it.
    """
    settings = existing_store(settings, f"run {run}")
    with translated_errors(settings.uri):
        from mlflow import MlflowClient

        return _artifacts(settings, MlflowClient(settings.uri).get_run(run), names)


def fetch_experiment(settings: TrackingSettings, folder: Path) -> list[tuple[Path, str]]:
    """Download each run of `settings.experiment` into `folder`/RUN; return these folders, each with its sweep's name.

    A folder gets `result.json`, or `failure.json` when the run failed. Runs are in the order of their start. Raises
    LoraExpError when there is no such store or experiment, or no run in it.
    """
    settings = existing_store(settings, f"experiment {settings.experiment}")
    with translated_errors(settings.uri):
        from mlflow import MlflowClient
        from mlflow.utils import get_results_from_paginated_fn

        client = MlflowClient(settings.uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            known = ", ".join(one.name for one in client.search_experiments())
            raise LoraExpError(
                f"tracking.experiment={settings.experiment}: is not in {settings.uri}, which has: {known}"
            )
        runs = get_results_from_paginated_fn(
            lambda count, token: client.search_runs(
                [experiment.experiment_id], max_results=count, order_by=["attributes.start_time ASC"], page_token=token
            ),
            1000,
        )
        sweeps = {run.info.run_id: run.info.run_name for run in runs if run.data.tags.get("kind") == "sweep"}
        found, absent = [], []
        for run in runs:
            place = folder / run.info.run_id
            if run.data.tags.get("kind") != "run":
                continue
            if _write(settings, run, place):
                found.append((place, sweeps.get(run.data.tags.get("mlflow.parentRunId"), settings.experiment)))
            elif run.info.status != "RUNNING":
                absent.append(run.info.run_name)
    if absent:
        some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        log.warning("%d runs are left out, since their artifacts hold no %s: %s", len(absent), RESULT, some)
    if not found:
        raise LoraExpError(f"tracking.experiment={settings.experiment}: has no finished or failed run of lora-exp")
    return found


def _write(settings: TrackingSettings, run: Any, folder: Path) -> bool:
    """Write the run's result, or the reason why it has none; False when it has neither (it may still be running)."""
    folder.mkdir(parents=True, exist_ok=True)
    files, tags = _artifacts(settings, run, [RESULT]), run.data.tags
    if RESULT in files:
        write_whole(folder / RESULT, files[RESULT])
    elif "error" in tags:
        write_failure(folder, run.info.run_name, shlex.split(tags.get("overrides", "")), Failure(tags["error"]))
    else:
        return False
    return True


def _artifacts(settings: TrackingSettings, run: Any, names: Sequence[str]) -> dict[str, bytes]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=settings.uri)
    present = {artifact.path for artifact in artifacts.list_artifacts()}.intersection(names)
    with tempfile.TemporaryDirectory() as folder:
        return {name: Path(artifacts.download_artifacts(name, folder)).read_bytes() for name in present}
