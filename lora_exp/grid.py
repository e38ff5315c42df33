"""A sweep: every combination checked before anything runs, one MLflow parent, and a report at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lora_exp.composition import JobConfigs
from lora_exp.config import is_experiment, read
from lora_exp.job import JobsFailed, check, open_laboratory, open_recorder
from lora_exp.records import TrackingError
from lora_exp.spec import RunSpec, SpecError
from lora_exp.sweep_files import begin_sweep, command_line

if TYPE_CHECKING:
    from lora_exp.settings import Settings

log = logging.getLogger(__name__)


def sweep(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Launch every combination of the values in `given`, and report whatever came of it.

    Raises SpecError, before anything is computed, when one of the jobs is not valid, and JobsFailed at the end
    when jobs failed.
    """
    overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    folder = Path(str(config.hydra.sweep.dir))
    if not is_experiment(config):
        return launcher.launch(jobs, initial_job_idx=0)
    specs, settings = _checked(context, config, jobs)
    if settings.sweep.plan:
        from lora_exp.plan import plan_text

        print(plan_text(open_laboratory(settings), specs))
        return []
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    with _reported(folder, jobs, specs[0], settings):
        returns = launcher.launch(jobs, initial_job_idx=0)
    failed = [str(r.overrides) for r in returns if r.status is not JobStatus.COMPLETED]
    if failed:
        reasons = [str(r._return_value) for r in returns if r.status is not JobStatus.COMPLETED]
        raise JobsFailed(f"{len(failed)} of {len(jobs)} jobs failed; the first: {reasons[0]}")
    return returns


def _checked(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]]
) -> tuple[list[RunSpec], Settings]:
    """Compose and check every job; their specs, and the settings of the first, which are those of the sweep."""
    configs = JobConfigs(context.config_loader, config)
    found: list[tuple[RunSpec, Settings]] = []
    for number, overrides in enumerate(jobs):
        try:
            found.append(read(configs.own(overrides)))
        except SpecError as error:
            raise SpecError(f"{error} (job {number} of the sweep)" if len(jobs) > 1 else str(error)) from error
    if not found:
        raise SpecError("the sweep has no jobs: a swept key has no values")
    specs = [spec for spec, _ in found]
    check(specs, found[0][1])
    return specs, found[0][1]


@contextlib.contextmanager
def _reported(folder: Path, jobs: list[list[str]], first: RunSpec, settings: Settings) -> Iterator[None]:
    """A parent run while the sweep runs; the report, the table and the paths when it ends, however it ends."""
    laboratory = open_laboratory(settings)
    recorder = open_recorder(settings)
    name = "-".join(folder.parts[-2:]) if len(folder.parts) > 1 else folder.name
    command = command_line()
    parent = None if recorder is None else recorder.start_sweep(name, command, {"jobs": str(len(jobs))})
    begin_sweep(folder, name, command, jobs, parent)
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        from lora_exp import report
        from lora_exp.sweep import read_sweep

        done = read_sweep(folder)
        out = Path(settings.report.folder).absolute() / (settings.report.name or name)
        pictures, labels = laboratory.test_pictures(first)
        report.write_report(done, out, pictures, labels)
        if recorder is not None and parent is not None:
            try:
                recorder.finish_sweep(parent, out, _metrics(done.frame), status)
            except TrackingError as error:
                log.warning("%s; the report is kept in %s", error, out)
        print(report.terminal_table(done.frame))
        print(report.verdict(done.frame))
        print(f"report   {out / 'report.md'}\nruns     {folder.absolute()}\ncompare  lora-exp ui")


def _metrics(frame: Any) -> dict[str, float]:
    """What the parent run shows of its children."""
    sound = frame[frame["status"] == "finished"]
    found = {f"jobs_{status}": float(count) for status, count in frame["status"].value_counts().items()}
    for name in ("target_error", "other_error", "forgetting"):
        if len(sound):
            found[f"mean_{name}"] = float(sound[name].mean())
    return found
