"""The figure of a claim: its measurements, and each difference with its interval and its margin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lora_exp.report.claims.verdict import Panel, Verdict
from lora_exp.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, empty_figure
from lora_exp.report.statistics import FAIL, PASS, UNDECIDED, Answer

LINES = (BLUE, ORANGE)
OUTCOMES = {PASS: GREEN, FAIL: VERMILION, UNDECIDED: FAINT}
MARKED_POINTS = 12  # a line of more is a curve


def claim_figure(verdict: Verdict) -> Figure:
    """Draw the panels of a judged verdict, and its comparisons, with one axes for each measure."""
    by_measure = [list(group) for _, group in groupby(verdict.answers, key=lambda answer: answer.question.measure)]
    count = len(verdict.panels) + len(by_measure)
    rows, columns = (2, 2) if count == 4 else (1, count)
    figure, all_axes = empty_figure(4.2 * columns, 3.7 * rows, rows, columns)
    for axes, panel in zip(all_axes, verdict.panels, strict=False):
        _draw_panel(axes, panel)
    for axes, group in zip(all_axes[len(verdict.panels) :], by_measure, strict=True):
        _draw_answers(axes, group)
    figure.suptitle(f"{verdict.name}: {verdict.outcome} (n = {verdict.seeds} bases)", fontsize=11)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw means over the seeds with 95 % intervals: bars at few points, a band along a curve."""
    for line, colour in zip(panel.lines, LINES, strict=False):
        means, low, high = np.array([(own.mean, own.low, own.high) for own in line.intervals]).T
        look: dict[str, Any] = {"color": colour, "label": line.label or None}
        if len(line.x) > MARKED_POINTS:
            axes.plot(line.x, means, lw=2, **look)
            axes.fill_between(line.x, low, high, color=colour, alpha=0.25, lw=0)
        else:
            axes.errorbar(line.x, means, (means - low, high - means), lw=1.6, marker="o", ms=5, capsize=3, **look)
    if panel.log_x:
        ticks = sorted({x for line in panel.lines for x in line.x})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    if panel.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    else:
        axes.axhline(0, color=FAINT, lw=0.8)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.unit)
    axes.set_title(panel.title, fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def _draw_answers(axes: Axes, answers: Sequence[Answer]) -> None:
    """Draw one row a comparison: each seed's difference as a dot, the interval as a bar coloured by its outcome."""
    for row, answer in enumerate(answers):
        question, interval = answer.question, answer.interval
        axes.plot(question.differences, [row + 0.12] * len(question.differences), ".", color=FAINT, ms=5)
        bars, colour = [[interval.mean - interval.low], [interval.high - interval.mean]], OUTCOMES[answer.outcome]
        axes.errorbar(interval.mean, row, xerr=bars, color=colour, lw=2.4, marker="o", ms=7, capsize=5)
        text, place = f"{answer.outcome} ({100 * interval.confidence:.3g} %)", (interval.mean, row)
        axes.annotate(text, place, (0, 9), textcoords="offset points", ha="center", fontsize=8, color=INK)
    question = answers[0].question
    axes.axvline(question.margin, color=INK, ls="--", lw=1.2, label=f"claimed: below {question.margin:g}")
    axes.axvline(0, color=FAINT, lw=0.8)
    axes.set_yticks(range(len(answers)), [answer.question.what.replace(" minus ", "\nminus ") for answer in answers])
    axes.set_ylim(len(answers) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(question.unit)
    axes.set_title(f"Compared: {question.measure}", fontsize=10)
    axes.legend(frameon=False, fontsize=8.5)
