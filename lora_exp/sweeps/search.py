"""`hydra/sweeper=optuna`: sample a batch of trials, launch them as ordinary jobs, tell the study; then the next batch.

The launcher and the executor of the config do the work. A trial's objectives are read from the job's folder, so it does
not matter which process ran the job.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from lora_exp.config.compose import one_line_errors
from lora_exp.config.spec import DataSpec
from lora_exp.errors import LoraExpError, installing
from lora_exp.storage.sweep_file import SWEEP, note, read_about
from lora_exp.sweeps.job import finished_run, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs, job_configs
from lora_exp.sweeps.samplers import check_sampler
from lora_exp.sweeps.search_space import Space, parse_space
from lora_exp.sweeps.study import STUDY, Study
from lora_exp.sweeps.sweep import open_sweep, raise_failed, read_jobs
from lora_exp.training.packing import FULL_PACK

if TYPE_CHECKING:
    from lora_exp.config.settings import SearchSettings
    from lora_exp.training.laboratory import Laboratory

PACKAGES = ("optuna", "cmaes")  # of the extra `search`
MIN_BATCHES = 5  # unless `search.batch` says otherwise: a sampler learns nothing within a batch


def search(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Search the space of the overrides in `given` as the config group `search` says, and report the result.

    Raises LoraExpError, before anything is computed, for a space, a sampler or a job that is not valid, and JobsFailed
    at the end when jobs failed.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise LoraExpError(f"hydra/sweeper=optuna: needs {' and '.join(missing)}; {installing('search')}")
    with one_line_errors():
        overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    # Overrides of `search` are kept out of the jobs, so that a search can be continued with more trials.
    own = [one for one in overrides if one.key_or_group.startswith("search.") and not one.is_sweep_override()]
    space = parse_space([one for one in overrides if one not in own])
    probes, configs = space.probes(), job_configs(context.config_loader, config)
    specs, settings = read_jobs(context, config, probes, numbered=False)
    chosen = configs.read([*probes[0], *(one.input_line or "" for one in own)])[1].search
    check_sampler(chosen, space)
    laboratory = open_laboratory(settings)
    check_validation(laboratory, specs[0].data, "a search")
    folder = Path(str(config.hydra.sweep.dir))
    chosen = _resolved(chosen, space, laboratory.threads, folder)
    if settings.sweep.plan:
        from lora_exp.sweeps.plan import plan_text

        first = Study(None, space, chosen)
        for _ in range(_end_of_batch(0, chosen)):
            first.ask()
        print(f"a search of {chosen.trials} trials by {chosen.sampler}, {chosen.batch} at a time; the first batch:")
        print(plan_text(laboratory, read_jobs(context, config, first.jobs())[0]))
        return []
    about = dataclasses.asdict(chosen) | {"objectives": list(chosen.objectives)} | space.to_dict()
    with open_sweep(config, [], specs[0], settings, about):
        chosen = dataclasses.replace(chosen, trials=read_about(folder)["search"]["trials"])
        returns = _run(Study(folder / STUDY, space, chosen), chosen, launcher, configs, folder)
    raise_failed(returns)
    return returns


def _run(
    study: Study, chosen: SearchSettings, launcher: Launcher, configs: JobConfigs, folder: Path
) -> list[JobReturn]:
    """Ask, launch and tell, batch by batch, until the study has all trials; return what each job returned.

    Raises LoraExpError when the jobs in the folder are not those of the study.
    """
    jobs, recorded = study.jobs(), read_about(folder)["jobs"]
    if jobs[: len(recorded)] != recorded[: len(jobs)] or len(jobs) < min(len(recorded), chosen.trials):
        raise LoraExpError(f"{folder}: holds jobs that are not in its {STUDY}; choose another folder")
    # Of an earlier process: finished jobs are not computed again, failed ones are tried again.
    done = study.finished()
    returns = list(launcher.launch(jobs[:done], initial_job_idx=0)) if done else []
    _tell(study, range(done), chosen, configs, folder)
    while done < chosen.trials:
        end = _end_of_batch(done, chosen)
        while len(study.jobs()) < end:
            study.ask()
        jobs = study.jobs()
        note(folder, jobs=jobs)
        returns += launcher.launch(jobs[done:end], initial_job_idx=done)
        _tell(study, range(done, end), chosen, configs, folder)
        done = end
    return returns


def _tell(study: Study, numbers: range, chosen: SearchSettings, configs: JobConfigs, folder: Path) -> None:
    """Tell the study the results in the folders of these jobs, unless it has their objectives already."""
    jobs = study.jobs()
    for number in numbers:
        if not study.has_values(number):
            result = finished_run(folder / str(number), configs.read(jobs[number])[0])
            values = None if result is None or result.diverged else result.objectives(chosen.objectives)
            study.tell(number, values)


def _end_of_batch(done: int, chosen: SearchSettings) -> int:
    """The number after the last job of the batch that job `done` is in."""
    assert chosen.batch is not None
    return min(chosen.trials, (done // chosen.batch + 1) * chosen.batch)


def _resolved(chosen: SearchSettings, space: Space, threads: int, folder: Path) -> SearchSettings:
    """The settings with a batch size, which is the earlier one in a folder that has one; a grid ends with its space."""
    batch, trials = chosen.batch, chosen.trials
    if chosen.sampler == "grid":
        trials = min(trials, space.size or trials)
    if batch is None and (folder / SWEEP).is_file():
        batch = read_about(folder).get("search", {}).get("batch")
    if batch is None:
        batch = min(FULL_PACK * threads, -(-trials // MIN_BATCHES))
    return dataclasses.replace(chosen, trials=trials, batch=batch)


def check_validation(laboratory: Laboratory, data: DataSpec, what: str) -> None:
    """Raise LoraExpError when a class has no validation images, on which a search, or a contest, compares errors."""
    held = laboratory.data(data).validation
    if held is None or len(set(held.labels.tolist())) < len(held.images.facts.classes):
        reason = f"since {what} compares errors on validation images, never on the test set"
        raise LoraExpError(
            f"data.validation={data.validation}: must be enough for images of all classes, such as 5000, {reason}"
        )
