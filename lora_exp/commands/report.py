"""`lora-exp report`: write the report of a sweep again, or one report of several sweeps or of an MLflow experiment."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.commands.arguments import add_overrides, parse
from lora_exp.config.compose import compose_settings, saved_settings
from lora_exp.config.images import MNIST
from lora_exp.config.settings import Settings
from lora_exp.config.spec import OWN_DATA
from lora_exp.errors import LoraExpError
from lora_exp.tracking.reader import fetch_experiment

if TYPE_CHECKING:
    from lora_exp.storage.sweep_folder import Sweep

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Write the report of a sweep again, or one report of several sweeps or of an MLflow experiment."""
    parser = argparse.ArgumentParser(prog="lora-exp report", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="*", help="folder of a sweep or of a run")
    parser.add_argument("--experiment", metavar="NAME", help="an MLflow experiment instead of folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default multirun_reports/NAME)")
    add_overrides(parser, "report.claim=rank_saturates")
    options = parse(parser, arguments)
    if bool(options.folder) == (options.experiment is not None):
        parser.error("give folders of sweeps, or --experiment NAME")
    if options.experiment is None:
        out = report(options.folder, options.out, options.overrides)
    else:
        out = experiment_report(options.experiment, options.out, options.overrides)
    if (page := out / "contest.html").is_file():
        print(f"verdict  {page}")
    print(f"report   {out / 'report.html'}\n         {out / 'report.md'}")
    return 0


def report(folders: Sequence[Path], out: Path | None, overrides: Sequence[str]) -> Path:
    """Write one report of the sweeps (or single runs) in `folders`; return its folder.

    Without `out` it goes to the report folder of the sweep's settings. Raises LoraExpError for a folder that holds no
    run, and for an override that is not allowed.
    """
    from lora_exp.storage.sweep_folder import join, read_sweep

    sweeps = [read_sweep(folder) for folder in dict.fromkeys(folder.absolute() for folder in folders)]
    sweep = sweeps[0] if len(sweeps) == 1 else join(sweeps)
    return write_again(sweep, sweep_settings(sweep, overrides), out)


def experiment_report(name: str, out: Path | None, overrides: Sequence[str]) -> Path:
    """Write one report of all runs of the MLflow experiment `name`; return its folder.

    The runs are downloaded to `runs/mlflow/NAME`. MLflow has no predictions, so the report shows no images. Raises
    LoraExpError when there is no such experiment.
    """
    from lora_exp.storage.sweep_folder import join, read_sweep

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
    """The settings of the first run with a result, with overrides; the settings of today when no run has a result."""
    for result in sweep.results.values():
        return saved_settings(result.provenance["config"], overrides)
    return compose_settings(overrides)


def write_again(sweep: Sweep, settings: Settings, out: Path | None = None) -> Path:
    """Write the report of a sweep into `out`, or into the report folder of `settings`; return its folder.

    Raises LoraExpError when that place holds something else.
    """
    import numpy as np

    from lora_exp.contest.write import write_with_verdict
    from lora_exp.data.prepared import prepare, test_pictures
    from lora_exp.report.write import judged_claim, write_report

    out = out or settings.report.place(sweep.name)
    pictures, labels = np.zeros((0, *MNIST.shape), np.uint8), np.zeros(0, np.uint8)
    if first := next(iter(sweep.results.values()), None):
        places = settings.data
        if first.spec.data.name in OWN_DATA:  # which only the run's own config knows
            places = saved_settings(first.provenance["config"], []).data
        try:
            pictures, labels = test_pictures(prepare(first.spec.data, places))
        except LoraExpError as error:
            log.warning("%s; so the report shows no pictures", error)
    if sweep.contest is not None:
        write_with_verdict(sweep, out.absolute(), pictures, labels)
        return out.absolute()
    return write_report(sweep, out.absolute(), pictures, labels, judged_claim(sweep, settings.report.claim))
