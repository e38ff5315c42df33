"""A sweep: every combination checked before anything runs, one MLflow parent, and a report at the end."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lora_exp.composition import JobConfigs
from lora_exp.config import is_experiment, read, refusing
from lora_exp.job import JobsFailed, check, open_delivery, open_laboratory
from lora_exp.spec import RunSpec, SpecError
from lora_exp.store_keeping import kept_within
from lora_exp.sweep_files import SWEEP, begin_sweep, check_report_place, end_sweep

if TYPE_CHECKING:
    from lora_exp.settings import Settings


def sweep(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Launch every combination of the values in `given`, and report whatever came of it.

    Raises SpecError, before anything is computed, when one of the jobs is not valid, and JobsFailed at the end
    when jobs failed.
    """
    with refusing(HydraException):
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
    check_report_place(_report_place(settings, _sweep_name(folder)))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    store = open_laboratory(settings).store
    with kept_within(store, settings.store.limit), _recorded(folder, jobs, specs[0], settings):
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
def _recorded(folder: Path, jobs: list[list[str]], first: RunSpec, settings: Settings) -> Iterator[None]:
    """A parent run while the sweep runs; the report, the table and the paths when it ends.

    A sweep that is interrupted gets no report, so that it ends at once, but the command that goes on with it.
    """
    delivery, is_resumed = open_delivery(settings), (folder / SWEEP).exists()
    begin_sweep(folder, _sweep_name(folder), jobs)
    if is_resumed:
        delivery.reopen_parent(folder)
    delivery.open_parent(folder)
    status = "FINISHED"
    try:
        yield
    except KeyboardInterrupt:
        end_sweep(folder, "KILLED", None)
        delivery.close_parent(folder)
        print(f"to go on: {shlex.join(['lora-exp', 'resume', str(folder.absolute())])}", file=sys.stderr)
        raise
    except Exception:
        status = "FAILED"
        raise
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            _report(folder, first, settings, status)


def _report(folder: Path, first: RunSpec, settings: Settings, status: str) -> None:
    """Write the report, close the parent run, and tell a terminal what came of the sweep."""
    from lora_exp import report
    from lora_exp.sweep import read_sweep
    from lora_exp.terminal import print_next, print_sweep

    done, delivery = read_sweep(folder), open_delivery(settings)
    claim = report.judged_claim(done, settings.report.claim)
    out = _report_place(settings, done.name)
    pictures, labels = open_laboratory(settings).test_pictures(first)
    report.write_report(done, out, pictures, labels, claim)
    end_sweep(folder, status, out)
    missing = delivery.deliver_all([Path(place) for place in done.frame["folder"]], delivery.open_parent(folder))
    print_sweep(done.frame)
    print(report.verdict(done.frame))
    if claim is not None:
        print(claim.sentence)
    print(f"report   {out / 'report.html'}\nruns     {folder.absolute()}")
    print_next(done)
    if missing or not delivery.close_parent(folder):
        command = shlex.join(["lora-exp", "sync", str(folder.absolute())])
        print(f"not all of it is in MLflow yet; when that is back: {command}")


def _sweep_name(folder: Path) -> str:
    """What a sweep is called: its date and time, say."""
    return "-".join(folder.parts[-2:]) if len(folder.parts) > 1 else folder.name


def _report_place(settings: Settings, name: str) -> Path:
    return Path(settings.report.folder).absolute() / (settings.report.name or name)
