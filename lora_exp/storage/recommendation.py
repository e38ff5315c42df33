"""Which setting to use, for each task and for all classes together: chosen on some images, and judged on others.

A setting's runs repeat it over bases, or over seeds of one base. Where a setting's runs did not all end with errors to
compare, it is recommended only if no other has more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_exp.measures.intervals import further_values, mean_interval
from lora_exp.storage.table import finished, target_order
from lora_exp.storage.varied import asked, distinct, having, label, setting_names, task_names, varied

# Columns whose means over the runs of a setting a recommendation holds.
MEANS = (
    *("balanced_accuracy_before", "balanced_accuracy", "target_error_before", "target_error"),
    *("other_error_before", "other_error", "forgetting", "parameters_adapter", "overhead_percent"),
    *("chosen_gained", "chosen_forgetting", "elsewhere_gained", "elsewhere_forgetting"),
    *("beyond_shift", "beyond_shift_low", "beyond_shift_high"),
)


@dataclass(frozen=True)
class Recommendation:
    """The setting that gained most balanced accuracy, then forgot least, on the images on which runs are chosen.

    `task` holds what varies of the task, and `classes` the classes it is about; of all classes together, `task` has no
    `target`. `setting` holds what varies of the setting. `jobs` are its runs; the first is the one to show. `means`
    are over them, by column. `gained` and `beyond` have one value a base (or a seed of the only base, if not
    `over_bases`): the balanced accuracy gained on images that took no part in the choice, and the forgetting below that
    of a moved threshold, where there is one. `close` are the labels of the other settings that the same bases do not
    tell from it, of `others`; None with fewer than three bases in common.
    """

    task: dict[str, Any]
    classes: tuple[str, ...]
    setting: dict[str, Any]
    jobs: tuple[int, ...]
    means: dict[str, float]
    chosen_on: str
    gained: tuple[float, ...]
    beyond: tuple[float, ...]
    over_bases: bool
    others: int
    close: tuple[str, ...] | None

    @property
    def is_gain(self) -> bool:
        """Whether it gained balanced accuracy on images that took no part in the choice; else the base is better."""
        return self.means["elsewhere_gained"] > 0

    @property
    def task_label(self) -> str:
        """`class 3`, `shirt`, `all 10 classes`, with the data set and the classifier where these vary."""
        rest = {name: value for name, value in self.task.items() if name != "target"}
        if len(self.classes) == 1:
            return label({"target": self.classes[0], **rest}, ["target", *rest])
        whole = "both classes" if len(self.classes) == 2 else f"all {len(self.classes)} classes"
        return ", ".join([whole, label(rest, list(rest))] if rest else [whole])

    @property
    def setting_label(self) -> str:
        """`rank 4, alpha 1`; empty where no setting varies."""
        return label(self.setting, list(self.setting))

    @property
    def interval(self) -> tuple[float, float, float]:
        """The mean of `gained` with its 95 % interval over bases or seeds; limits of NaN for a single one."""
        return mean_interval(self.gained)

    @property
    def against_shift(self) -> tuple[float, float, float] | None:
        """The mean of `beyond` with its interval: over bases, or of one base the runs' own, over images."""
        if not self.beyond:
            return None
        if len(self.beyond) > 1:
            return mean_interval(self.beyond)
        return self.beyond[0], self.means["beyond_shift_low"], self.means["beyond_shift_high"]

    @property
    def further(self) -> int | None:
        """How many more bases or seeds would decide whether it gains; 0 where it is decided, None where too many."""
        return further_values(self.gained)


def recommendations(frame: pd.DataFrame) -> list[Recommendation]:
    """One recommendation a task with finished runs, after one for all classes of the same data set and classifier.

    `frame` comes from `read_sweep`. Without a finished run there is none.
    """
    return list(_each(frame))


def representative(frame: pd.DataFrame) -> int | None:
    """The job to show in detail: a run of the first recommendation. None without a finished run."""
    return next((one.jobs[0] for one in _each(frame)), None)


def _each(frame: pd.DataFrame) -> Iterator[Recommendation]:
    every = asked(distinct(frame))
    runs = finished(every)
    if runs.empty:
        return
    names = varied(every)  # also where only runs of one value have a result, as after halving
    task = task_names(names)
    wide = [name for name in task if name != "target"]
    for keys, group in _groups(runs, wide):
        classes = sorted(set(group["target"]), key=target_order)
        lost = having(every[~every["status"].isin(["finished", "stopped"])], keys)
        if len(classes) > 1:
            yield _best(keys, classes, group, names, lost)
        of_class = {keys["target"]: (keys, own) for keys, own in _groups(group, ["target"])}
        for name in classes:
            own = keys | ({"target": name} if "target" in task else {})
            yield _best(own, [name], of_class[name][1], names, having(lost, own))


def _best(
    task: dict[str, Any], classes: Sequence[str], runs: pd.DataFrame, names: Sequence[str], lost: pd.DataFrame
) -> Recommendation:
    over_bases = runs["base_seed"].nunique() > 1
    runs = runs.assign(replicate=runs["base_seed" if over_bases else "seed"].astype("Float64").fillna(-1))
    own = setting_names(names)
    settings = _groups(runs, own)
    whole = [(-len(having(lost, keys)), len(group.groupby(["replicate", "target"]))) for keys, group in settings]
    scores = [(group["chosen_gained"].mean(), -group["chosen_forgetting"].mean()) for _, group in settings]
    at = max(range(len(settings)), key=lambda place: (whole[place], scores[place]))
    setting, group = settings[at]
    group = group.assign(order=group["target"].map(target_order)).sort_values(["order", "job"], kind="stable")
    over = group.groupby("replicate")
    others = [
        (label(keys, own), _is_close(group, other)) for place, (keys, other) in enumerate(settings) if place != at
    ]
    known = bool(others) and all(close is not None for _, close in others)
    return Recommendation(
        task=task,
        classes=tuple(classes),
        setting=setting,
        jobs=tuple(map(int, group["job"])),
        means={name: float(group[name].mean()) for name in MEANS},
        chosen_on=str(group["chosen_on"].iloc[0]),
        gained=tuple(map(float, over["elsewhere_gained"].mean().dropna())),
        beyond=tuple(map(float, over["beyond_shift"].mean().dropna())),
        over_bases=over_bases,
        others=len(others),
        close=tuple(name for name, close in others if close) if known else None,
    )


def _is_close(best: pd.DataFrame, other: pd.DataFrame) -> bool | None:
    """Whether the interval of the paired difference has zero inside; None with fewer than three bases in common."""
    cells = [own.groupby(["replicate", "target"])["elsewhere_gained"].mean() for own in (best, other)]
    differences = (cells[0] - cells[1]).dropna().groupby(level="replicate").mean()
    if len(differences) < 3:
        return None
    _, low, high = mean_interval(differences.tolist())
    return not (low > 0 or high < 0)


def _groups(runs: pd.DataFrame, names: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The runs by their values of these columns, in the order of their first runs."""
    if not names:
        return [({}, runs)]
    groups = runs.groupby(list(names), sort=False, dropna=False)
    return [(dict(zip(names, keys, strict=True)), group) for keys, group in groups]
