"""`lora-exp report`: the report of a sweep made again, or one report of several sweeps."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from lora_exp.config.compose import compose_settings, saved_settings
from lora_exp.config.settings import Settings
from lora_exp.report.write import judged_claim, write_report
from lora_exp.storage.sweep_folder import Sweep, join, read_sweep
from lora_exp.tracking.reader import fetch_experiment


def report(folders: Sequence[Path], out: Path | None, overrides: Sequence[str]) -> Path:
    """Write one report of the sweeps (or single runs) in `folders`, and return its folder.

    Without `out` it goes where the report of such a sweep goes. Raises LoraExpError for a folder that holds no run, and
    LoraExpError for an override that is not allowed.
    """
    sweeps = [read_sweep(folder) for folder in dict.fromkeys(folder.absolute() for folder in folders)]
    sweep = sweeps[0] if len(sweeps) == 1 else join(sweeps)
    return write_again(sweep, sweep_settings(sweep, overrides), out)


def experiment_report(name: str, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write one report of all runs that the MLflow experiment `name` holds, and return its folder.

    What MLflow keeps of them is copied into `runs/mlflow/NAME`; predictions are not there, so no images are shown.
    Raises LoraExpError when there is no such experiment.
    """
    settings = compose_settings(overrides)
    tracking = dataclasses.replace(settings.tracking, experiment=name)
    plain = re.sub(r"[^\w.-]+", "_", name)
    place = Path("runs", "mlflow", plain).absolute()
    sweeps = []
    for folder, sweep_name in fetch_experiment(tracking, place):
        run = read_sweep(folder)
        sweeps.append(dataclasses.replace(run, frame=run.frame.assign(sweep=sweep_name)))
    command = shlex.join(["lora-exp", "report", "--experiment", name])
    return write_again(dataclasses.replace(join(sweeps), name=f"experiment-{plain}", command=command), settings, out)


def sweep_settings(sweep: Sweep, overrides: Sequence[str] = ()) -> Settings:
    """The settings that the first run with a result had, with overrides of them; those of today where there is none."""
    for result in sweep.results.values():
        return saved_settings(result.provenance["config"], overrides)
    return compose_settings(overrides)


def write_again(sweep: Sweep, settings: Settings, out: Path | None = None) -> Path:
    """Write the report of a sweep that was run before; `out` is where, if not where a sweep's report goes.

    Raises LoraExpError when there is something else.
    """
    import numpy as np

    from lora_exp.executors.choice import laboratory

    out = out or settings.report.place(sweep.name)
    pictures, labels = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)
    for result in sweep.results.values():
        pictures, labels = laboratory(settings).test_pictures(result.spec)
        break
    return write_report(sweep, out.absolute(), pictures, labels, judged_claim(sweep, settings.report.claim))
