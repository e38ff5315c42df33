"""Run the jobs of a launch as ordinary Hydra jobs, each as soon as its pack has put its result into the store."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from hydra import version
from hydra.core import utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper

from lora_exp.config.compose import is_run_config, without_hydra
from lora_exp.config.settings import Settings
from lora_exp.config.spec import RunSpec
from lora_exp.storage.result import RunResult
from lora_exp.sweeps.job import diverged, finished_run, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs

log = logging.getLogger(__name__)


def launch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> list[JobReturn]:
    """Run every job and return what each returned, in the order of `job_overrides`.

    The results of all jobs are trained in packs. When a pack is done its jobs run: each finds its result in the store
    and records it in its own folder. A job whose pack failed runs too, and trains alone.
    """
    utils.setup_globals()
    utils.configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    configs = JobConfigs(context.config_loader, config)
    returns: dict[int, JobReturn] = {}
    order: Iterable[int] = range(len(job_overrides))
    if is_run := is_run_config(config) and len(job_overrides) > 0:
        specs, settings = zip(*(configs.read(overrides) for overrides in job_overrides), strict=True)
        for at, spec in enumerate(specs):
            folder = Path(str(config.hydra.sweep.dir)) / str(initial_job_idx + at)
            if folder.is_dir() and (result := finished_run(folder, spec)) is not None:
                returns[at] = _return_of(result, job_overrides[at])
        order = _as_trained(specs, settings[0], set(returns))
    for at in order:
        number = initial_job_idx + at
        log.debug("job %d: %s", number, " ".join(utils.filter_overrides(job_overrides[at])))
        # The configs of a thousand jobs would fill memory, so those of runs are not kept.
        returns[at] = run_in_folder(context, task, configs.compose(job_overrides[at], number), keeps_config=not is_run)
        utils.configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return [returns[at] for at in range(len(job_overrides))]


def _as_trained(specs: Sequence[RunSpec], settings: Settings, finished: Container[int]) -> Iterator[int]:
    """Train the jobs that are not finished; yield their positions as their results are ready."""
    jobs: dict[RunSpec, list[int]] = {}
    for at, spec in enumerate(specs):
        # Halving compares the other jobs with the finished ones too.
        if at not in finished or settings.halving.eta is not None:
            jobs.setdefault(spec, []).append(at)
    for spec, _ in open_laboratory(settings).run(list(jobs)):
        yield from (at for at in jobs[spec] if at not in finished)


def _return_of(result: RunResult, overrides: Sequence[str]) -> JobReturn:
    """What a job returned that an earlier, interrupted launch finished."""
    job = JobReturn(overrides=overrides, working_dir=str(Path.cwd()))
    job.status = JobStatus.FAILED if result.diverged else JobStatus.COMPLETED
    job.return_value = diverged(result) if result.diverged else result.outcome.target_error
    return job


def run_in_folder(
    context: HydraContext, task: TaskFunction, config: DictConfig, keeps_config: bool = True
) -> JobReturn:
    """Run `task` on the application's part of `config` in the folder `hydra.sweep.dir/hydra.sweep.subdir`.

    The contract of `hydra.core.utils.run_job`, in a fraction of the time: that one copies the whole config three times,
    and writes YAML in pure Python. Unless the returned job `keeps_config`, the task gets `config` itself, with its
    `hydra` node, and nothing is copied. An exception of the task is kept in the returned job, and raised when its
    `return_value` is read.
    """
    hydra = HydraConfig.instance()
    others, working_folder = hydra.cfg, Path.cwd()
    job = JobReturn()
    try:
        if keeps_config:
            hydra.set_config(config)  # folder names may refer to it
        else:
            OmegaConf.set_readonly(config.hydra, True)
            hydra.cfg = config  # type: ignore[assignment]
        folder = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()
        own_hydra = hydra.cfg
        assert isinstance(own_hydra, DictConfig)
        for known in (config, own_hydra):
            with read_write(known.hydra.runtime), open_dict(known.hydra.runtime):
                known.hydra.runtime.output_dir = str(folder)
        if keeps_config:
            job.cfg, job.hydra_cfg = without_hydra(config), own_hydra
        job.overrides = [str(override) for override in config.hydra.overrides.task]
        folder.mkdir(parents=True, exist_ok=True)
        chdir = config.hydra.job.chdir
        if (not version.base_at_least("1.2")) if chdir is None else chdir:  # Hydra changed folder before 1.2
            os.chdir(folder)
        job.working_dir = str(Path.cwd())
        utils.configure_log(config.hydra.job_logging, config.hydra.verbose)
        if config.hydra.output_subdir is not None:
            _save_config(config, folder / str(config.hydra.output_subdir))
        with utils.env_override(config.hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=task)
            try:
                job.return_value = task(job.cfg if keeps_config else config)
                job.status = JobStatus.COMPLETED
            except Exception as error:
                job.return_value = error
                job.status = JobStatus.FAILED
        job.task_name = utils.JobRuntime.instance().get("name")
        for handler in logging.getLogger().handlers:
            handler.flush()
        context.callbacks.on_job_end(config=config, job_return=job)
        return job
    finally:
        hydra.cfg = others
        os.chdir(working_folder)


def _save_config(config: DictConfig, folder: Path) -> None:
    """Write `config.yaml`, `hydra.yaml` and `overrides.yaml` into the folder `.hydra`, as Hydra does."""
    whole = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(whole, dict)
    own = {key: value for key, value in whole.items() if key != "hydra"}
    parts = {"config": own, "hydra": {"hydra": whole["hydra"]}, "overrides": whole["hydra"]["overrides"]["task"]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        text = yaml.dump(part, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=_Dumper)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


class _Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """What `OmegaConf.to_yaml` writes, six times as fast where PyYAML has its parser in C."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)
