"""Settings compared over their seeds: with doing nothing, with a moved threshold, and with each other.

The runs of a seed are averaged over targets first, so n is the number of seeds: those of the bases, if they differ,
since runs over one base are not independent. Paired t tests compare the settings over the seeds and targets that all of
them have. Holm's procedure (see `statistics`) corrects the p values, those against base and threshold together, then
those of all pairs and measures. Settings differ by their values, not by how these are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd

from lora_exp.report.statistics import CHANCE, Interval, holm, interval
from lora_exp.report.tables import points
from lora_exp.storage.table import finished
from lora_exp.storage.varied import SEEDS, asked, distinct, having, label, varied

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SEEDS = 3  # for a test; with two, a difference that is the same twice by chance would seem certain
MEASURE_NAMES = {
    "balanced_accuracy_gained": "gain in balanced accuracy",
    "target_error": "error on the target",
    "other_error": "error on the other classes",
    "forgetting": "forgetting",
    "beyond_shift": "forgetting below that of a moved threshold",
}
# Measures by which settings are compared with each other: whether more is better.
TESTED = {"balanced_accuracy_gained": True, "target_error": False, "forgetting": False}
# What each setting is compared with first: the measure that is zero for it, and its name.
CONTESTANTS = {"balanced_accuracy_gained": "doing nothing", "beyond_shift": "moving one threshold"}


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, which differ in target and seed only; `means` are over the seeds, rates from 0 to 1.

    `chances` are the corrected p values against the contestants, by measure; empty with too few seeds. `lost` counts
    the runs without errors to compare.
    """

    values: dict[str, Any]
    runs: int
    lost: int
    seeds: int
    means: dict[str, Interval]
    deviations: dict[str, float]
    parameters: float
    chances: dict[str, float]

    @property
    def label(self) -> str:
        """`rank 4, alpha 1`."""
        return label(self.values, list(self.values))

    @property
    def with_errors(self) -> str:
        """The label with its gain and its cost."""
        gained, forgetting = (self.means[name].mean for name in ("balanced_accuracy_gained", "forgetting"))
        return f"{self.label} (balanced accuracy {points(gained)} points, forgetting {points(forgetting)} points)"

    def standing(self, measure: str) -> int:
        """1 if significantly above zero, -1 if below, else 0; a setting whose runs diverged is never above."""
        if self.chances.get(measure, 1.0) >= CHANCE:
            return 0
        return -1 if self.means[measure].mean < 0 else int(not self.lost)


@dataclass(frozen=True)
class Ranking:
    """The first setting by the mean of a measure, and the corrected p value of its difference from each other one."""

    measure: str
    first: Setting
    others: tuple[tuple[Setting, float], ...]


@dataclass(frozen=True)
class Comparison:
    """All settings of a sweep in the order of their first runs; no rankings where `why_not` says why.

    `varied` says what differs between the seeds.
    """

    settings: tuple[Setting, ...]
    seeds: int
    varied: str
    rankings: tuple[Ranking, ...]
    why_not: str

    def sentences(self) -> list[str]:
        """Describe the comparison; "best" and "better" name significant differences only."""
        found = []
        tested = [setting for setting in self.settings if setting.chances]
        for measure, contestant in CONTESTANTS.items() if tested else ():
            better, worse = (
                [s.label or "the setting" for s in tested if s.standing(measure) == sign] for sign in (1, -1)
            )
            text = f"Better than {contestant}: {_few(better)}" if better else f"No setting is better than {contestant}"
            found.append(f"{text}{f'; worse: {_few(worse)}' if worse else ''} ({MEASURE_NAMES[measure]}).")
        if self.why_not:
            return [*found, self.why_not]
        for ranking in self.rankings:
            worse = [other.label for other, chance in ranking.others if chance < CHANCE]
            close = [other.label for other, chance in ranking.others if chance >= CHANCE]
            first, name = ranking.first, MEASURE_NAMES[ranking.measure]
            word = "Highest" if TESTED[ranking.measure] else "Lowest"
            if first.lost:
                found.append(f"{word} {name}: {first.with_errors}, but {first.lost} of its runs diverged or failed.")
            elif not close and first.standing("balanced_accuracy_gained") > 0:
                found.append(f"Best {name}: {first.with_errors}, better than doing nothing and every other setting.")
            else:
                than = f"better than {_few(worse)}, " if worse else ""
                rest = f"no significant difference from {_few(close) if worse else 'any other setting'}"
                if not close:
                    than, rest = "better than every other setting, ", "but not better than doing nothing"
                found.append(f"{word} {name}: {first.with_errors}, {than}{rest}.")
        if found:
            tests = len(TESTED) * math.comb(len(self.settings), 2)
            pairs = f", and for the {tests} of all pairs and measures" if self.rankings else ""
            found.append(
                f"Significance: paired t tests over {self.varied}, p < {CHANCE:g} with Holm's correction for the "
                f"{len(CONTESTANTS) * len(tested)} tests against doing nothing and a moved threshold{pairs}."
            )
        return found


