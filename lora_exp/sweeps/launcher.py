"""What the packed launcher does: ordinary Hydra jobs, run as soon as their pack has filled the result store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lora_exp.config.compose import is_experiment, read
from lora_exp.config.spec import RunSpec
from lora_exp.sweeps.job import diverged, finished_run, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs
from lora_exp.sweeps.job_run import run_job

log = logging.getLogger(__name__)


def launch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> list[JobReturn]:
    """Run every job and return what each returned, in the order of `job_overrides`.

    The results of all jobs are trained in packs; whenever a pack is done its jobs run: each finds its result
    in the store and records it in its own folder. A job whose pack failed runs too, and so tries alone.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    configs = JobConfigs(context.config_loader, config)
    returns = _finished(config, configs, job_overrides, initial_job_idx)
    for at in _in_order_of_results(config, configs, job_overrides, set(returns)):
        number = initial_job_idx + at
        log.debug("job %d: %s", number, " ".join(filter_overrides(job_overrides[at])))
        returns[at] = run_job(context, task, configs.compose(job_overrides[at], number))
        if is_experiment(config):  # nobody reads a job's config again, and a thousand of them fill memory
            returns[at].cfg = returns[at].hydra_cfg = None
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return [returns[at] for at in range(len(job_overrides))]


def _in_order_of_results(
    config: DictConfig, configs: JobConfigs, job_overrides: Sequence[Sequence[str]], finished: set[int]
) -> Iterator[int]:
    """Positions of the jobs as their results come in; in the given order for other Hydra applications."""
    if not is_experiment(config) or not job_overrides:
        yield from range(len(job_overrides))
        return
    jobs: dict[RunSpec, list[int]] = {}
    for at, overrides in enumerate(job_overrides):
        spec, settings = read(configs.own(overrides))
        # With halving, jobs that are finished are rivals of the others all the same.
        if at not in finished or settings.halving.eta is not None:
            jobs.setdefault(spec, []).append(at)
    for spec, _ in open_laboratory(settings).run(list(jobs)):
        yield from (at for at in jobs[spec] if at not in finished)


def _finished(
    config: DictConfig, configs: JobConfigs, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> dict[int, JobReturn]:
    """What the jobs returned that an earlier, interrupted launch finished in this folder."""
    returns: dict[int, JobReturn] = {}
    for at, overrides in enumerate(job_overrides) if is_experiment(config) else ():
        folder = Path(str(config.hydra.sweep.dir)) / str(initial_job_idx + at)
        result = finished_run(folder, read(configs.own(overrides))[0]) if folder.is_dir() else None
        if result is not None:
            returns[at] = JobReturn(overrides=overrides, working_dir=str(Path.cwd()))
            returns[at].status = JobStatus.FAILED if result.diverged else JobStatus.COMPLETED
            returns[at].return_value = diverged(result) if result.diverged else result.outcome.target_error
    return returns
