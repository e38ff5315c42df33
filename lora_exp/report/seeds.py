"""Settings compared over their seeds: means with intervals, and which differences are significant.

The runs of a seed on several digits are averaged first, so n is the number of seeds. Where bases have several seeds,
those are counted, since runs over one base are not independent. Settings are compared in pairs, by paired t tests over
the seeds and digits that all settings have in common. Holm's procedure corrects the p values of all pairs and measures
together (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).
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

    @property
    def significant(self) -> list[str]:
        """Labels of the settings that are significantly worse."""
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
        """Describe the rankings; "best" and "better" are said of significant differences only."""
        if self.why_not:
            return [self.why_not]
        found = []
        for ranking in self.rankings:
            worse = ranking.significant
            close = [label for label in ranking.chances if label not in worse]
            name, measure = ranking.lowest.with_errors, MEASURE_NAMES[ranking.measure]
            if not close:
                found.append(f"Best {measure}: {name}, better than every other setting.")
            elif worse:
                rest = f"no significant difference from {_few(close)}"
                found.append(f"Lowest {measure}: {name}, better than {_few(worse)}, {rest}.")
            else:
                found.append(f"Lowest {measure}: {name}, no significant difference from any other setting.")
        if found:
            how = f"paired t tests over {self.seeds} seeds, p < {CHANCE:g} with Holm's correction"
            found.append(f"Significance: {how} for the {self.tests} tests of all pairs and measures.")
        return found


def compare(frame: pd.DataFrame) -> Comparison | None:
    """Compare the settings of a sweep, `frame` from `load_sweep`; None without a finished run."""
    runs = finished(frame)
    if runs.empty:
        return None
    steps = runs["steps"].where(runs["epochs"].isna())  # steps that follow from epochs and digit are no setting
    runs = runs.assign(steps=steps, both_errors=both_errors(runs), replicate=_replicates(runs))
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


def _replicates(runs: pd.DataFrame) -> pd.Series[Any]:
    """The seed that makes runs independent: that of the base where bases differ, else that of fine-tuning."""
    return runs["base_seed"] if runs["base_seed"].nunique() > 1 else runs["seed"]


def _shared(tables: Sequence[pd.DataFrame]) -> pd.Index[Any]:
    """The pairs (seed, digit) that all settings have in common."""
    shared = tables[0].index
    for table in tables[1:]:
        shared = shared.intersection(table.index)
    return shared


def _why_not(runs: pd.DataFrame, seeds: int) -> str:
    """Return why nothing is tested; empty where it is."""
    ran = runs["replicate"].nunique()
    if ran < 2:
        return "Every setting ran with one seed, so small differences between settings may be chance."
    if seeds == 0:
        return "No seed and digit are common to all settings, so their differences may be chance."
    if seeds < LEAST_SEEDS:
        shared = f"All settings have {seeds} of {ran} seeds in common"
        return f"{shared}; a test needs at least {LEAST_SEEDS}."
    return ""


def _rankings(by_label: dict[str, tuple[Setting, pd.DataFrame]], means: dict[str, pd.DataFrame]) -> tuple[Ranking, ...]:
    import numpy as np
    from scipy.stats import ttest_1samp
    from statsmodels.stats.multitest import multipletests

    labels = list(by_label)
    values = np.stack([means[label][list(TESTED)].to_numpy() for label in labels])  # [settings, seeds, measures]
    pairs = np.array(list(combinations(range(len(labels)), 2)))
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]  # [pairs, seeds, measures]
    # A difference that does not vary over the seeds has no spread to compare its size with.
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
    listed = "; ".join(labels[:most])
    return listed if len(labels) <= most else f"{listed}; and {len(labels) - most} more"
