"""The runs of a sweep as evidence for or against a claim: chosen by setting, averaged within each seed.

Measures: `target_error` (%), `forgetting` (percentage points), `mean_loss` over the whole of fine-tuning and
`late_loss` over its last tenth (nats).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lora_exp.report.statistics import Interval, interval

DRAWN_STEPS = 60  # points of a loss curve


class Undecided(Exception):
    """The runs can't decide the claim; the message says why."""


@dataclass(frozen=True)
class Line:
    """A measure's means over the seeds, with their intervals, at each `x`."""

    label: str
    x: tuple[float, ...]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Runs:
    """Runs with one row each in `frame`, and their loss curves by job; `label` names what they have in common."""

    label: str
    frame: pd.DataFrame
    curves: Mapping[int, Sequence[float]]

    def where(self, label: str = "", **setting: Any) -> Runs:
        """Select the runs with these settings. Raises Undecided when there are none."""
        frame = self.frame
        for name, value in setting.items():
            frame = frame[frame[name].isin([value])]
        if frame.empty:
            settings = ", ".join(f"{name} {value}" for name, value in setting.items())
            raise Undecided(f"no run has {settings}" + (f" ({self.label})" if self.label else ""))
        return replace(self, label=label or self.label, frame=frame)

    def choices(self, setting: str) -> list[Any]:
        """Return the values of a setting, in order."""
        return sorted(self.frame[setting].dropna().unique().tolist())

    def best_rate(self, measure: str) -> float:
        """Return the learning rate with the lowest mean of `measure`, of those at which no run diverged.

        Each method needs its own learning rate; compared at a common one, a method may lose by that rate alone.
        """
        means = {rate: float(runs.frame[measure].mean()) for rate, runs in self._sound("learning_rate").items()}
        if not means:
            raise Undecided(f"runs diverged at each learning rate ({self.label})")
        return min(means, key=lambda rate: means[rate])

    def at_best_rate(self, measure: str) -> Runs:
        """Select the runs at `best_rate`, and name it in the label."""
        rate = self.best_rate(measure)
        return self.where(f"{self.label} at {self.rate_text(rate)}", learning_rate=rate)

    def rate_text(self, rate: float) -> str:
        """Write a learning rate, and whether it is an end of the rates tried, so that one beyond might be better."""
        tried = self.choices("learning_rate")
        return f"{rate:g}" + (" (an end of the rates tried)" if rate in (tried[0], tried[-1]) else "")

    def by_seed(self, measure: str) -> tuple[float, ...]:
        """Return the mean of `measure` within each seed, in the order of the seeds."""
        return _within_seeds(self._cells(measure))

    def minus(self, other: Runs, measure: str) -> tuple[float, ...]:
        """Return the mean difference of `measure` from `other` within each seed.

        Raises Undecided unless both ran with the same seeds and digits, and with at least two seeds.
        """
        mine, theirs = self._cells(measure), other._cells(measure)
        if not mine.index.equals(theirs.index):
            raise Undecided(f"{self.label} and {other.label} don't have the same seeds and digits")
        return _within_seeds(mine - theirs)

    def loss_by_seed(self) -> pd.DataFrame:
        """Return moving averages of the loss over a tenth of the steps: one row a seed, one column for each last step.

        The last column is `late_loss`.
        """
        lengths = {len(self.curves[job]) for job in self.frame["job"]}
        if len(lengths) != 1:
            raise Undecided(f"runs of {self.label} have different numbers of steps")
        window = tenth(lengths.pop())
        means = [np.convolve(self.curves[job], np.ones(window) / window, mode="valid") for job in self.frame["job"]]
        table = pd.DataFrame(means, index=pd.Index(self.frame["seed"], name="seed"))
        table.columns = pd.RangeIndex(window, window + table.shape[1])
        return table.groupby(level="seed").mean()

    def line(self, setting: str, measure: str) -> Line:
        """Return the measure by a setting, without the values at which runs diverged."""
        points = {value: interval(runs.by_seed(measure)) for value, runs in self._sound(setting).items()}
        return Line(self.label, tuple(points), tuple(points.values()))

    def loss_line(self) -> Line:
        """Return the loss by step."""
        table = self.loss_by_seed()
        table = table.iloc[:, :: -(-table.shape[1] // DRAWN_STEPS)]
        points = {int(str(step)): interval(losses.tolist()) for step, losses in table.items()}
        return Line(self.label, tuple(points), tuple(points.values()))

    def _sound(self, setting: str) -> dict[float, Runs]:
        """Return the runs at each value of a setting, in order, without the values at which runs diverged."""
        runs = {float(value): self.where(**{setting: value}) for value in self.choices(setting)}
        return {value: own for value, own in runs.items() if (own.frame["status"] == "finished").all()}

    def _cells(self, measure: str) -> pd.Series[float]:
        """Means by seed and digit. Raises Undecided when a run diverged."""
        unsound = int((self.frame["status"] != "finished").sum())
        if unsound:
            raise Undecided(f"{unsound} of {len(self.frame)} runs of {self.label} diverged")
        return self.frame.groupby(["seed", "digit"])[measure].mean()


def evidence(frame: pd.DataFrame, curves: Mapping[int, Sequence[float]]) -> Runs:
    """Collect all runs of a sweep, `frame` from `load_sweep`, with the measures.

    Raises Undecided when jobs failed or are missing, since their numbers are unknown.
    """
    absent = frame["status"][~frame["status"].isin(["finished", "diverged"])].value_counts()
    if len(absent):
        counts = ", ".join(f"{count} {status}" for status, count in absent.items())
        raise Undecided(f"of {len(frame)} jobs {counts}")
    jobs = zip(frame["job"], frame["status"], strict=True)
    whole = [curves[job] if status == "finished" else [] for job, status in jobs]
    measures: dict[str, Any] = {
        "target_error": 100 * frame["target_error"],
        "forgetting": 100 * frame["forgetting"],
        "mean_loss": [_mean(losses) for losses in whole],
        "late_loss": [_mean(losses[-tenth(len(losses)) :]) for losses in whole],
    }
    return Runs("", frame.assign(**measures), curves)


def tenth(steps: int) -> int:
    """Return a tenth of the steps, at least one, over which losses are averaged."""
    return max(1, steps // 10)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else float("nan")


def _within_seeds(cells: pd.Series[float]) -> tuple[float, ...]:
    means = cells.groupby(level="seed").mean()
    if len(means) < 2:
        raise Undecided(f"{len(means)} seed; an interval needs at least 2")
    return tuple(means.tolist())
