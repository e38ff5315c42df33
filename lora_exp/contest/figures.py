"""The figures of a verdict: the differences of all arms with their intervals, and the measure by learning rate.

Outcomes and tuning differ in the shape and the filling of marks, not in colour alone.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from lora_exp.contest.comparison import BETTER, LOST, NOT_TUNED, NOTHING, OPEN, WITHIN, WORSE, Comparison
from lora_exp.contest.space import LOWEST
from lora_exp.contest.tables import limits_of, limits_text
from lora_exp.contest.verdict import Tried, Verdict
from lora_exp.contest.words import MEASURES
from lora_exp.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, empty_figure

FOREST, RATES = "contest_forest", "contest_rates"
KINDS = {"svg": "Date", "pdf": "CreationDate"}  # and the time stamp that a file of each would have
WIDTH = 9.0  # inches
MOST_LETTERS = 24  # of a name on a line beside an axis
# Outcome -> shape, colour, and whether its mark is filled.
MARKS = {
    BETTER: ("o", BLUE, True),
    WITHIN: ("D", GREEN, True),
    OPEN: ("o", INK, False),
    WORSE: ("s", VERMILION, True),
    NOT_TUNED: ("^", FAINT, False),
    LOST: ("v", FAINT, False),
}
LABELS = {WITHIN: "within the margin"}
BELOW = 0.95  # inches for the axis, its label and the legend
FAR = 3.0  # a difference so many times the median is drawn as an arrow at the edge
WIDEST = 1.5  # a band that is wider, in parts of its mean, is cut
BAND = "#E9E4D4"  # of the margin


def write_figures(verdict: Verdict, folder: Path) -> None:
    """Write both figures as SVG and PDF into a folder; equal verdicts give equal bytes."""
    drawn = {FOREST: forest_plot, RATES: rate_curves}
    for name in figure_names(verdict):
        with rc_context({"svg.hashsalt": name}):
            figure = drawn[name](verdict)
            for kind, stamp in KINDS.items():
                figure.savefig(folder / f"{name}.{kind}", metadata={stamp: None})


def figure_names(verdict: Verdict) -> list[str]:
    """Which figures there are: no forest plot without judging, no curves before a run has ended."""
    has_curves = any(one.by_base for own in verdict.tried.values() for one in own)
    return [*([FOREST] if verdict.standings else []), *([RATES] if has_curves else [])]


def forest_plot(verdict: Verdict) -> Figure:
    """Draw a panel an opponent and a row an arm: the mean difference, its 95 % interval, the margin and the outcome."""
    arms, protocol = verdict.standings, verdict.protocol
    labels = [_broken(one.arm.name) for one in arms]
    lines = max(label.count("\n") + 1 for label in labels)
    titles = [_broken(f"minus {opponent}") for opponent in verdict.opponents]
    top = 0.3 + 0.16 * (1 + max(title.count("\n") for title in titles))
    height = len(arms) * (0.16 + 0.15 * max(1.2, lines)) + BELOW + top
    left = 0.3 + 0.085 * max(len(line) for label in labels for line in label.split("\n"))
    figure, panels = empty_figure(WIDTH, height, columns=len(verdict.opponents), margins=(left, BELOW, 0.1, top))
    figure.subplots_adjust(wspace=0.12)
    seen = set()
    for axes, opponent, title in zip(panels, verdict.opponents, titles, strict=True):
        compared = [one.against(opponent) for one in arms]
        reach = _reach([one for one in compared if one is not None], protocol.margin)
        axes.axvspan(-protocol.margin, protocol.margin, color=BAND, lw=0, zorder=0)
        axes.axvline(0, color=INK, lw=1)
        for row, one in enumerate(compared):
            seen |= _draw_difference(axes, row, one, reach)
        axes.set_xlim(-1.08 * reach, 1.08 * reach)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(range(len(arms)), labels if axes is panels[0] else [""] * len(arms))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_title(title, fontsize=10)
    text = f"difference of {MEASURES[protocol.measure]} (points); left of 0 the arm errs less"
    figure.text((left / WIDTH + 1) / 2, 0.56 / height, text, ha="center", fontsize=9.5)
    figure.legend(
        handles=[*_legend(seen), Patch(color=BAND, label=f"margin, {protocol.margin:g} points")],
        loc="lower center",
        ncols=7,
        fontsize=9,
        frameon=False,
    )
    return figure


def rate_curves(verdict: Verdict) -> Figure:
    """Draw a panel an arm: its measure on validation images by learning rate, with 95 % bands over the bases.

    With fewer than 3 bases the band is the range. Further keys have a line for each of their values.
    """
    names, reference = list(verdict.tried), verdict.protocol.reference
    columns = min(len(names), 4 if len(names) > 6 or len(names) == 4 else 3)
    rows = -(-len(names) // columns)
    figure, panels = empty_figure(WIDTH, 2.1 * rows + 0.7, rows, columns)
    best = {one.arm.name: one for one in verdict.standings}
    tried = [one for own in verdict.tried.values() for one in own]
    for axes, name in zip(panels, names, strict=False):
        if name != reference:
            _draw_lines(axes, verdict.tried[reference], FAINT, "--", 1.2)
        _draw_lines(axes, verdict.tried[name], BLUE, "-", 1.6)
        if (standing := best.get(name)) is not None:
            _draw_chosen(axes, next(one for one in verdict.tried[name] if one.point == standing.best), standing.end)
        axes.set_title(_broken(name) + (" (reference)" if name == reference else ""), fontsize=9.5)
        _scale(axes, tried)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for at, axes in enumerate(panels[: len(names)]):
        is_lowest = at + columns >= len(names)
        axes.tick_params(labelleft=at % columns == 0, labelbottom=is_lowest, which="both")
        axes.set_xlabel("learning rate" if is_lowest else "", fontsize=9)
    figure.supylabel(f"{MEASURES[verdict.protocol.measure]}, validation (%)", fontsize=9.5)
    figure.legend(handles=list(_curve_legend(verdict)), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def _draw_difference(axes: Axes, row: int, one: Comparison | None, reach: float) -> set[str]:
    """Draw a row of a panel; return the outcome that its mark stands for."""
    if one is None or not one.differences:
        text = "the reference" if one is None else NOTHING
        axes.text(
            0,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8.5,
            color=INK,
            bbox={"fc": "white", "ec": "none", "pad": 1},
        )
        return set()
    interval, outcome = one.interval, one.outcome
    shape, colour, filled = MARKS.get(outcome, MARKS[OPEN])
    if abs(interval.mean) > reach:
        side = math.copysign(1, interval.mean)
        axes.annotate(
            f"{interval.mean:+.1f}",
            (side * 1.05 * reach, row),
            (side * 0.8 * reach, row),
            arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8},
            ha="right" if side > 0 else "left",
            va="center",
            fontsize=8.5,
            color=INK,
        )
        return {outcome}
    if not math.isnan(interval.low):
        limits = [min(max(end, -2 * reach), 2 * reach) for end in (interval.low, interval.high)]
        axes.plot(limits, (row, row), color=colour, lw=2, solid_capstyle="butt")
    axes.plot(interval.mean, row, shape, ms=7, mec=colour, mfc=colour if filled else "white", mew=1.6, zorder=3)
    return {outcome}


def _reach(compared: Sequence[Comparison], margin: float) -> float:
    """How far a panel reaches to both sides: all intervals, but for means that are far from all others."""
    intervals = [one.interval for one in compared if one.differences]
    means = [abs(one.mean) for one in intervals]
    near = FAR * max([2 * margin, *([statistics.median(means)] if means else [])])
    ends = [abs(end) for one in intervals if abs(one.mean) <= near for end in (one.mean, one.low, one.high)]
    return max([1.5 * margin, *filter(math.isfinite, ends)])


def _legend(seen: set[str]) -> Iterator[Line2D]:
    for outcome, (shape, colour, filled) in MARKS.items():
        if outcome in seen:
            inside = colour if filled else "white"
            yield Line2D(
                [], [], marker=shape, ls="", ms=7, mec=colour, mfc=inside, mew=1.6, label=LABELS.get(outcome, outcome)
            )


def _draw_lines(axes: Axes, tried: Sequence[Tried], colour: str, style: str, width: float) -> None:
    """Draw a line for each value of the further keys; a full one has a band, and crosses where no run ended."""
    for more in dict.fromkeys(one.point.more for one in tried):
        own = [one for one in tried if one.point.more == more and one.by_base]
        rates = [one.point.rate for one in own]
        axes.plot(
            rates, [one.interval.mean for one in own], style, color=colour, lw=width, marker="." if style == "-" else ""
        )
        if style == "-":
            low, high = zip(*map(limits_of, own), strict=True) if own else ((), ())
            axes.fill_between(rates, low, high, color=colour, alpha=0.2, lw=0)
    if style == "-" and (lost := [one.point.rate for one in tried if not one.by_base]):
        place = axes.get_xaxis_transform()
        axes.plot(lost, [0.96] * len(lost), "x", color=VERMILION, ms=7, mew=2, transform=place, clip_on=False)


def _draw_chosen(axes: Axes, one: Tried, end: str | None) -> None:
    mean = one.interval.mean
    axes.plot(
        one.point.rate, mean, "o", ms=9, mec=ORANGE if end else INK, mfc="white" if end else ORANGE, mew=1.6, zorder=4
    )
    if end:
        side = 1 if end == LOWEST else -1
        text, place = "not tuned", (one.point.rate, mean)
        axes.annotate(
            text, place, (4 * side, -15), textcoords="offset points", ha="left" if side > 0 else "right", fontsize=8.5
        )


def _scale(axes: Axes, tried: Sequence[Tried]) -> None:
    """Give every panel the same axes: rates on a log scale, and the measure too where it spans much."""
    rates = [one.point.rate for one in tried]
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 1.6, max(rates) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(LogFormatterMathtext())
    axes.xaxis.set_minor_formatter(NullFormatter())
    means = [one.interval.mean for one in tried if one.by_base]
    if 0 < 4 * min(means) < max(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / WIDEST, max(means) * WIDEST)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    bands = [(one.interval.mean, *limits_of(one)) for one in tried if one.by_base]
    low = min(max(low, mean / WIDEST) for mean, low, _ in bands)
    high = max(min(high, mean * WIDEST) for mean, _, high in bands)
    room = 0.1 * (high - low or 1)
    axes.set_ylim(low - 1.5 * room, high + 1.5 * room)


def _curve_legend(verdict: Verdict) -> Iterator[Line2D | Patch]:
    yield Line2D([], [], color=BLUE, lw=1.6, marker=".", label="mean of the arm")
    if len(verdict.protocol.selection) > 1:
        yield Patch(color=BLUE, alpha=0.2, label=limits_text(verdict))
    yield Line2D([], [], color=FAINT, lw=1.2, ls="--", label="the reference")
    ends = {one.end is None for one in verdict.standings}
    if True in ends:
        yield Line2D([], [], marker="o", ls="", ms=9, mec=INK, mfc=ORANGE, label="chosen")
    if False in ends:
        yield Line2D([], [], marker="o", ls="", ms=9, mec=ORANGE, mfc="white", mew=1.6, label="chosen, not tuned")
    if any(not one.by_base for own in verdict.tried.values() for one in own):
        yield Line2D([], [], marker="x", ls="", ms=7, mew=2, color=VERMILION, label="no run has ended")


def _broken(name: str) -> str:
    """A name on lines of MOST_LETTERS; matplotlib would take dollars for formulas."""
    return "\n".join(textwrap.wrap(name, MOST_LETTERS)).replace("$", r"\$")
