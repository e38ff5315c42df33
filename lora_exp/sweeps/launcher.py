"""Run the jobs of a launch, each as soon as its pack has put its result into the store, in folders as Hydra makes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core import utils
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lora_exp.config.compose import is_run_config, presets_of
from lora_exp.config.settings import Settings
from lora_exp.config.spec import RunSpec
from lora_exp.storage.sweep_file import write_whole
from lora_exp.sweeps.job import Job, finish, finished_run, open_laboratory, returned
from lora_exp.sweeps.job_configs import job_configs

if TYPE_CHECKING:
    from lora_exp.storage.sweep_file import Failure, Stopped
    from lora_exp.training.executor import Files

log = logging.getLogger(__name__)


def launch(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> Sequence[JobReturn]:
    """Run every job and return what each returned, in the order of `job_overrides`.

    The results of all jobs are trained in packs. When a pack is done, the folders of its jobs are written: as Hydra
    would if it ran `task` for each, but what jobs share is done once. Other applications have nothing to pack: Hydra's
    own launcher runs their jobs.
    """
    if not is_run_config(config):
        basic = BasicLauncher()
        basic.setup(hydra_context=context, task_function=task, config=config)
        of_hydra: Sequence[JobReturn] = basic.launch(job_overrides, initial_job_idx)
        return of_hydra
    utils.configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    sweep = Path(str(config.hydra.sweep.dir))
    sweep.mkdir(parents=True, exist_ok=True)
    configs, logs, presets = job_configs(context.config_loader, config), Logs(config), presets_of(config.hydra)
    jobs = [configs.read(overrides) for overrides in job_overrides]
    folders = [sweep.absolute() / str(initial_job_idx + at) for at in range(len(jobs))]
    returns: dict[int, JobReturn] = {}
    for at, (spec, _) in enumerate(jobs):
        result = finished_run(folders[at], spec) if folders[at].is_dir() else None
        if result is not None:  # of an earlier launch, which was interrupted
            with _returning(job_overrides[at]) as returns[at]:
                returns[at].return_value = returned(result)
    for at, made in _made(jobs, finished=set(returns)):
        (spec, settings), folder, overrides = jobs[at], folders[at], configs.task(job_overrides[at])
        log.debug("job %s: %s", folder.name, " ".join(overrides))
        saved = configs.saved(job_overrides[at], initial_job_idx + at, folder)
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, text in saved.items():
            write_whole(folder / ".hydra" / name, text.encode())
        with logs.in_folder(folder), _returning(overrides) as returns[at]:
            job = Job(spec, folder, sweep, [*presets, *overrides], saved["config.yaml"])
            returns[at].return_value = finish(job, settings, made)
    return [returns[at] for at in range(len(jobs))]


def _made(
    jobs: Sequence[tuple[RunSpec, Settings]], finished: set[int]
) -> Iterator[tuple[int, Files | Failure | Stopped]]:
    """Train the jobs that are not finished; yield their positions and what was made of them, as soon as it is there."""
    for settings in dict.fromkeys(settings for _, settings in jobs):
        asked: dict[RunSpec, list[int]] = {}
        for at, (spec, own) in enumerate(jobs):
            # Halving compares the other jobs with the finished ones too.
            if own == settings and (at not in finished or settings.halving.eta is not None):
                asked.setdefault(spec, []).append(at)
        for spec, made in open_laboratory(settings).run(list(asked)):
            yield from ((at, made) for at in asked[spec] if at not in finished)


@contextlib.contextmanager
def _returning(overrides: Sequence[str]) -> Iterator[JobReturn]:
    """A block that sets the `return_value` of a job; an exception becomes what the failed job returned."""
    job = JobReturn(overrides=overrides, working_dir=str(Path.cwd()))
    try:
        yield job
        job.status = JobStatus.COMPLETED
    except Exception as error:
        job.return_value, job.status = error, JobStatus.FAILED


class Logs:
    """The logs of jobs: what `hydra.job_logging` says goes to a file in each job's folder.

    The terminal has a line for each pack. With `hydra.verbose` it has those of the jobs too.
    """

    def __init__(self, config: DictConfig) -> None:
        """Read them from the config of the sweep."""
        own: Any = OmegaConf.to_container(config.hydra.job_logging)
        self._level = (own["root"] or {}).get("level")
        self._formatter = None
        if "file" in own.get("handlers", ()):
            how = own["formatters"][own["handlers"]["file"]["formatter"]]
            self._formatter = logging.Formatter(how["format"], how.get("datefmt"))
        self._name = f"{config.hydra.job.name}.log"
        self._is_verbose = bool(config.hydra.verbose)

    @contextlib.contextmanager
    def in_folder(self, folder: Path) -> Iterator[None]:
        """A block whose log is that of the job in `folder`."""
        with contextlib.ExitStack() as after:
            if not self._is_verbose:
                if self._level is not None:
                    after.callback(logging.root.setLevel, logging.root.level)
                    logging.root.setLevel(self._level)
                for handler in logging.root.handlers:
                    after.callback(handler.setLevel, handler.level)
                    handler.setLevel(max(handler.level, logging.WARNING))
            if self._formatter is not None:
                file = logging.FileHandler(folder / self._name, encoding="utf-8")
                file.setFormatter(self._formatter)
                logging.root.addHandler(file)
                after.callback(file.close)
                after.callback(logging.root.removeHandler, file)
            yield
