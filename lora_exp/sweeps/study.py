"""The study of a search: `study.db` in the sweep's folder, by which a search that was interrupted goes on.

A trial comes into the file whole, with the number of its job, before the job is in `sweep.json` or runs; and it is told
once, from what lies in the job's folder. Samplers work on a copy in memory, so that a crash leaves no half of a trial.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.settings import SearchSettings
from lora_exp.errors import LoraExpError
from lora_exp.sweeps.samplers import optuna_sampler, proposal
from lora_exp.sweeps.search_space import Space

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

STUDY, LOCK = "study.db", "study.lock"
JOB = "job"  # what a trial's job number is called in the file


class Study:
    """What was asked and told of one search."""

    def __init__(self, file: Path | None, space: Space, settings: SearchSettings) -> None:
        """Open the study in `file`, or make it; without a file it is kept in memory only.

        Raises LoraExpError when the file can't be read or holds trials of something else.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._settings, self._distributions = space, settings, space.distributions()
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(settings.objectives)
        self._memory = optuna.create_study(directions=directions)
        self._studies = [self._memory]
        if file is not None:
            with _readable(file):
                kept = optuna.create_study(
                    storage=_storage(file), study_name="search", directions=directions, load_if_exists=True
                )
                self._memory.add_trials(kept.get_trials())
                self._studies.insert(0, kept)  # the file hears of everything first
                asked = sorted(self._trials())
                if asked != list(range(len(asked))):
                    raise ValueError("a job has no trial")
                self.jobs()

    def jobs(self) -> list[list[str]]:
        """The overrides of every job that was asked."""
        trials = self._trials()
        return [self._space.overrides(trials[job].params) for job in range(len(trials))]

    def told(self) -> int:
        """How many jobs from the first on have been told."""
        trials = self._trials()
        return next((job for job in range(len(trials)) if not trials[job].state.is_finished()), len(trials))

    def is_sound(self, job: int) -> bool:
        """Whether a job has been told with a sound result."""
        return self._trials()[job].values is not None

    def ask(self) -> None:
        """Ask for one more job."""
        from optuna.trial import TrialState, create_trial

        trials = self._trials()
        job = len(trials)
        told = {number: (trial.params, trial.values[0] if trial.values else None) for number, trial in trials.items()}
        values = proposal(self._settings, self._space, job, told)
        memory = self._copy()  # a sampler must not find there what it noted for the job before
        if values is not None:
            memory.enqueue_trial(values)
        memory.sampler = optuna_sampler(self._settings, job)
        asked = memory.ask(self._distributions)
        whole = create_trial(
            state=TrialState.RUNNING,
            params=asked.params,
            distributions=self._distributions,
            user_attrs={JOB: job},
            system_attrs=memory.get_trials(deepcopy=False)[-1].system_attrs,
        )
        for study in self._studies:
            study.add_trial(whole)

    def tell(self, job: int, values: Sequence[float] | None) -> None:
        """Tell what came of a job: its objectives, or None for a failure. A job that failed may be told once more."""
        from optuna.trial import TrialState, create_trial

        trial = self._trials()[job]
        is_told = trial.state.is_finished()
        for study in self._studies:
            if not is_told:
                state = TrialState.FAIL if values is None else TrialState.COMPLETE
                study.tell(trial.number, values=values, state=state)
            elif values is not None:  # it failed before: a trial that ended stays, and another takes its place
                whole = create_trial(
                    params=trial.params, distributions=self._distributions, values=values, user_attrs={JOB: job}
                )
                study.add_trial(whole)

    def _copy(self) -> optuna.Study:
        import optuna

        copy = optuna.create_study(directions=self._memory.directions)
        copy.add_trials(self._memory.get_trials(deepcopy=False))
        return copy

    def _trials(self) -> dict[int, FrozenTrial]:
        """The trial of each job, the last if it has several."""
        return {int(trial.user_attrs[JOB]): trial for trial in self._memory.get_trials(deepcopy=False)}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A block in which no other process searches in `folder`. Raises LoraExpError when one does.

    By a record lock, which the processes of packs don't inherit: they may outlive a search that is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LoraExpError(f"hydra.sweep.dir={folder}: another process is searching there") from error
        yield


def _storage(file: Path) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy import URL

    return RDBStorage(URL.create("sqlite", database=str(file)).render_as_string())


@contextmanager
def _readable(file: Path) -> Iterator[Any]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LoraExpError(f"{file}: is not the study of this search ({type(error).__name__}: {reason})") from error
