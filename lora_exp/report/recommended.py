"""The recommendation in words and as a table: what to use for each class, its gain and price, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_exp.measures.gains import TEST_HALF, Estimate, beyond_words
from lora_exp.report.document import Strong, Table
from lora_exp.report.shown import short
from lora_exp.report.tables import percent, points
from lora_exp.storage.recommendation import Recommendation
from lora_exp.storage.varied import NONE
from lora_exp.storage.words import KEEP

LONGEST = 60  # letters of a task
CLOSE = 3  # labels listed of settings from which the same bases show no difference
HEADINGS = [
    *("for", "recommended", "balanced accuracy (%)", "gained (points)", "target recall (%)"),
    *("price: forgetting (points)", "forgets less than a moved threshold (points)", "parameters", "how sure"),
]
# Those of the columns that are of the other half alone, where the choice was made on one half of the test images.
OTHER_HALF = {
    "gained (points)": "gained, other half (points)",
    "price: forgetting (points)": "price: forgetting, other half (points)",
}
NOTE = (
    "A setting is chosen by the balanced accuracy that it gains on {chosen}, and reported on {judged}. {seeds}"
    "Balanced accuracy and recall before and after, and the comparison with a moved threshold, are of all test images. "
    "Where it gains nothing, the base as it is is recommended, and the row shows that setting all the same."
)
JUDGED_ON = {"validation images": "the test images", "half of the test images": "the other half"}


def headline(found: Sequence[Recommendation]) -> str:
    """One sentence: what to use, what it gains, at what price, and how sure that is."""
    first, *classes = found
    many = len(first.classes) > 1
    who = f"For {first.task_label}, " if many or first.task else ""
    what = first.setting_label or ("this setting" if len(first.jobs) > 1 else "this run")
    gained, forgetting = (points(first.means[f"elsewhere_{name}"]) for name in ("gained", "forgetting"))
    effect = f"{gained} points of balanced accuracy, at {forgetting} points of forgetting{_against_shift(first)}"
    if first.is_gain:
        text = f"{who}use {what}: {effect}."
    else:
        nearest = f"the nearest, {what}," if first.others else what
        text = f"{who}keep {KEEP}: {nearest} has {effect}."
    tasks = [{name: value for name, value in one.task.items() if name != "target"} for one in found]
    of_class = [one for one, task in zip(classes, tasks[1:], strict=True) if task == tasks[0]]
    better = f" Class by class, {sum(one.is_gain for one in of_class)} of {len(of_class)} gain." if many else ""
    rest = " The table has the other data sets and classifiers." if any(task != tasks[0] for task in tasks) else ""
    return f"{text[0].upper()}{text[1:]} {how_sure(first)}.{better}{rest}"


def recommended_table(found: Sequence[Recommendation]) -> Table:
    """A row a recommendation, below HEADINGS; with a further column where other settings are as good."""
    with_close = any(one.close is not None for one in found)
    headings = [*HEADINGS, *(["no difference shown from"] if with_close else [])]
    if found[0].chosen_on == TEST_HALF:
        headings = [OTHER_HALF.get(heading, heading) for heading in headings]
    return headings, [[*_cells(one), *([_close(one)] if with_close else [])] for one in found]


def note(found: Sequence[Recommendation]) -> str:
    """On which images settings are chosen and judged."""
    on = found[0].chosen_on
    count, noun = len(found[0].gained), _noun(found[0])
    over = f"Means are over {count} {noun}, with Student's 95 % interval. " if count > 1 else ""
    return NOTE.format(chosen=on, judged=JUDGED_ON.get(on, "the same images"), seeds=over)


def how_sure(one: Recommendation) -> str:
    """`5 bases, +0.90 to +1.86: decided`, `3 bases, ...: 4 more to decide`, `1 base: 2 more at least`."""
    count, noun = len(one.gained), _noun(one)
    _, low, high = one.interval
    if count < 2:
        return "1 base: 2 more at least"
    start = f"{count} {noun}, {points(low)} to {points(high)}"
    if one.further == 0:
        return f"{start}: decided"
    return f"{start}: {'over 100' if one.further is None else one.further} more to decide"


def _noun(one: Recommendation) -> str:
    return "bases" if one.over_bases or len(one.gained) < 2 else "seeds"


def _cells(one: Recommendation) -> list[str]:
    means = one.means
    chosen = one.setting_label or ("all runs alike" if len(one.jobs) > 1 else "the run")
    before = percent(1 - means["target_error_before"])
    return [
        short(one.task_label, LONGEST),
        Strong(chosen) if one.is_gain else f"{KEEP} (next: {chosen})",
        _pair(means["balanced_accuracy_before"], means["balanced_accuracy"]),
        points(means["elsewhere_gained"]),
        f"{before} → {percent(1 - means['target_error'])}",
        points(means["elsewhere_forgetting"]),
        points(means["beyond_shift"]) if one.beyond else NONE,
        f"{means['parameters_adapter']:,.0f}",
        how_sure(one),
    ]


def _pair(before: float, after: float) -> str:
    return NONE if math.isnan(before) else f"{percent(before)} → {percent(after)}"


def _close(one: Recommendation) -> str:
    if one.close is None:
        return NONE
    if not one.close:
        return "none"
    more = len(one.close) - CLOSE
    return "; ".join(one.close[:CLOSE]) + (f"; {more} more" if more > 0 else "")


def _against_shift(one: Recommendation) -> str:
    """How it compares with a moved threshold, by the interval."""
    if one.against_shift is None:
        return ""
    return f" ({beyond_words(Estimate(*one.against_shift)).replace(' forgetting', '')})"
