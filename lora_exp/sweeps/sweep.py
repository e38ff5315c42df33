"""What every sweep does around its jobs: they are checked, MLflow gets a parent run, and a report comes at the end."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.compose import read
from lora_exp.config.spec import RunSpec
from lora_exp.errors import JobsFailed, LoraExpError
from lora_exp.storage.pruning import kept_within
from lora_exp.storage.sweep_file import SWEEP, begin_sweep, check_report_place, end_sweep, read_about
from lora_exp.sweeps.job import check, open_delivery, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs

if TYPE_CHECKING:
    from lora_exp.config.settings import Settings


def checked(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], numbered: bool = True
) -> tuple[list[RunSpec], Settings]:
    """Compose and check every job; their specs, and the settings of the first, which are those of the sweep.

    Raises LoraExpError, of one line, with the job's number where they are `numbered`.
    """
    configs = JobConfigs(context.config_loader, config)
    found: list[tuple[RunSpec, Settings]] = []
    for number, overrides in enumerate(jobs):
        try:
            found.append(read(configs.own(overrides)))
        except LoraExpError as error:
            raise LoraExpError(
                f"{error} (job {number} of the sweep)" if numbered and len(jobs) > 1 else str(error)
            ) from error
    if not found:
        raise LoraExpError("the sweep has no jobs: a swept key has no values")
    specs = [spec for spec, _ in found]
    check(specs, found[0][1])
    return specs, found[0][1]


@contextlib.contextmanager
def conducted(
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: RunSpec,
    settings: Settings,
    search: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """A block in which a sweep runs, in the folder that is given to it; what comes of it is reported when it ends.

    `jobs` are those known when it begins; a search, of which `search` tells how it searches, finds its jobs as it
    goes. A sweep that is interrupted gets no report, so that it ends at once, but the command that goes on with it.
    Raises LoraExpError when the folder holds another sweep, or the report has no place.
    """
    folder = Path(str(config.hydra.sweep.dir))
    name = "-".join(folder.parts[-2:]) if len(folder.parts) > 1 else folder.name  # its date and time, say
    check_report_place(settings.report.place(name))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    with kept_within(open_laboratory(settings).store, settings.store.limit):
        delivery, is_resumed = open_delivery(settings), (folder / SWEEP).exists()
        begin_sweep(folder, name, jobs, search)
        if is_resumed:
            delivery.reopen_parent(folder)
        delivery.open_parent(folder)
        status = "FINISHED"
        try:
            yield folder
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


def raise_failed(returns: Sequence[JobReturn]) -> None:
    """Raise JobsFailed, with the reason of the first, when jobs failed."""
    reasons = [str(r._return_value) for r in returns if r.status is not JobStatus.COMPLETED]
    if reasons:
        raise JobsFailed(f"{len(reasons)} of {len(returns)} jobs failed; the first: {reasons[0]}")


def _report(folder: Path, first: RunSpec, settings: Settings, status: str) -> None:
    """Write the report, close the parent run, and tell a terminal what came of the sweep."""
    from lora_exp.report import write as report
    from lora_exp.report.search_section import search_verdict
    from lora_exp.report.terminal import print_next, print_sweep
    from lora_exp.storage.sweep_folder import read_sweep

    delivery = open_delivery(settings)
    if not read_about(folder)["jobs"]:  # a search that could not begin
        end_sweep(folder, status, None)
        delivery.close_parent(folder)
        return
    done = read_sweep(folder)
    claim = report.judged_claim(done, settings.report.claim)
    out = settings.report.place(done.name)
    pictures, labels = open_laboratory(settings).test_pictures(first)
    report.write_report(done, out, pictures, labels, claim)
    end_sweep(folder, status, out)
    missing = delivery.deliver_all([Path(place) for place in done.frame["folder"]], delivery.open_parent(folder))
    print_sweep(done.frame)
    print(report.verdict(done.frame))
    if claim is not None:
        print(claim.sentence)
    if done.search is not None:
        print(search_verdict(done, done.search))
    print(f"report   {out / 'report.html'}\nruns     {folder.absolute()}")
    print_next(done)
    if missing or not delivery.close_parent(folder):
        command = shlex.join(["lora-exp", "sync", str(folder.absolute())])
        print(f"not all of it is in MLflow yet; when that is back: {command}")
