"""Settings compared over their seeds: means with intervals, and which differences are more than chance.

A seed counts once: what ran with it on several digits is averaged first, so n is the number of seeds (of bases, where
those have seeds of their own, since runs over one base share its luck). Settings are compared in pairs, by paired t
tests over the seeds and digits that all settings have in common; p values are corrected for all pairs and measures at
once by Holm's procedure (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).
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
from lora_exp.storage.trade_off import both_errors, sound

REPLICATES = ("seed", "base_seed")
LEAST_SEEDS = 3  # for a test; with two, a difference that happens to be the same twice would seem certain
MEASURES = {
    "both_errors": "sum of both errors",
    "target_error": "error on the target",
    "other_error": "error on the other digits",
    "forgetting": "forgetting",
}
TESTED = ("both_errors", "target_error", "forgetting")


@dataclass(frozen=True)
class Setting:
    """Runs that differ in digit and seed only; `means` are over the seeds, rates from 0 to 1."""

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

    @property
    def told_apart(self) -> list[str]:
        """Labels of the settings that are worse by more than chance."""
        return [label for label, chance in self.chances.items() if chance < CHANCE]


@dataclass(frozen=True)
class Comparison:
    """All settings of a sweep in the order of their first runs; no rankings where `why_not` says why."""

    settings: tuple[Setting, ...]
    seeds: int
    tests: int
    rankings: tuple[Ranking, ...]
    why_not: str

    def sentences(self) -> list[str]:
        """What may be said: "best" and "better" only where the differences are more than chance."""
        if self.why_not:
            return [self.why_not]
        found = []
        for ranking in self.rankings:
            apart, rest = ranking.told_apart, len(ranking.chances) - len(ranking.told_apart)
            name, measure = ranking.lowest.with_errors, MEASURES[ranking.measure]
            if not rest:
                found.append(f"Best {measure}: {name}, better than every other setting.")
            elif apart:
                close = [label for label in ranking.chances if label not in apart]
                found.append(
                    f"Lowest {measure}: {name}, better than {_few(apart)}, but not told apart from {_few(close)}."
                )
            else:
                found.append(f"Lowest {measure}: {name}, not told apart from any other setting.")
        if found:
            how = f"paired t tests over {self.seeds} seeds, p < {CHANCE:g} with Holm's correction"
            found.append(f"Told apart: by {how} for the {self.tests} tests of all pairs and measures.")
        return found


def compare(frame: pd.DataFrame) -> Comparison | None:
    """The settings of a sweep, `frame` as of `load_sweep`, compared; None without a sound run."""
    runs = sound(frame)
    if runs.empty:
        return None
    asked = runs["steps"].where(runs["epochs"].isna())  # what follows from epochs and digit is no setting
    runs = runs.assign(steps=asked, both_errors=both_errors(runs), replicate=_replicates(runs))
    names = [name for name in differing(runs) if name not in ("digit", *REPLICATES)]
    groups = runs.groupby(names, sort=False, dropna=False) if names else [((), runs)]
    by_label: dict[str, tuple[Setting, pd.DataFrame]] = {}
    for keys, group in groups:
        setting = _setting(dict(zip(names, keys, strict=True)), group)
        by_label[setting.label] = (setting, group)
    settings = tuple(setting for setting, _ in by_label.values())
    cells = {
        label: group.groupby(["replicate", "digit"])[list(TESTED)].mean() for label, (_, group) in by_label.items()
    }
    shared = _shared(list(cells.values()))
    seeds = shared.get_level_values("replicate").nunique()
    if len(settings) < 2 or (why_not := _why_not(runs, seeds)):
        return Comparison(settings, seeds, 0, (), "" if len(settings) < 2 else why_not)
    means = {label: table.loc[shared].groupby(level="replicate").mean() for label, table in cells.items()}
    rankings = _rankings(by_label, means)
    return Comparison(settings, seeds, len(TESTED) * math.comb(len(settings), 2), rankings, "")


def _setting(values: dict[str, Any], group: pd.DataFrame) -> Setting:
    by_seed = group.groupby("replicate")[list(MEASURES)].mean()
    if by_seed.empty:  # imported adapters, whose seeds aren't known
        by_seed = group[list(MEASURES)].mean().to_frame().T
    return Setting(
        values,
        len(group),
        int(group["replicate"].nunique()),
        {name: interval(by_seed[name].tolist()) for name in MEASURES},
        {name: float(by_seed[name].std()) for name in MEASURES},
        float(group["parameters_adapter"].mean()),
    )


def _replicates(runs: pd.DataFrame) -> pd.Series[Any]:
    """What counts as one drawing of chance: a base's seed where bases differ, else the seed of fine-tuning."""
    return runs["base_seed"] if runs["base_seed"].nunique() > 1 else runs["seed"]


def _shared(tables: Sequence[pd.DataFrame]) -> pd.Index[Any]:
    """The (seed, digit) that all settings ran with."""
    shared = tables[0].index
    for table in tables[1:]:
        shared = shared.intersection(table.index)
    return shared


def _why_not(runs: pd.DataFrame, seeds: int) -> str:
    """Why nothing is tested, if so."""
    ran = runs["replicate"].nunique()
    if ran < 2:
        return "Every setting ran with one seed, so small differences between settings may be chance."
    if seeds == 0:
        return "No seed and digit are common to all settings, so their differences can't be told from chance."
    if seeds < LEAST_SEEDS:
        shared = f"All settings have {seeds} of {ran} seeds in common"
        return f"{shared}; fewer than {LEAST_SEEDS} can't tell differences from chance."
    return ""


def _rankings(by_label: dict[str, tuple[Setting, pd.DataFrame]], means: dict[str, pd.DataFrame]) -> tuple[Ranking, ...]:
    import numpy as np
    from scipy.stats import ttest_1samp
    from statsmodels.stats.multitest import multipletests

    labels = list(by_label)
    values = np.stack([means[label][list(TESTED)].to_numpy() for label in labels])  # [settings, seeds, measures]
    pairs = np.array(list(combinations(range(len(labels)), 2)))
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]  # [pairs, seeds, measures]
    # What does not vary over the seeds has no scale that its size could be compared with.
    varies = np.ptp(differences, axis=1) > 1e-12
    chances = np.ones(varies.shape)
    for measure in range(len(TESTED)):
        which = varies[:, measure]
        if which.any():
            chances[which, measure] = ttest_1samp(differences[which, :, measure], 0.0, axis=1).pvalue
    corrected = multipletests(chances.ravel(), method="holm")[1].reshape(chances.shape)
    rankings = []
    for measure, name in enumerate(TESTED):
        lowest = int(values[:, :, measure].mean(axis=1).argmin())
        mine = (pairs == lowest).any(axis=1)
        others = pairs[mine].sum(axis=1) - lowest
        found = {labels[other]: float(chance) for other, chance in zip(others, corrected[mine, measure], strict=True)}
        rankings.append(Ranking(name, by_label[labels[lowest]][0], found))
    return tuple(rankings)


def _few(labels: Sequence[str], most: int = 6) -> str:
    told = "; ".join(labels[:most])
    return told if len(labels) <= most else f"{told}; and {len(labels) - most} more"
