"""The tables of a verdict: how the arms compare, equivalence and power, what each cost, and how each was tuned.

A line break in a cell is one on the page, and a space elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lora_exp.contest.comparison import (
    BETTER,
    LEAST_BASES,
    NOT_TUNED,
    NOTHING,
    OPEN,
    SURE,
    WITHIN,
    WORSE,
    Comparison,
)
from lora_exp.contest.verdict import Standing, Tried, Verdict
from lora_exp.contest.words import MEASURES, chance, count, difference, further_text, percent
from lora_exp.report.document import Grid
from lora_exp.report.statistics import CHANCE, Interval
from lora_exp.storage.varied import NONE


def main_table(verdict: Verdict) -> Grid:
    """A row an arm: best rate, points tried, measure, and each difference with interval, corrected p and outcome."""
    measure = f"{MEASURES[verdict.protocol.measure]} (%)"
    with_more = any(one.best.more for one in verdict.standings)
    headings = [
        "arm",
        "best point" if with_more else "best rate",
        "points tried",
        measure,
        *(f"minus {one}" for one in verdict.opponents),
    ]
    rows = [
        [
            one.arm.name,
            f"{one.best.label}{'*' if one.end else ''}",
            str(len(verdict.tried[one.arm.name])),
            _with_limits(one.measure, percent),
            *(_compared(verdict, one, opponent) for opponent in verdict.opponents),
        ]
        for one in verdict.standings
    ]
    if verdict.base is not None:
        rows.append(["the base", NONE, NONE, _with_limits(verdict.base, percent), *([NONE] * len(verdict.opponents))])
    return Grid((headings, rows), words=1)


def power_table(verdict: Verdict) -> Grid:
    """A row an arm: for each opponent, whether the margin is shown to hold, the power, and the bases to add."""
    rows = [
        [one.arm.name, *(_powerful(verdict, one.against(opponent)) for opponent in verdict.opponents)]
        for one in verdict.standings
    ]
    return Grid((["arm", *(f"against {one}" for one in verdict.opponents)], rows), words=1)


def cost_table(verdict: Verdict) -> Grid:
    """A row an arm: forgetting, balanced accuracy, trained parameters, and what tuning and judging it took."""
    with_notes = any(arm.note for arm in verdict.protocol.arms)
    headings = ["arm", *(["size"] if with_notes else []), "forgetting (points)", "balanced accuracy (%)"]
    headings += ["trained parameters", "jobs", "job-steps", "core seconds"]
    rows = [
        [
            one.arm.name,
            *([one.arm.note or NONE] if with_notes else []),
            _with_limits(one.forgetting, difference),
            _with_limits(one.balanced_accuracy, percent),
            f"{one.arm.parameters:,}",
            f"{one.jobs:,}",
            f"{one.steps:,}",
            f"{one.seconds:,.0f}" if one.seconds >= 10 else f"{one.seconds:.1f}",
        ]
        for one in verdict.standings
    ]
    return Grid((headings, rows), words=2 if with_notes else 1)


def selection_table(verdict: Verdict) -> Grid:
    """A row a point that an arm tried: whether it was chosen, its measure on validation images, and runs lost."""
    best = {one.arm.name: one for one in verdict.standings}
    headings = ["arm", "rate", "chosen", f"{MEASURES[verdict.protocol.measure]}, validation (%)", "bases", "not ended"]
    rows = [
        [
            name,
            one.point.label,
            _chosen(best.get(name), one),
            _validated(one),
            str(len(one.by_base)),
            str(one.lost),
        ]
        for name, own in verdict.tried.items()
        for one in own
    ]
    return Grid((headings, rows), words=3)


def limits_of(one: Tried) -> tuple[float, float]:
    """The 95 % interval of a point's mean over its bases, or their range where they are too few for an interval."""
    values, found = one.by_base.values(), one.interval
    return (found.low, found.high) if len(values) >= LEAST_BASES else (min(values), max(values))


def limits_text(verdict: Verdict) -> str:
    """What these limits are."""
    bases = len(verdict.protocol.selection)
    return f"95 % interval over {bases} bases" if bases >= LEAST_BASES else f"range over {count(bases, 'base')}"


def outcome_text(verdict: Verdict, one: Comparison) -> str:
    """The outcome of a comparison in a table, with the margin that a difference is shown to be within."""
    within = f"within {verdict.protocol.margin:g}"
    if not one.is_tested:
        return "too few bases" if one.differences else NOTHING
    outcome = one.outcome
    if outcome in (BETTER, WORSE) and one.is_within:
        return f"{outcome}, {within}"
    return within if outcome == WITHIN else outcome


def _compared(verdict: Verdict, standing: Standing, opponent: str) -> str:
    """`-1.20 (-1.42 to -0.98),` and below it `p < 0.001, better`; with n where bases are missing."""
    one = standing.against(opponent)
    if one is None:
        return NONE
    outcome, bases = outcome_text(verdict, one), len(one.differences)
    if not bases:
        return outcome
    missing = f", n = {bases}" if bases < len(verdict.protocol.judging) else ""
    told = f"{chance(one.chance)}, {outcome}" if one.is_tested else outcome
    return f"{_with_limits(one.interval, difference)},\n{told}{missing}"


def _powerful(verdict: Verdict, one: Comparison | None) -> str:
    """`p = 0.420, not shown,`, and below it `power 34 %, 7 more bases,` and `luck 0.05`, if there is any."""
    if one is None or not one.is_tested:
        return NONE
    why_not = "not shown" if one.equivalence >= CHANCE else "runs lost" if one.lost else NOT_TUNED
    shown = f"within {verdict.protocol.margin:g}" if one.is_within else why_not
    power = f"power {100 * one.power:.0f} %"
    if one.outcome == OPEN and one.power < SURE:
        # The luck of tuning stays, however many bases judge.
        power += ", more bases of selection" if one.further is None and one.luck else f", {further_text(one.further)}"
    luck = f",\nluck {f'{one.luck:.2f}' if math.isfinite(one.luck) else 'unknown'}" if one.luck else ""
    return f"{chance(one.equivalence)}, {shown},\n{power}{luck}"


def _chosen(standing: Standing | None, one: Tried) -> str:
    if standing is None or standing.best != one.point:
        return ""
    return f"chosen, {standing.end}: not tuned" if standing.end else "chosen"


def _validated(one: Tried) -> str:
    """The mean of a point with its limits, if it has more than one base."""
    if len(one.by_base) < 2:
        return percent(one.interval.mean)
    low, high = limits_of(one)
    return f"{percent(one.interval.mean)} ({percent(low)} to {percent(high)})"


def _with_limits(value: Interval, written: Callable[[float], str]) -> str:
    """`3.60 (3.31 to 3.89)`; without limits where there are none."""
    limits = f" ({written(value.low)} to {written(value.high)})" if math.isfinite(value.low) else ""
    return f"{written(value.mean)}{limits}"
