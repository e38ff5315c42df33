"""Which settings explain the differences between the runs of a sweep, and how sure that is.

A random forest learns a measure from the settings (Breiman 2001, *Machine Learning* 45, 5-32). The permutation
importance of a setting is the fall of R², on runs that the forest did not learn from, when that setting is shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_exp.storage.table import finished
from lora_exp.storage.varied import distinct, varied

LEAST_RUNS = 20  # fewer teach a forest nothing
MOST_RUNS = 600  # of a larger sweep an even selection
FOLDS, TREES, REPEATS = 5, 30, 4


@dataclass(frozen=True)
class Importance:
    """Of one measure: the share of its variance that the forest explains on runs that it did not learn from.

    `keys` has for each setting the fall of R² and its standard deviation over folds and shuffles, largest first.
    """

    explained: float
    keys: dict[str, tuple[float, float]]


def importances(frame: pd.DataFrame, measures: Sequence[str]) -> dict[str, Importance]:
    """The importance of each varied setting for each of `measures` (columns); none with few runs or one setting.

    A measure that some runs lack, or that does not vary, is left out.
    """
    runs = distinct(finished(frame))
    names = varied(runs)
    if len(names) < 2 or len(runs) < LEAST_RUNS:
        return {}
    runs = runs.iloc[:: -(-len(runs) // MOST_RUNS)]
    known = [name for name in measures if runs[name].notna().all() and runs[name].nunique() > 1]
    return {name: _importance(runs, names, name) for name in known}


def _importance(runs: pd.DataFrame, names: Sequence[str], measure: str) -> Importance:
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    # Numbers as they are; words, classes and absent values by their order, which a tree splits as often as it needs.
    settings = np.column_stack([_numbers(runs[name]) for name in names])
    values = runs[measure].to_numpy(dtype=float)
    random = np.random.default_rng(0)
    lost: list[list[float]] = [[] for _ in names]
    missed = 0.0
    for learnt, judged in KFold(FOLDS, shuffle=True, random_state=0).split(settings):
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0).fit(settings[learnt], values[learnt])
        spread = float(values.var()) * len(judged)
        own = float(((forest.predict(settings[judged]) - values[judged]) ** 2).sum())
        missed += own
        for column, found in enumerate(lost):
            copies = np.repeat(settings[judged][None], REPEATS, axis=0)
            for copy in copies:
                copy[:, column] = random.permutation(copy[:, column])
            guesses = forest.predict(copies.reshape(-1, len(names))).reshape(REPEATS, -1)
            found += ((((guesses - values[judged]) ** 2).sum(axis=1) - own) / spread).tolist()
    keys = {name: (float(np.mean(own)), float(np.std(own))) for name, own in zip(names, lost, strict=True)}
    explained = 1 - missed / float(((values - values.mean()) ** 2).sum())
    return Importance(explained, dict(sorted(keys.items(), key=lambda item: -item[1][0])))


def _numbers(column: pd.Series[Any]) -> pd.Series[float]:
    if pd.api.types.is_numeric_dtype(column):
        return column.astype("float64").fillna(-1.0)
    return pd.Series(pd.factorize(column.astype("string").fillna(""), sort=True)[0], dtype="float64")