def compare(frame: pd.DataFrame) -> Comparison | None:
    """Compare the settings of a sweep, `frame` from `read_sweep`; None without a finished run."""
    frame = asked(distinct(frame))
    runs = finished(frame)
    if runs.empty:
        return None
    over_bases = runs["base_seed"].nunique() > 1
    every = frame.assign(
        steps=frame["steps"].where(frame["epochs"].isna()),  # steps that follow from epochs and target are no setting
        replicate=frame["base_seed"] if over_bases else frame["seed"],
    )
    runs = finished(every)
    names = [name for name in varied(runs) if name not in ("target", *SEEDS)]
    groups = list(runs.groupby(names, sort=False, dropna=False)) if names else [((), runs)]
    lost = every[~every["status"].isin(["finished", "stopped"])]
    settings = [_setting(dict(zip(names, keys, strict=True)), group, lost) for keys, group in groups]
    settings = _against_contestants(settings, [group for _, group in groups])
    cells = [group.groupby(["replicate", "target"])[list(TESTED)].mean() for _, group in groups]
    shared = pd.concat(cells, axis=1, join="inner", keys=range(len(cells)))  # the seeds and targets of all settings
    means = shared.groupby(level="replicate").mean()
    count = len(means)
    seeds = f"{count} bases" if over_bases else f"{count} orders of images over one base, which say nothing of others"
    if len(settings) < 2:
        return Comparison(tuple(settings), count, seeds, (), "")
    why_not = _why_not(runs["replicate"].nunique(), count)
    rankings = () if why_not else _rankings(settings, means)
    return Comparison(tuple(settings), count, seeds, rankings, why_not)


def _setting(values: dict[str, Any], group: pd.DataFrame, lost: pd.DataFrame) -> Setting:
    by_seed = group.groupby("replicate")[list(MEASURE_NAMES)].mean()
    if by_seed.empty:  # imported adapters, whose seeds aren't known
        by_seed = group[list(MEASURE_NAMES)].mean().to_frame().T
    return Setting(
        values,
        len(group),
        len(having(lost, values)),
        int(group["replicate"].nunique()),
        {name: interval(by_seed[name].tolist()) for name in MEASURE_NAMES},
        {name: float(by_seed[name].std()) for name in MEASURE_NAMES},
        float(group["parameters_adapter"].mean()),
        {},
    )


def _against_contestants(settings: Sequence[Setting], groups: Sequence[pd.DataFrame]) -> list[Setting]:
    """Test each setting with enough seeds against doing nothing and a moved threshold."""
    import numpy as np

    columns = list(CONTESTANTS)
    values = [group.groupby("replicate")[columns].mean().dropna() for group in groups]
    tested = [at for at, own in enumerate(values) if len(own) >= LEAST_SEEDS]
    if not tested:
        return list(settings)
    chances = np.array([_chances(values[at].to_numpy(dtype=float)) for at in tested])
    corrected = holm(chances)
    found = list(settings)
    for at, own in zip(tested, corrected, strict=True):
        found[at] = replace(settings[at], chances=dict(zip(columns, own.tolist(), strict=True)))
    return found


def _why_not(ran: int, seeds: int) -> str:
    """Return why nothing is tested when `seeds` of the seeds that ran are common to all settings; empty where it is."""
    if ran < 2:
        return "Every setting ran with one seed, so small differences between settings may be chance."
    if seeds == 0:
        return "No seed and target are common to all settings, so their differences may be chance."
    if seeds < LEAST_SEEDS:
        return f"All settings have {seeds} of {ran} seeds in common; a test needs at least {LEAST_SEEDS}."
    return ""


def _rankings(settings: Sequence[Setting], means: pd.DataFrame) -> tuple[Ranking, ...]:
    """Rank the settings by each measure. `means` has one row a seed, and for each setting one column a measure."""
    import numpy as np

    values = means.to_numpy(dtype=float).reshape(len(means), len(settings), len(TESTED))
    pairs = np.array(list(combinations(range(len(settings)), 2)))
    corrected = holm(_chances(values[:, pairs[:, 0]] - values[:, pairs[:, 1]]))  # of [seeds, pairs, measures]
    rankings = []
    for measure, (name, more) in enumerate(TESTED.items()):
        order = values[:, :, measure].mean(axis=0) * (-1 if more else 1)
        first = int(np.where(np.isnan(order), np.inf, order).argmin())
        mine = (pairs == first).any(axis=1)
        others = [settings[other] for other in pairs[mine].sum(axis=1) - first]
        found = tuple(zip(others, corrected[mine, measure].tolist(), strict=True))
        rankings.append(Ranking(name, settings[first], found))
    return tuple(rankings)


def _chances(differences: NDArray[Any]) -> NDArray[Any]:
    """The p values of t tests that the mean of the first axis is zero; 1 where nothing can be tested.

    A difference that does not vary over the seeds has no spread to compare its size with.
    """
    import numpy as np
    from scipy.stats import ttest_1samp

    varies = np.ptp(differences, axis=0) > 1e-12  # false where a value is missing, too
    chances = np.ones(varies.shape)
    if varies.any():
        chances[varies] = ttest_1samp(differences[:, varies], 0.0).pvalue
    return chances


def _few(labels: Sequence[str], most: int = 6) -> str:
    listed = "; ".join(labels[:most])
    return listed if len(labels) <= most else f"{listed}; and {len(labels) - most} more"
