"""A sweep from Python: its table, its figures, its runs, and the best of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, overload

import pandas as pd

from lora_exp.api.run import Run
from lora_exp.api.shown import for_notebooks, page
from lora_exp.contest.verdict import Verdict, verdict_of
from lora_exp.errors import LoraExpError
from lora_exp.report.recommended import headline, recommended_table
from lora_exp.report.tables import runs_table, setting_labels
from lora_exp.storage.recommendation import Recommendation, recommendations
from lora_exp.storage.sweep_folder import Sweep as Stored
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.table import CLASS_ERRORS, finished, target_order
from lora_exp.storage.varied import heading, setting_text, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOSEN = "chosen_gained"
# Parts of the names of columns of which less is better.
LESS = ("error", "forgetting", "loss", "parameters", "overhead", "seconds", "broken")
COUNTS = ("mended", "broken", "target_mended", "target_broken")
IMAGES = "images_"  # starts the columns of how many test images a class has


def load_sweep(folder: str | Path) -> Sweep:
    """Read the sweep in `folder`; a single run reads as a sweep of one job. Raises LoraExpError where there is none."""
    return Sweep(read_sweep(Path(folder).absolute()))


@final
class Sweep:
    """A sweep, as it was when it was read from its folder: a sequence of its jobs.

    `command` is the command line that ran it, `started` when, `search` holds the settings of a search; None for a grid.
    """

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self.folder, self.name = stored.folder, stored.name
        self.command, self.started, self.search = stored.command, stored.started, stored.search

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """A table with one row a job, in job order.

        Columns: `job`, `sweep`, settings, `status`, errors (rates from 0 to 1), parameters, times, `error`, `folder`,
        `overrides`. Before `status` stands every further setting in which the runs differ, such as `dropout`. `status`
        is "finished", "diverged", "stopped" (by halving), "failed" or "missing". Only finished rows have errors; failed
        and missing ones have no numbers at all. `target` is an integer where every target is one number. Of each class
        there are counts of test images: `errors_before_3`, `errors_3` and, of all its images, `images_3`.
        """
        return _typed(self._stored)

    @property
    def runs(self) -> list[Run]:
        """The finished runs, in job order."""
        return [self[int(job)] for job in finished(self._stored.frame)["job"]]

    def __len__(self) -> int:
        return len(self._stored.frame)

    @overload
    def __getitem__(self, job: int) -> Run: ...

    @overload
    def __getitem__(self, job: slice) -> list[Run]: ...

    def __getitem__(self, job: int | slice) -> Run | list[Run]:
        if isinstance(job, slice):
            return [self[at] for at in range(len(self))[job]]
        if not -len(self) <= job < len(self):
            raise IndexError(f"job {job}: this sweep has jobs 0 to {len(self) - 1}")
        return Run(self._stored, range(len(self))[job])

    def __iter__(self) -> Iterator[Run]:
        return (self[job] for job in range(len(self)))

    def best(self, by: str = CHOSEN, **where: Any) -> Run:
        """A run of the setting that is recommended, chosen on held-out images; of all runs, or of those of `where`.

        `where` names columns and their values: `target=3`, `method=["lora", "dora"]`. With another column as `by`, it
        is the finished run with the best value there, which is the lowest of errors, losses and costs. Such a value is
        of the test images: it says too much of new images once it was chosen by. Raises LoraExpError where there is no
        such column, value or run, and where runs on different data or models compete.
        """
        frame = self._rows(where)
        if by != CHOSEN:
            return self[self._best_by(by, finished(frame))]
        first: dict[str, Recommendation] = {}  # of each data set and model
        for one in recommendations(frame):
            first.setdefault(str({name: value for name, value in one.task.items() if name != "target"}), one)
        if not first:
            raise LoraExpError(f"{self.folder}: has no finished run")
        if len(first) > 1:
            tasks = "; ".join(one.task_label for one in first.values())
            own = {name: value for name, value in next(iter(first.values())).task.items() if name != "target"}
            written = (repr(value) if isinstance(value, str) else setting_text(value) for value in own.values())
            example = ", ".join(f"{name}={value}" for name, value in zip(own, written, strict=True))
            why = f"has no best run of several tasks, which are not compared: {tasks}"
            raise LoraExpError(f"{self.folder}: {why}; pass one, such as best({example})")
        [chosen] = first.values()
        return self[chosen.jobs[0]]

    @functools.cached_property
    def verdict(self) -> Verdict | None:
        """What a contest found (docs/contest.md): `standings`, each with its `comparisons`; None for another sweep.

        Raises LoraExpError when its protocol was changed, or its jobs hold results of others.
        """
        return None if self._stored.contest is None else verdict_of(self._stored)

    @property
    def recommended(self) -> pd.DataFrame:
        """What is recommended for all classes and for each: the setting, its gain and its price, one a row.

        The setting is chosen on the images of `chosen_on`; `gained` (balanced accuracy) and `forgetting` are of others.
        `low` to `high` is a 95 % interval over bases or seeds. Where nothing gains, `gains` is false: keep the base.
        A contest has a `verdict` instead: here its runs of selection and of judging would count together.
        """
        found = recommendations(self._stored.frame)
        return pd.DataFrame(
            {
                "task": [one.task_label for one in found],
                "setting": [one.setting_label for one in found],
                "gains": [one.is_gain for one in found],
                **{name: [one.interval[at] for one in found] for at, name in enumerate(("gained", "low", "high"))},
                "forgetting": [one.means["elsewhere_forgetting"] for one in found],
                "beyond_shift": [one.means["beyond_shift"] for one in found],
                "parameters": [one.means["parameters_adapter"] for one in found],
                "chosen_on": [one.chosen_on for one in found],
                "jobs": [list(one.jobs) for one in found],
            }
        )

    def plot_heat_maps(self, **where: Any) -> Figure:
        """Draw target error, forgetting and balanced accuracy gained by class and setting; `where` as in `best`."""
        from lora_exp.report.sweep_figures import heat_maps

        return for_notebooks(heat_maps(self._rows(where, "target_error")))

    def plot_gain_against_price(self, **where: Any) -> Figure:
        """Draw the error on the target against forgetting, a mark a run, with the front of each class."""
        from lora_exp.report.sweep_figures import gain_against_price

        return for_notebooks(gain_against_price(self._rows(where, "target_error")))

    def plot_parameters(self, **where: Any) -> Figure:
        """Draw the errors on the target and on the other classes against the number of adapter parameters."""
        from lora_exp.report.sweep_figures import parameters_against_error

        frame = self._rows(where, "parameters_adapter")
        if not (frame["parameters_adapter"] > 0).any():
            raise LoraExpError(f"{self.folder}: no adapter of its runs has parameters")
        return for_notebooks(parameters_against_error(frame))

    def plot_loss_curves(self, **where: Any) -> Figure:
        """Draw the loss of every run by step."""
        from lora_exp.report.figures import loss_curves

        frame, results = self._rows(where), self._stored.results
        trained = [int(job) for job in frame["job"] if job in results and not results[int(job)].imported]
        if not any(results[job].outcome.diverged_at != 1 for job in trained):
            raise LoraExpError(f"{self.folder}: no run has a loss to draw")
        named = setting_labels(frame[frame["job"].isin(trained)])
        return for_notebooks(loss_curves([results[job] for job in named], list(named.values())))

    def __repr__(self) -> str:
        return f"<Sweep {self.folder}: {self._said()}>"

    def _repr_html_(self) -> str:
        frame = self._stored.frame
        if self.verdict is not None:  # which recommends nothing by the runs that led to it
            from lora_exp.contest.words import sentences

            return page(self.name, [self._said(), str(self.folder), *sentences(self.verdict)], runs_table(frame))
        if not (found := recommendations(frame)):
            return page(self.name, [self._said(), str(self.folder)])
        lines = [self._said(), str(self.folder), headline(found)]
        return page(self.name, lines, recommended_table(found), runs_table(frame))

    def _said(self) -> str:
        """`40 jobs (39 finished, 1 failed) over class, rank`."""
        frame = self._stored.frame
        counts = ", ".join(f"{count:,} {status}" for status, count in Counter(frame["status"]).items())
        names = ", ".join(map(heading, varied(frame)))
        return f"{len(frame):,} job{'s' if len(frame) != 1 else ''} ({counts}){f' over {names}' if names else ''}"

    def _rows(self, where: Mapping[str, Any], drawn: str | None = None) -> pd.DataFrame:
        """The jobs with these values in these columns, as they are read.

        Raises LoraExpError for another column, for a value that no job has, and where no run has a value to be `drawn`.
        """
        frame = self._stored.frame
        for name, value in where.items():
            if name not in frame:
                raise LoraExpError(f"{name}: no such column; settings that vary are {', '.join(varied(frame))}")
            own = frame[name]
            wanted = [",".join(map(str, one)) if isinstance(one, tuple) else one for one in _several(value)]
            is_text = own.dtype == object
            rows = frame[own.astype(str).isin(list(map(str, wanted))) if is_text else own.isin(wanted)]
            if rows.empty:
                raise LoraExpError(f"{name}={value}: no job has it; there are {', '.join(_values(own))}")
            frame = rows
        if drawn is not None and finished(frame)[drawn].isna().all():
            raise LoraExpError(f"{self.folder}: no finished run has a value of {drawn} to draw")
        return frame

    def _best_by(self, by: str, runs: pd.DataFrame) -> int:
        names = [str(name) for name in runs.select_dtypes("number")]
        names = [name for name in names if list(runs).index(name) > list(runs).index("status")]
        if by not in names:
            raise LoraExpError(f"by={by}: no such measure; allowed: {', '.join(names)}")
        runs = runs[runs[by].notna()].sort_values(by, ascending=any(part in by for part in LESS), kind="stable")
        if runs.empty:
            raise LoraExpError(f"by={by}: no finished run has a value of it")
        return int(runs["job"].iloc[0])


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _values(column: pd.Series[Any]) -> list[str]:
    """The values of a column as text, in order."""
    return sorted(map(setting_text, column.dropna().unique()), key=target_order)


def _typed(stored: Stored) -> pd.DataFrame:
    """The frame of a sweep with integers where a column holds nothing else, and the numbers of images of each class."""
    frame = stored.frame.astype(dict.fromkeys(COUNTS, "Int64"))
    known = frame["target"].dropna()
    if len(known) and all(name.isdecimal() and name == str(int(name)) for name in known):
        frame["target"] = frame["target"].astype("Int64")
    counts: dict[str, dict[int, int]] = {}
    for job, result in stored.results.items():
        for name, count in zip(result.facts.classes, result.outcome.before.counts, strict=True):
            counts.setdefault(name, {})[job] = count
    for name, own in counts.items():
        if f"{CLASS_ERRORS}{name}" in frame:
            values = pd.Series([own.get(int(job)) for job in frame["job"]], dtype="Int64")
            frame.insert(list(frame).index(f"{CLASS_ERRORS}{name}") + 1, f"{IMAGES}{name}", values)
    return frame
