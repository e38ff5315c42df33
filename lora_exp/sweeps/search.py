"""`hydra/sweeper=optuna`: a batch of trials is asked for, launched as ordinary jobs, and told; then the next.

Whatever launcher and executor the config names do the work. What came of a job is read from its folder, so that it does
not matter which process ran it.
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

from lora_exp.config.compose import read, refusing
from lora_exp.config.fields import CLASSES
from lora_exp.config.spec import DataSpec
from lora_exp.errors import LoraExpError
from lora_exp.storage.sweep_file import SWEEP, note, read_about
from lora_exp.sweeps.job import finished_run, open_laboratory
from lora_exp.sweeps.job_configs import JobConfigs
from lora_exp.sweeps.samplers import check_sampler
from lora_exp.sweeps.search_space import space_of
from lora_exp.sweeps.study import STUDY, Study, alone
from lora_exp.sweeps.sweep import checked, conducted, raise_failed
from lora_exp.training.packing import FULL_PACK

if TYPE_CHECKING:
    from lora_exp.config.settings import SearchSettings
    from lora_exp.training.laboratory import Laboratory

PACKAGES = ("optuna", "cmaes")  # of the extra `search`
SHARE = 5  # batches at least, unless `search.batch` says otherwise: nothing is learned within one


def search(context: HydraContext, config: DictConfig, launcher: Launcher, given: list[str]) -> Sequence[JobReturn]:
    """Search the space in `given` as the config's `search` says, and report whatever came of it.

    Raises LoraExpError, before anything is computed, for what can't be searched or not so, and JobsFailed at the end
    when jobs failed.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise LoraExpError(f"hydra/sweeper=optuna: needs {' and '.join(missing)}; pip install 'lora-exp[search]'")
    with refusing():
        overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides(given)
    # How to search is no part of a job, and a search may go on with more trials.
    how = [one for one in overrides if one.key_or_group.startswith("search.") and not one.is_sweep_override()]
    space = space_of([one for one in overrides if one not in how])
    probes, configs = space.probes(), JobConfigs(context.config_loader, config)
    specs, settings = checked(context, config, probes, numbered=False)
    chosen = read(configs.own([*probes[0], *(one.input_line or "" for one in how)]))[1].search
    check_sampler(chosen, space)
    laboratory = open_laboratory(settings)
    _check_validation(laboratory, specs[0].data)
    chosen = _counted(chosen, space.size, laboratory.threads, Path(str(config.hydra.sweep.dir)))
    if settings.sweep.plan:
        from lora_exp.sweeps.plan import plan_text

        first = Study(None, space, chosen)
        for _ in range(_end_of_batch(0, chosen)):
            first.ask()
        print(f"a search of {chosen.trials} trials by {chosen.sampler}, {chosen.batch} at a time; the first of them:")
        print(plan_text(laboratory, checked(context, config, first.jobs())[0]))
        return []
    told = dataclasses.asdict(chosen) | {"objectives": list(chosen.objectives)} | space.told()
    with alone(Path(str(config.hydra.sweep.dir))), conducted(config, [], specs[0], settings, told) as folder:
        chosen = dataclasses.replace(chosen, trials=read_about(folder)["search"]["trials"])
        study = Study(folder / STUDY, space, chosen)
        returns = _run(study, chosen, launcher, configs, folder)
    raise_failed(returns)
    return returns


def _run(
    study: Study, chosen: SearchSettings, launcher: Launcher, configs: JobConfigs, folder: Path
) -> list[JobReturn]:
    """Ask, launch and tell until all trials have been; what each job returned.

    Raises LoraExpError when the study is not of the jobs in the folder.
    """
    jobs, recorded = study.jobs(), read_about(folder)["jobs"]
    if any(one != other for one, other in zip(jobs, recorded, strict=False)) or len(jobs) < min(
        len(recorded), chosen.trials
    ):
        raise LoraExpError(f"{folder}: holds jobs that its search has not asked for; choose another folder")
    # Of an earlier process: what is finished is not computed again, what failed is tried again.
    done = study.told()
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


def _tell(study: Study, jobs: range, chosen: SearchSettings, configs: JobConfigs, folder: Path) -> None:
    """Tell the study what lies in the folders of these jobs, of which it has no numbers yet."""
    overrides = study.jobs()
    for job in jobs:
        if study.is_sound(job):
            continue
        result = finished_run(folder / str(job), read(configs.own(overrides[job]))[0])
        is_sound = result is not None and not result.diverged
        study.tell(job, result.objectives(chosen.objectives) if result is not None and is_sound else None)


def _end_of_batch(done: int, chosen: SearchSettings) -> int:
    """The job after the last of the batch that begins with job `done`, or goes on with it."""
    assert chosen.batch is not None
    return min(chosen.trials, (done // chosen.batch + 1) * chosen.batch)


def _counted(chosen: SearchSettings, size: int | None, threads: int, folder: Path) -> SearchSettings:
    """With the number of trials that there can be, and with a batch: that of before in a folder that has one."""
    trials = min(chosen.trials, size or chosen.trials) if chosen.sampler == "grid" else chosen.trials
    batch = chosen.batch
    if batch is None and (folder / SWEEP).is_file():
        batch = read_about(folder).get("search", {}).get("batch")
    if batch is None:
        batch = min(FULL_PACK * threads, -(-trials // SHARE))
    return dataclasses.replace(chosen, trials=trials, batch=batch)


def _check_validation(laboratory: Laboratory, data: DataSpec) -> None:
    """Raise LoraExpError when there are no validation images of some class to compare errors on."""
    held = laboratory.data(data).validation
    if held is None or len(set(held.labels.tolist())) < CLASSES:
        raise LoraExpError(
            f"data.validation={data.validation}: must be enough for images of all classes, such as 5000, since a "
            "search compares errors on validation images, never on the test set"
        )
