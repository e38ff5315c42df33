"""What a contest found in plain sentences, and as it is printed when the contest ends.

A difference is the measure of an arm minus that of its opponent, in percentage points: below zero the arm errs less.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_exp.contest.comparison import (
    BETTER,
    LOST,
    MOST_BASES,
    NOT_TUNED,
    NOTHING,
    OPEN,
    SURE,
    WITHIN,
    WORSE,
    Comparison,
)
from lora_exp.contest.protocol import CONTEST, Protocol
from lora_exp.contest.verdict import Standing, Verdict
from lora_exp.report.statistics import in_unit
from lora_exp.storage.varied import NONE

WIDTH = 80
MEASURES = {"balanced_error": "balanced error", "both_errors": "sum of both errors"}
MEANINGS = {
    "balanced_error": "the mean error rate of all classes, each with the same weight",
    "both_errors": "the error rate on the target plus the mean error rate on the other classes",
}
SIGN = "Below 0 the arm errs less than its opponent"
SHORT = {OPEN: "not shown", NOTHING: "no runs"}  # the other outcomes are short enough
STYLES = {BETTER: "green", WORSE: "red", NOT_TUNED: "yellow", LOST: "yellow"}
HEADER = 15  # columns of a terminal


def terminal_text(verdict: Verdict, terminal: bool, width: int = WIDTH) -> str:
    """The table of a verdict, its sentences and the hash of its protocol; coloured if `terminal`. The caller prints it.

    No line is wider than `width` columns.
    """
    width = max(width, WIDTH)
    protocol = verdict.protocol
    parts = []
    if verdict.standings:
        console = Console(highlight=False, markup=False, emoji=False, width=width, force_terminal=terminal)
        with console.capture() as captured:
            console.print(_table(verdict))
        opening = (
            f"{count(len(protocol.arms), 'arm')}, judged on {count(len(protocol.judging), 'base')}: "
            f"{MEASURES[protocol.measure]} in %, then its difference to each opponent in points. {SIGN}."
        )
        table = [line.rstrip() for line in captured.get().splitlines()]
        parts += [_filled([opening], width), "\n".join(table), _filled(list(_marks(verdict)), width)]
    parts += [_filled(sentences(verdict), width), f"SHA-256 of the protocol, {CONTEST}:\n{protocol.sha256}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def sentences(verdict: Verdict) -> list[str]:
    """Three to six sentences: each opponent in turn, the power, what was not tuned, what was lost; or why none yet."""
    if verdict.why_not:
        tried = [f"{spoken(name)} {sum(bool(one.by_base) for one in own)}" for name, own in verdict.tried.items()]
        so_far = (
            f"Points tried so far: {listed(tried)}." if any(verdict.tried.values()) else "Nothing has been tried yet."
        )
        return [f"No verdict yet: {verdict.why_not}.", so_far]
    protocol = verdict.protocol
    over = f"In {MEASURES[protocol.measure]} over {count(len(protocol.judging), 'base')}, c"
    found = [_against(verdict, opponent, "C" if at else over) for at, opponent in enumerate(verdict.opponents)]
    found += [_power(verdict), _not_tuned(verdict), _lost(verdict)]
    return [sentence for sentence in found if sentence]


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def spoken(name: str) -> str:
    """The name of an arm in a sentence: `lora (rank 4)` for `lora, rank 4`, whose comma would seem to part two arms."""
    method, comma, more = name.partition(", ")
    return f"{method} ({more})" if comma else name


def count(number: int, noun: str) -> str:
    """`1 base` or `2 bases`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def difference(value: float) -> str:
    """Write a difference in points with its sign; a dash for none."""
    return NONE if math.isnan(value) else in_unit(value, "points")


def percent(value: float) -> str:
    """Write a measure that is in percent already; a dash for none."""
    return NONE if math.isnan(value) else in_unit(value, "%", signed=False)


