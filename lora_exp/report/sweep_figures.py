"""Figures of a sweep: both errors by target digit, rank and size of the adapter."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_exp.config.spec import CLASSES
from lora_exp.report.figures import BLUE, FAINT, INK, ORANGE, empty_figure
from lora_exp.storage.table import digits_of, finished

WRITTEN_CELLS = 120  # a heat map of more cells has no room for their numbers
CROWDED_SIZES = 16  # more adapter sizes get fainter lines and smaller marks


def heat_maps(frame: pd.DataFrame) -> Figure:
    """Draw target error (%) and forgetting (percentage points) by target digit and rank.

    `frame` comes from `load_sweep`. A cell shows the mean of its finished runs; one without any is grey.
    """
    ran = frame[frame["rank"].notna()]
    cells = ran.groupby(["digit", ran["rank"].astype(int)])[["target_error", "forgetting"]].mean()
    first = cells["target_error"].unstack()
    wide = first.shape[1] > 12
    rows, columns = first.shape
    width, height = 1.6 + max(2.2, min(9.0, 0.62 * columns)), 1.3 + max(0.9, 0.38 * rows)
    figure, all_axes = empty_figure(width, 2 * height, rows=2) if wide else empty_figure(2 * width, height, columns=2)
    for axes, name, title, unit in (
        (all_axes[0], "target_error", "Error on the target digit", "%"),
        (all_axes[1], "forgetting", "Forgetting: rise of the error on the others", "percentage points"),
    ):
        values = 100 * cells[name].unstack()
        values = values.loc[sorted(values.index, key=digits_of)]
        numbers = values.to_numpy(dtype=float)
        mesh = axes.pcolormesh(np.ma.masked_invalid(numbers), cmap="viridis", edgecolors="white", linewidth=1)
        axes.set_facecolor("#DDDDDD")
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        step = -(-columns // 24)
        axes.set_xticks(np.arange(0, columns, step) + 0.5, [str(rank) for rank in values.columns[::step]])
        axes.set_yticks(np.arange(rows) + 0.5, list(values.index))
        axes.set_xlabel("rank")
        axes.set_ylabel("target digit")
        axes.set_title(title, fontsize=10)
        bar = figure.colorbar(mesh, ax=axes, label=unit, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        for (row, column), value in np.ndenumerate(numbers) if numbers.size <= WRITTEN_CELLS else ():
            text = f"{value:.{2 if high < 10 else 1}f}" if np.isfinite(value) else "–"
            colour = "white" if value <= low + 0.6 * (high - low) else INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    return figure


def parameters_against_error(frame: pd.DataFrame) -> Figure:
    """Draw the error (%) on target and other digits against the adapter's parameters (log scale), side by side.

    One faint line a target digit (the mean of its finished runs at each size), one strong line for the mean.
    """
    runs = finished(frame[frame["parameters_adapter"] > 0])  # a log scale has no zero
    size = runs["parameters_adapter"].astype(int)
    crowded = size.nunique() > CROWDED_SIZES
    figure, all_axes = empty_figure(10, 4.4, columns=2)
    for axes, name, title in (
        (all_axes[0], "target_error", "Error on the target digit"),
        (all_axes[1], "other_error", "Mean error on the other digits"),
    ):
        lines = 100 * runs.groupby([size, "digit"])[name].mean().unstack()
        if lines.shape[1] > 1:
            axes.plot(lines.index, lines, color=FAINT, lw=0.8, alpha=0.35 if crowded else 0.7, marker=".", ms=4)
        mean, mark = 100 * runs.groupby(size)[name].mean(), 3 if crowded else 6
        axes.plot(mean.index, mean, color=ORANGE, lw=2.4, marker="o", ms=mark, label="after fine-tuning, mean")
        axes.axhline(100 * runs[f"{name}_before"].mean(), color=BLUE, ls="--", lw=1.5, label="before, mean")
        _size_axis(axes, [int(at) for at in mean.index])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("error rate (%)")
        axes.set_title(title, fontsize=10)
        if 1 < lines.shape[1] <= CLASSES:
            _label_ends(axes, lines.iloc[-1].dropna())
    faint = "; faint: one line per target digit" if runs["digit"].nunique() > 1 else ""
    all_axes[0].legend(frameon=False, fontsize=8.5)
    figure.suptitle(f"What more adapter parameters bring, and what they cost{faint}", fontsize=11)
    return figure


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    """Make a log axis with ticks at the sizes of the runs, thinned so that their labels don't touch."""
    axes.set_xscale("log")
    apart = (sizes[-1] / sizes[0]) ** (1 / 6)  # a label is about a seventh of the axis wide
    ticks = sizes[:1]
    for size in sizes:
        if size >= ticks[-1] * apart:
            ticks.append(size)
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("adapter parameters")


def _label_ends(axes: Axes, ends: pd.Series[float]) -> None:
    """Write each line's digit at the right edge, beside the line's last value; where two would touch, one moves up."""
    y = -np.inf
    place, arrow = ("axes fraction", "data"), {"arrowstyle": "-", "color": "#CCCCCC", "lw": 0.6}
    for digit, value in ends.sort_values(kind="stable").items():
        y = max(y + 0.045 * axes.get_ylim()[1], value)
        end = (int(str(ends.name)), value)
        axes.annotate(
            str(digit), end, (1.01, y), textcoords=place, arrowprops=arrow, va="center", fontsize=8, color=FAINT
        )
