"""The runs of a sweep as evidence for or against a claim: chosen by setting, averaged within each seed (of a base).

Measures on test images: `target_error` and `target_gain`, its fall (%, points), `forgetting`, `balanced_gain` and
`beyond_shift` (points), `target_loss` (nats). On validation images, for choices: `validation_target_error` (%) and
`validation_target_loss` (nats). How a measure goes with the steps of training is seen by runs of different lengths,
which share their first steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lora_exp.report.statistics import Interval, interval

PERCENT = ("target_error", "forgetting", "beyond_shift", "validation_target_error")  # shares in a sweep's table


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
    """Runs with one row each in `frame`; `label` names what they have in common."""

    label: str
    frame: pd.DataFrame

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

    def best_rates(self, measure: str) -> dict[int, float]:
        """Return, for each seed, the learning rate with the lowest mean of `measure` over the other seeds.

        Each method needs its own learning rate; compared at a common one, a method may lose by that rate alone. A rate
        that was chosen on a seed's own runs would look better there than it is. Rates at which a run diverged are out.
        """
        finished_at = self._finished_at("learning_rate")
        if not finished_at:
            raise Undecided(f"runs diverged at each learning rate ({self.label})")
        means = pd.DataFrame({rate: runs.frame.groupby("seed")[measure].mean() for rate, runs in finished_at.items()})
        if len(means) < 2:
            raise Undecided(f"{len(means)} base; an interval needs at least 2")
        if means.isna().any(axis=None):
            raise Undecided(f"some runs of {self.label} have no {measure.replace('_', ' ')}")
        return {int(str(seed)): float(str(means.drop(seed).mean().idxmin())) for seed in means.index}

    def at_rates(self, rates: Mapping[int, float]) -> Runs:
        """Select the runs of each seed at its rate."""
        return replace(self, frame=self.frame[self.frame["learning_rate"] == self.frame["seed"].map(rates)])

    def at_best_rate(self, measure: str) -> Runs:
        """Select the runs at `best_rates`, and name these in the label."""
        rates = self.best_rates(measure)
        return replace(self.at_rates(rates), label=f"{self.label} at {self.rates_text(rates)}")

    def rates_text(self, rates: Mapping[int, float]) -> str:
        """Write learning rates, and whether one is an end of the rates tried, so that one beyond might be better."""
        tried, own = self.choices("learning_rate"), sorted(set(rates.values()))
        end = " (an end of the rates tried)" if {own[0], own[-1]} & {tried[0], tried[-1]} else ""
        return " and ".join(f"{rate:g}" for rate in own) + end

    def by_seed(self, measure: str) -> tuple[float, ...]:
        """Return the mean of `measure` within each seed, in the order of the seeds."""
        return _within_seeds(self._cells(measure))

    def minus(self, other: Runs, measure: str) -> tuple[float, ...]:
        """Return the mean difference of `measure` from `other` within each seed.

        Raises Undecided unless both ran with the same seeds and targets, and with at least two seeds.
        """
        mine, theirs = self._cells(measure), other._cells(measure)
        if not mine.index.equals(theirs.index):
            raise Undecided(f"{self.label} and {other.label} don't have the same seeds and targets")
        return _within_seeds(mine - theirs)

    def by_steps(self, measure: str) -> pd.DataFrame:
        """Return the mean of `measure`: one row a seed, one column for each number of steps, in order."""
        lengths = self.choices("steps")
        if len(lengths) < 2:
            raise Undecided(f"runs of {self.label} have one number of steps")
        columns = {steps: self.where(steps=steps)._cells(measure).groupby(level="seed").mean() for steps in lengths}
        table = pd.DataFrame(columns)
        if table.isna().any(axis=None):
            raise Undecided(f"runs of {self.label} don't have the same seeds at each number of steps")
        return table

    def line(self, setting: str, measure: str) -> Line:
        """Return the measure by a setting, without the values at which runs diverged."""
        points = {value: interval(runs.by_seed(measure)) for value, runs in self._finished_at(setting).items()}
        return Line(self.label, tuple(points), tuple(points.values()))

    def _finished_at(self, setting: str) -> dict[float, Runs]:
        """Return the runs at each value of a setting, in order, without the values at which runs diverged."""
        runs = {float(value): self.where(**{setting: value}) for value in self.choices(setting)}
        return {value: own for value, own in runs.items() if (own.frame["status"] == "finished").all()}

    def _cells(self, measure: str) -> pd.Series[float]:
        """Means by seed and target. Raises Undecided when a run diverged."""
        lost = int((self.frame["status"] != "finished").sum())
        if lost:
            raise Undecided(f"{lost} of {len(self.frame)} runs of {self.label} diverged")
        return self.frame.groupby(["seed", "target"])[measure].mean()


def evidence(frame: pd.DataFrame) -> Runs:
    """Collect all runs of a sweep, `frame` from `read_sweep`, with the measures.

    Raises Undecided when jobs failed or are missing, since their numbers are unknown.
    """
    absent = frame["status"][~frame["status"].isin(["finished", "diverged"])].value_counts()
    if len(absent):
        counts = ", ".join(f"{count} {status}" for status, count in absent.items())
        raise Undecided(f"of {len(frame)} jobs {counts}")
    in_percent = {name: 100 * frame[name] for name in PERCENT}
    measured = frame.assign(
        **in_percent,
        seed=frame["base_seed"],  # runs over one base are not independent, however many orders of images they see
        target_gain=100 * (frame["target_error_before"] - frame["target_error"]),
        balanced_gain=100 * frame["balanced_accuracy_gained"],
    )
    return Runs("", measured)


def _within_seeds(cells: pd.Series[float]) -> tuple[float, ...]:
    means = cells.groupby(level="seed").mean()
    if len(means) < 2:
        raise Undecided(f"{len(means)} base; an interval needs at least 2")
    return tuple(means.tolist())
