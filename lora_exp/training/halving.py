"""Successive halving: which jobs of a sweep go on at each rung, judged on validation images, never on test images.

Jobs compete that differ in adapter, learning rate and batch size only: the same digit, seed, base and data. At a rung
all jobs of a group have made the same number of steps; those with the lowest validation errors go on, one in `eta`, and
at the next rung, after `eta` times as many steps, they are judged again (Jamieson & Talwalkar 2016, "Non-stochastic
best arm identification and hyperparameter optimization", Algorithm 1; with each group judged whole, so that what goes
on does not depend on which pack was fastest).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_exp.config.spec import RunSpec
from lora_exp.storage.sweep_file import Stopped


@dataclass(frozen=True)
class Halving:
    """One job in `eta` goes on at each rung; the first rung is after `first` steps; `objective` is what is compared."""

    eta: float
    first: int
    objective: str


def rungs(halving: Halving, most_steps: int) -> list[int]:
    """Steps after which jobs are judged, below `most_steps`."""
    found = []
    step = float(halving.first)
    while round(step) < most_steps:
        found.append(round(step))
        step *= halving.eta
    return found


def group_of(spec: RunSpec) -> tuple[Any, ...]:
    """What a job has in common with those that it competes with."""
    how = spec.finetune
    return (spec.base_key, how.digit, how.seed, how.steps, how.epochs, how.replay)


def survivors(errors: Mapping[RunSpec, float], eta: float) -> list[RunSpec]:
    """Of one group the jobs that go on, in their order: one in `eta`, at least one; equals by their order.

    A job that diverged has the error NaN and never goes before another.
    """
    count = max(1, round(len(errors) / eta))
    order = {spec: at for at, spec in enumerate(errors)}
    ranked = sorted(errors, key=lambda spec: (math.isnan(errors[spec]), errors[spec], order[spec]))
    return sorted(ranked[:count], key=lambda spec: order[spec])


def judged(
    halving: Halving, step: int, errors: Mapping[RunSpec, float], steps: Mapping[RunSpec, int]
) -> tuple[list[RunSpec], dict[RunSpec, Stopped]]:
    """Of the jobs at a rung those that go on, and why the others don't; `steps` is the whole length of each."""
    groups: dict[tuple[Any, ...], dict[RunSpec, float]] = {}
    for spec, error in errors.items():
        groups.setdefault(group_of(spec), {})[spec] = error
    on: list[RunSpec] = []
    stopped: dict[RunSpec, Stopped] = {}
    for group in groups.values():
        kept = survivors(group, halving.eta)
        limit = max((group[spec] for spec in kept if not math.isnan(group[spec])), default=math.nan)
        on += kept
        for spec, error in group.items():
            if spec not in kept:
                stopped[spec] = Stopped(step, steps[spec], halving.objective, error, limit, len(group))
    return on, stopped