def chance(value: float) -> str:
    """`p = 0.032` or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def rate(standing: Standing) -> str:
    """The learning rate with which an arm was judged, with a star where it is not tuned."""
    return f"{standing.best.rate:g}{'*' if standing.end else ''}"


def judging_runs(protocol: Protocol) -> int:
    """How many runs judge each arm."""
    return len(protocol.judging) * protocol.seeds * max(1, len(protocol.targets))


def compared_with(verdict: Verdict, opponent: str) -> list[Comparison]:
    """The comparisons of all arms with an opponent."""
    found = (standing.against(opponent) for standing in verdict.standings)
    return [one for one in found if one is not None]


def further_text(further: int | None) -> str:
    """How many more bases would raise the power to SURE."""
    return f"more than {MOST_BASES:,} bases in all" if further is None else count(further, "more base")


def _against(verdict: Verdict, opponent: str, opening: str) -> str:
    """`Compared with the base, lora and dora are better; for pissa no difference is shown.`"""
    compared, margin = compared_with(verdict, opponent), f"{verdict.protocol.margin:g} points"
    phrases = []
    for outcome in (BETTER, WITHIN, OPEN, WORSE, NOTHING):
        for within in (False, True):
            group = [spoken(one.arm) for one in compared if one.outcome == outcome and one.is_within == within]
            if not group:
                continue
            who, be = listed(group), "is" if len(group) == 1 else "are"
            if len(group) == len(compared) > 2:
                who = f"all {len(group)} arms" if len(group) == len(verdict.standings) else f"all {len(group)} others"
            less = f", though by less than {margin} (TOST)" if within else ""
            phrases.append(
                {
                    BETTER: f"{who} {be} better{less}",
                    WORSE: f"{who} {be} worse{less}",
                    WITHIN: f"{who} {be} within {margin} (TOST)",
                    OPEN: f"for {who} no difference is shown",
                    NOTHING: f"for {who} there are no runs to compare",
                }[outcome]
            )
    return f"{opening}ompared with {spoken(opponent)}, {'; '.join(phrases)}." if phrases else ""


def _power(verdict: Verdict) -> str:
    """With which chance a difference of the margin would have been shown, where none is."""
    still = [one for standing in verdict.standings for one in standing.comparisons if one.outcome == OPEN]
    if not still:
        return ""
    low, high = (f"{100 * bound(one.power for one in still):.0f}" for bound in (min, max))
    where = f" ({spoken(still[0].arm)} against {spoken(still[0].opponent)})" if len(still) == 1 else ""
    text = (
        f"Where no difference is shown, a real one of {verdict.protocol.margin:g} points would be shown with a chance "
        f"of {low if low == high else f'{low} to {high}'} %{where}"
    )
    weak = [one for one in still if one.power < SURE]
    known = sorted({one.further for one in weak if one.further is not None})
    many = [one for one in weak if one.further is None]
    if known:
        least = f"{known[0]} to " if len(known) > 1 else ""
        text += f"; {least}{further_text(known[-1])} would raise it to {100 * SURE:.0f} %"
    if many:
        # The luck of tuning stays, however many bases judge.
        more = "more bases of selection" if any(one.luck for one in many) else further_text(None)
        whom = f" for {listed(list(dict.fromkeys(spoken(one.arm) for one in many)))}" if known else ""
        text += f", and {more}{whom}" if known else f"; {more} would raise it to {100 * SURE:.0f} %"
    return f"{text}."


def _not_tuned(verdict: Verdict) -> str:
    """Which arms are not tuned, and what follows from that."""
    arms = [one for one in verdict.standings if one.end]
    if not arms:
        return ""
    named = "; ".join(
        [f"{spoken(one.arm.name)}, whose best rate {one.best.rate:g} is the {one.end} tried" for one in arms]
    )
    they = "it is" if len(arms) == 1 else "they are"
    text = f"Not tuned: {named}. A better rate may lie beyond, so {they} not called worse"
    reference = verdict.protocol.reference
    return text + (
        f", and no arm is called better than {spoken(reference)}."
        if reference in [one.arm.name for one in arms]
        else "."
    )


def _lost(verdict: Verdict) -> str:
    """Which arms lost runs in judging."""
    every = judging_runs(verdict.protocol)
    lost = [f"{one.lost} of {every} of {spoken(one.arm.name)}" for one in verdict.standings if one.lost]
    return f"Judging runs that did not end: {listed(lost)}. An arm that lost runs is not called better." if lost else ""


def _table(verdict: Verdict) -> Table:
    """A row an arm: its rate, its measure, and its difference to each opponent with the outcome."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    drawn.add_column("arm", vertical="bottom", overflow="fold")
    for head in ("rate", "%"):
        drawn.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    for opponent in verdict.opponents:
        drawn.add_column("\n".join(textwrap.wrap(opponent, HEADER)), vertical="bottom", no_wrap=True)
    for one in verdict.standings:
        cells = [_cell(one.against(opponent)) for opponent in verdict.opponents]
        drawn.add_row(one.arm.name, rate(one), percent(one.measure.mean), *cells)
    if verdict.base is not None:
        drawn.add_row("the base", NONE, percent(verdict.base.mean), *([NONE] * len(verdict.opponents)))
    return drawn


def _cell(one: Comparison | None) -> Text:
    if one is None:
        return Text(NONE)
    outcome, number = one.outcome, difference(one.interval.mean)
    word = SHORT.get(outcome, outcome)
    return Text(word if number == NONE else f"{number} {word}", style=STYLES.get(outcome, ""))


def _marks(verdict: Verdict) -> Iterator[str]:
    """What the short words of the table mean, of those that stand there."""
    outcomes = {one.outcome for standing in verdict.standings for one in standing.comparisons}
    if OPEN in outcomes:
        yield f"{SHORT[OPEN]}: {OPEN}"
    if WITHIN in outcomes:
        yield f"within: shown to differ by less than {verdict.protocol.margin:g} points"
    if any(one.end for one in verdict.standings):
        yield "*: the best rate is the lowest or the highest tried, so the arm is not tuned"


def _filled(texts: Sequence[str], width: int) -> str:
    return "\n".join(textwrap.fill(text, width, break_on_hyphens=False) for text in texts)
