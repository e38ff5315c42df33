"""The Optuna study of a search: `study.db` in the sweep's folder, from which an interrupted search is resumed.

A trial is added in one write, with the number of its job, before `sweep.json` lists the job and before it runs. Its
values come from the result in the job's folder. Samplers work on a copy in memory, so no crash leaves half a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.config.settings import SearchSettings
from lora_exp.errors import LoraExpError
from lora_exp.sweeps.samplers import optuna_sampler, suggest
from lora_exp.sweeps.search_space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STUDY = "study.db"
JOB = "job"  # the user attribute of a trial that holds its job number


class Study:
    """The trials of one search, by job number; ask and tell as in Optuna."""

    def __init__(self, file: Path | None, space: Space, settings: SearchSettings) -> None:
        """Open or create the study in `file`; None keeps it in memory only.

        Raises LoraExpError when the file can't be read or is the study of another search.
        """
        import optuna
        from optuna.storages import RDBStorage
        from sqlalchemy import URL
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._settings = space, settings
        self._distributions = {dimension.key: dimension.distribution() for dimension in space.dimensions}
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(settings.objectives)
        self._memory = optuna.create_study(directions=directions)
        self._studies = [self._memory]
        if file is None:
            return
        try:
            storage = RDBStorage(URL.create("sqlite", database=str(file)).render_as_string())
            kept = optuna.create_study(storage=storage, study_name="search", directions=directions, load_if_exists=True)
            self._memory.add_trials(kept.get_trials())
            self._studies.insert(0, kept)  # each change goes to the file first
            if sorted(self._trials()) != list(range(len(self._trials()))):
                raise ValueError("a job has no trial")
            self.jobs()  # raises for trials of another space
        except (SQLAlchemyError, RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LoraExpError(f"{file}: is not the study of this search ({type(error).__name__}: {reason})") from error

    def jobs(self) -> list[list[str]]:
        """The overrides of every job so far."""
        trials = self._trials()
        return [self._space.overrides(trials[job].params) for job in range(len(trials))]

    def finished(self) -> int:
        """How many jobs, counted from the first, have a finished trial (complete or failed)."""
        trials = self._trials()
        return next((job for job in range(len(trials)) if not trials[job].state.is_finished()), len(trials))

    def has_values(self, job: int) -> bool:
        """Whether the trial of a job is complete, with its objectives."""
        return self._trials()[job].values is not None

    def ask(self) -> None:
        """Sample the trial of one more job and add it to the study."""
        import optuna
        from optuna.trial import TrialState, create_trial

        trials = self._trials()
        job = len(trials)
        known = {number: (trial.params, trial.values[0] if trial.values else None) for number, trial in trials.items()}
        values = suggest(self._settings, self._space, job, known)
        memory = optuna.create_study(directions=self._memory.directions)  # without the notes of earlier samplers
        memory.add_trials(self._memory.get_trials(deepcopy=False))
        if values is not None:
            memory.enqueue_trial(values)
        memory.sampler = optuna_sampler(self._settings, job)
        sampled = memory.ask(self._distributions)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=sampled.params,
            distributions=self._distributions,
            user_attrs={JOB: job},
            system_attrs=memory.get_trials(deepcopy=False)[-1].system_attrs,
        )
        for study in self._studies:
            study.add_trial(trial)

    def tell(self, job: int, values: Sequence[float] | None) -> None:
        """Finish the trial of a job with its objectives, or None if it failed. A failed job may succeed later."""
        from optuna.trial import TrialState, create_trial

        trial = self._trials()[job]
        is_finished = trial.state.is_finished()
        for study in self._studies:
            if not is_finished:
                state = TrialState.FAIL if values is None else TrialState.COMPLETE
                study.tell(trial.number, values=values, state=state)
            elif values is not None:  # it failed before; Optuna keeps a finished trial as it is, so add another
                another = create_trial(
                    params=trial.params, distributions=self._distributions, values=values, user_attrs={JOB: job}
                )
                study.add_trial(another)

    def _trials(self) -> dict[int, FrozenTrial]:
        """The trial of each job, the last one if it has several."""
        return {int(trial.user_attrs[JOB]): trial for trial in self._memory.get_trials(deepcopy=False)}
