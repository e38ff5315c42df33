"""Figures of a sweep: errors and gain by target class and rank, and errors by the size of the adapter."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lora_exp.report.figures import BLUE, FAINT, INK, MOST_LETTERS, ORANGE, VERMILION, empty_figure, short
from lora_exp.storage.table import finished, target_order

WRITTEN_CELLS = 120  # a heat map of more cells has no room for their numbers
CROWDED_SIZES = 16  # more adapter sizes get fainter lines and smaller marks
LABELLED_LINES = 10  # have their names beside them


# Column of a heat map: its title, its unit, and whether it is above and below zero for better and worse.
HEAT_MAPS = {
    "target_error": ("Error on the target class", "%", False),
    "forgetting": ("Forgetting: rise of the error on the others", "percentage points", False),
    "balanced_accuracy_gained": ("Balanced accuracy gained", "percentage points", True),
}
AROUND_ZERO = LinearSegmentedColormap.from_list("around zero", [VERMILION, "white", BLUE])
STACKED_RANKS = 8  # heat maps with more ranks stand above each other


def heat_maps(frame: pd.DataFrame) -> Figure:
    """Draw target error (%), forgetting and balanced accuracy gained (percentage points) by target class and rank.

    `frame` comes from `read_sweep`. A cell shows the mean of its finished runs; one without any is grey. What no run
    has, as in sweeps of older versions, is left out.
    """
    ran = frame[frame["rank"].notna()]
    cells = 100 * ran.groupby(["target", ran["rank"].astype(int)])[list(HEAT_MAPS)].mean().dropna(axis=1, how="all")
    shape = cells["target_error"].unstack().shape
    names = max(len(short(str(name), MOST_LETTERS)) for name in cells.index.get_level_values(0))
    width, height = 1.6 + 0.08 * names + max(2.2, min(9.0, 0.62 * shape[1])), 1.3 + max(0.9, 0.38 * shape[0])
    count = cells.shape[1]
    if shape[1] > STACKED_RANKS:
        figure, all_axes = empty_figure(width, count * height, rows=count)
    else:
        figure, all_axes = empty_figure(count * width, height, columns=count)
    for axes, name in zip(all_axes, cells, strict=True):
        values = cells[name].unstack()
        _heat_map(figure, axes, values.loc[sorted(values.index, key=target_order)], *HEAT_MAPS[str(name)])
    return figure


def _heat_map(figure: Figure, axes: Axes, values: pd.DataFrame, title: str, unit: str, around_zero: bool) -> None:
    """Draw values by target and rank, written into their cells where these are few."""
    numbers = values.to_numpy(dtype=float)
    rows, columns = numbers.shape
    most = max(float(np.nanmax(np.abs(numbers))), 0.01)
    scale = {"cmap": AROUND_ZERO, "vmin": -most, "vmax": most} if around_zero else {"cmap": "viridis"}
    mesh = axes.pcolormesh(np.ma.masked_invalid(numbers), edgecolors="white", linewidth=1, **scale)
    axes.set_facecolor("#DDDDDD")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-columns // 24)
    axes.set_xticks(np.arange(0, columns, step) + 0.5, [str(rank) for rank in values.columns[::step]])
    axes.set_yticks(np.arange(rows) + 0.5, [short(str(name), MOST_LETTERS) for name in values.index])
    axes.set_xlabel("rank")
    axes.set_ylabel("target class")
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(mesh, ax=axes, label=unit, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    sign, decimals = "+" if around_zero else "", 2 if most < 10 else 1
    for (row, column), value in np.ndenumerate(numbers) if numbers.size <= WRITTEN_CELLS else ():
        known = np.isfinite(value)
        text = f"{value:{sign}.{decimals}f}" if known else "–"
        red, green, blue, _ = mesh.to_rgba(value) if known else (1.0, 1.0, 1.0, 1.0)
        colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK  # by how bright a cell looks
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)


def parameters_against_error(frame: pd.DataFrame) -> Figure:
    """Draw the error (%) on target and other classes against the adapter's parameters (log scale), side by side.

    One faint line a target class (the mean of its finished runs at each size), one strong line for the mean.
    """
    runs = finished(frame[frame["parameters_adapter"] > 0])  # a log scale has no zero
    size = runs["parameters_adapter"].astype(int)
    crowded = size.nunique() > CROWDED_SIZES
    figure, all_axes = empty_figure(10, 4.4, columns=2)
    for axes, name, title in (
        (all_axes[0], "target_error", "Error on the target class"),
        (all_axes[1], "other_error", "Mean error on the other classes"),
    ):
        lines = 100 * runs.groupby([size, "target"])[name].mean().unstack()
        if lines.shape[1] > 1:
            axes.plot(lines.index, lines, color=FAINT, lw=0.8, alpha=0.35 if crowded else 0.7, marker=".", ms=4)
        mean, mark = 100 * runs.groupby(size)[name].mean(), 3 if crowded else 6
        axes.plot(mean.index, mean, color=ORANGE, lw=2.4, marker="o", ms=mark, label="after fine-tuning, mean")
        axes.axhline(100 * runs[f"{name}_before"].mean(), color=BLUE, ls="--", lw=1.5, label="before, mean")
        _size_axis(axes, [int(at) for at in mean.index])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("error rate (%)")
        axes.set_title(title, fontsize=10)
        if 1 < lines.shape[1] <= LABELLED_LINES:
            _label_ends(axes, lines.iloc[-1].dropna())
    faint = "; faint: one line per target class" if runs["target"].nunique() > 1 else ""
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
    """Write each line's class at the right edge, beside the line's last value; where two would touch, one moves up."""
    y = -np.inf
    place, arrow = ("axes fraction", "data"), {"arrowstyle": "-", "color": "#CCCCCC", "lw": 0.6}
    for name, value in ends.sort_values(kind="stable").items():
        y = max(y + 0.045 * axes.get_ylim()[1], value)
        end = (int(str(ends.name)), value)
        axes.annotate(
            short(str(name), 10),
            end,
            (1.01, y),
            textcoords=place,
            arrowprops=arrow,
            va="center",
            fontsize=8,
            color=FAINT,
        )
