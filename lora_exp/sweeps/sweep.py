"""A sweep: check its jobs, run them in its folder with an MLflow parent run around them, and write its report."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.compose import is_run_config, one_line_errors, presets_of
from lora_exp.config.spec import RunSpec
from lora_exp.contest.protocol import Protocol, state
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.storage.pruning import kept_within
from lora_exp.storage.sweep_file import (
    SWEEP,
    alone_in,
    begin_sweep,
    check_report_place,
    end_sweep,
    read_about,
    write_whole,
)
from lora_exp.sweeps.job import check, open_laboratory
from lora_exp.sweeps.job_configs import job_configs
from lora_exp.sweeps.recording import recording

if TYPE_CHECKING:
    from lora_exp.config.settings import Settings

MAX_JOBS = 100_000  # a job takes 0.13 MiB of the launching process (docs/scaling.md)


def sweep(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Run a grid: every combination of the values in `given` is a job.

    Raises LoraExpError, before anything is computed, when one of the jobs is not valid, and JobsFailed at the end
    when jobs failed.
    """
    with one_line_errors(HydraException):
        overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
        _check_number(overrides)
        [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    if not is_run_config(config):
        return launcher.launch(jobs, initial_job_idx=0)
    specs, settings = read_jobs(context, config, jobs)
    if settings.sweep.plan:
        from lora_exp.sweeps.plan import plan_text

        print(plan_text(open_laboratory(settings), specs))
        return []
    with open_sweep(config, jobs, specs[0], settings):
        returns = launcher.launch(jobs, initial_job_idx=0)
    raise_failed(returns)
    return returns


def _check_number(overrides: Sequence[Override]) -> None:
    """Raise LoraExpError for more jobs than a sweep can have, before they are listed."""
    numbers = {}
    for override in overrides:
        values: Any = override.value() if override.is_sweep_override() else None
        if isinstance(values, RangeSweep):
            start, stop, step = (float(one or 0) for one in (values.start, values.stop, values.step or 1))
            numbers[override.input_line] = max(0.0, (stop - start) / step)
        elif isinstance(values, ChoiceSweep):
            numbers[override.input_line] = float(len(values.list))
    if (jobs := math.prod(numbers.values())) > MAX_JOBS:
        largest = max(numbers, key=lambda line: numbers[line])
        raise LoraExpError(f"{largest}: gives {jobs:,.0f} jobs, and a sweep can have {MAX_JOBS:,}; run several sweeps")


def read_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], numbered: bool = True
) -> tuple[list[RunSpec], Settings]:
    """Compose and check every job; return their specs and the settings of the first, which are those of the sweep.

    Raises LoraExpError for the first job that is not valid; the line holds its number if `numbered`.
    """
    configs = job_configs(context.config_loader, config)
    found: list[tuple[RunSpec, Settings]] = []
    for number, overrides in enumerate(jobs):
        try:
            found.append(configs.read(overrides))
        except LoraExpError as error:
            job = f" (job {number} of the sweep)" if numbered and len(jobs) > 1 else ""
            raise LoraExpError(f"{error}{job}") from error
    if not found:
        raise LoraExpError("the sweep has no jobs: a swept key has no values")
    specs, settings = [spec for spec, _ in found], found[0][1]
    check(specs, settings)
    return specs, settings


@contextlib.contextmanager
def open_sweep(
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: RunSpec,
    settings: Settings,
    search: Mapping[str, Any] | None = None,
    contest: Protocol | None = None,
) -> Iterator[None]:
    """A block in which a sweep runs in its folder; its report is written when the block ends.

    `jobs` are the overrides of each job. A search and a contest add their jobs later; a search describes itself in
    `search`, and the protocol of a contest is stated in the folder. After an interrupt no report is written, so that
    the process ends at once; the command to resume is printed instead. Raises LoraExpError when the folder holds
    another sweep, when another process works on it, or when the report can't be written where it should be.
    """
    folder = Path(str(config.hydra.sweep.dir))
    if Path.cwd().is_relative_to(folder.resolve()):
        raise LoraExpError(f"hydra.sweep.dir={folder}: must be a folder of its own, such as runs/mine")
    name = "-".join(folder.parts[-2:]) if len(folder.parts) > 1 else folder.name  # by default its date and time
    check_report_place(settings.report.place(name))
    with alone_in(folder), kept_within(open_laboratory(settings).store, settings.store.limit):
        write_whole(folder / "multirun.yaml", OmegaConf.to_yaml(config).encode())
        is_resumed = (folder / SWEEP).exists()
        begin_sweep(folder, name, jobs, search, presets_of(config.hydra), None if contest is None else contest.sha256)
        if contest is not None:
            state(contest, folder)
        recording().begin(folder, is_resumed)
        try:
            yield
        except KeyboardInterrupt:
            end_sweep(folder, "KILLED", None)
            recording().close(folder)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"to resume: {shlex.join(['lora-exp', 'resume', str(folder.absolute())])}", file=sys.stderr)
            raise
        except BaseException:
            _report(folder, first, settings, "FAILED")
            raise
        _report(folder, first, settings, "FINISHED")


def raise_failed(returns: Sequence[JobReturn]) -> None:
    """Raise JobsFailed, with the reason of the first failure, when jobs failed."""
    reasons = [str(r._return_value) for r in returns if r.status is not JobStatus.COMPLETED]
    if reasons:
        raise JobsFailed(f"{len(reasons)} of {len(returns)} jobs failed; the first: {reasons[0]}")


def _report(folder: Path, first: RunSpec, settings: Settings, status: str) -> None:
    """Have the report written and the MLflow parent run closed; print the table and where everything is."""
    about, out = read_about(folder), None
    if about["jobs"]:  # else a search that failed before its first job
        out = settings.report.place(about["name"])
        text = recording().report(folder, out, settings.report.claim, first.data, settings.data)
        print(text, end="", flush=True)
    end_sweep(folder, status, out)
    print(recording().complete(folder), end="", flush=True)
