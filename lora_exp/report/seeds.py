"""Settings compared over their seeds: means with intervals, and which differences are significant.

The runs of a seed are averaged over digits first, so n is the number of seeds: those of the bases, if they differ,
since runs over one base are not independent. Paired t tests compare the settings over the seeds and digits that all of
them have. Holm's procedure (see `statistics`) corrects the p values of all pairs and measures together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from lora_exp.report.statistics import CHANCE, Interval, interval
from lora_exp.report.tables import differing, percent, points, setting_text
from lora_exp.storage.table import both_errors, finished

REPLICATES = ("seed", "base_seed")
LEAST_SEEDS = 3  # for a test; with two, a difference that is the same twice by chance would seem certain
MEASURE_NAMES = {
    "both_errors": "sum of both errors",
    "target_error": "error on the target",
    "other_error": "error on the other digits",
    "forgetting": "forgetting",
}
TESTED = ("both_errors", "target_error", "forgetting")


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, which differ in digit and seed only; `means` are over the seeds, rates from 0 to 1."""

    values: dict[str, Any]
    runs: int
    seeds: int
    means: dict[str, Interval]
    deviations: dict[str, float]
    parameters: float

    @property
    def label(self) -> str:
        """`rank 4, alpha 1`."""
        return ", ".join(f"{name.replace('_', ' ')} {setting_text(value)}" for name, value in self.values.items())

    @property
    def with_errors(self) -> str:
        """The label with its gain and its cost."""
        target, forgetting = self.means["target_error"].mean, self.means["forgetting"].mean
        return f"{self.label} (error on the target {percent(target)} %, forgetting {points(forgetting)} points)"


@dataclass(frozen=True)
class Ranking:
    """The setting with the lowest mean of a measure, and the corrected p value of its difference from each other."""

    measure: str
    lowest: Setting
    chances: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """All settings of a sweep in the order of their first runs; no rankings where `why_not` says why."""

    settings: tuple[Setting, ...]
    seeds: int
    rankings: tuple[Ranking, ...]
    why_not: str

    def sentences(self) -> list[str]:
        """Describe the rankings; "best" and "better" are said of significant differences only."""
        if self.why_not:
            return [self.why_not]
        found = []
        for ranking in self.rankings:
            worse = [label for label, chance in ranking.chances.items() if chance < CHANCE]
            close = [label for label in ranking.chances if label not in worse]
            name, measure = ranking.lowest.with_errors, MEASURE_NAMES[ranking.measure]
            rest = f"no significant difference from {_few(close) if worse else 'any other setting'}"
            if not close:
                found.append(f"Best {measure}: {name}, better than every other setting.")
            else:
                found.append(f"Lowest {measure}: {name}, {f'better than {_few(worse)}, ' if worse else ''}{rest}.")
        if found:
            how = f"paired t tests over {self.seeds} seeds, p < {CHANCE:g} with Holm's correction"
            tests = len(TESTED) * math.comb(len(self.settings), 2)
            found.append(f"Significance: {how} for the {tests} tests of all pairs and measures.")
        return found


def compare(frame: pd.DataFrame) -> Comparison | None:
    """Compare the settings of a sweep, `frame` from `load_sweep`; None without a finished run."""
    runs = finished(frame)
    if runs.empty:
        return None
    runs = runs.assign(
        steps=runs["steps"].where(runs["epochs"].isna()),  # steps that follow from epochs and digit are no setting
        both_errors=both_errors(runs),
        replicate=runs["base_seed"] if runs["base_seed"].nunique() > 1 else runs["seed"],
    )
    names = [name for name in differing(runs) if name not in ("digit", *REPLICATES)]
    groups = list(runs.groupby(names, sort=False, dropna=False)) if names else [((), runs)]
    settings = tuple(_setting(dict(zip(names, keys, strict=True)), group) for keys, group in groups)
    cells = [group.groupby(["replicate", "digit"])[list(TESTED)].mean() for _, group in groups]
    shared = pd.concat(cells, axis=1, join="inner", keys=range(len(cells)))  # the seeds and digits of all settings
    means = shared.groupby(level="replicate").mean()
    if len(settings) < 2:
        return Comparison(settings, len(means), (), "")
    why_not = _why_not(runs["replicate"].nunique(), len(means))
    return Comparison(settings, len(means), () if why_not else _rankings(settings, means), why_not)


def _setting(values: dict[str, Any], group: pd.DataFrame) -> Setting:
    by_seed = group.groupby("replicate")[list(MEASURE_NAMES)].mean()
    if by_seed.empty:  # imported adapters, whose seeds aren't known
        by_seed = group[list(MEASURE_NAMES)].mean().to_frame().T
    return Setting(
        values,
        len(group),
        int(group["replicate"].nunique()),
        {name: interval(by_seed[name].tolist()) for name in MEASURE_NAMES},
        {name: float(by_seed[name].std()) for name in MEASURE_NAMES},
        float(group["parameters_adapter"].mean()),
    )


def _why_not(ran: int, seeds: int) -> str:
    """Return why nothing is tested when `seeds` of the seeds that ran are common to all settings; empty where it is."""
    if ran < 2:
        return "Every setting ran with one seed, so small differences between settings may be chance."
    if seeds == 0:
        return "No seed and digit are common to all settings, so their differences may be chance."
    if seeds < LEAST_SEEDS:
        return f"All settings have {seeds} of {ran} seeds in common; a test needs at least {LEAST_SEEDS}."
    return ""


def _rankings(settings: Sequence[Setting], means: pd.DataFrame) -> tuple[Ranking, ...]:
    """Rank the settings by each measure. `means` has one row a seed, and for each setting one column a measure."""
    import numpy as np
    from scipy.stats import ttest_1samp
    from statsmodels.stats.multitest import multipletests

    values = means.to_numpy().reshape(len(means), len(settings), len(TESTED))
    pairs = np.array(list(combinations(range(len(settings)), 2)))
    differences = values[:, pairs[:, 0]] - values[:, pairs[:, 1]]  # [seeds, pairs, measures]
    # A difference that does not vary over the seeds has no spread to compare its size with.
    varies = np.ptp(differences, axis=0) > 1e-12
    chances = np.ones(varies.shape)
    if varies.any():
        chances[varies] = ttest_1samp(differences[:, varies], 0.0).pvalue
    corrected = multipletests(chances.ravel(), method="holm")[1].reshape(chances.shape)
    rankings = []
    for measure, name in enumerate(TESTED):
        lowest = int(values[:, :, measure].mean(axis=0).argmin())
        mine = (pairs == lowest).any(axis=1)
        others = [settings[other].label for other in pairs[mine].sum(axis=1) - lowest]
        rankings.append(
            Ranking(name, settings[lowest], dict(zip(others, corrected[mine, measure].tolist(), strict=True)))
        )
    return tuple(rankings)


def _few(labels: Sequence[str], most: int = 6) -> str:
    listed = "; ".join(labels[:most])
    return listed if len(labels) <= most else f"{listed}; and {len(labels) - most} more"
