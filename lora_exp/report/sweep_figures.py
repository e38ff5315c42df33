"""Figures of a sweep: errors and gain by class and setting, gain against price, errors by the size of the adapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lora_exp.report.figures import BLUE, FAINT, INK, MOST_LETTERS, ORANGE, VERMILION, empty_figure
from lora_exp.report.shown import short
from lora_exp.report.tables import setting_columns, setting_labels
from lora_exp.storage.table import finished, pareto_front, target_order
from lora_exp.storage.varied import heading, setting_text, task_names, varied

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
STACKED_SETTINGS = 8  # heat maps with more settings stand above each other


def heat_maps(frame: pd.DataFrame) -> Figure:
    """Draw target error (%), forgetting and balanced accuracy gained (percentage points) by target class and setting.

    `frame` is that of a sweep. The setting is what varies besides class and seeds: the rank, the method, or several
    together. A cell shows the mean of its finished runs; one without any is grey. What no run has, as in sweeps of
    older versions, is left out.
    """
    ran = frame[frame["rank"].notna() | frame["method"].notna()]
    names = setting_columns(ran)
    ran = ran[ran[names].notna().any(axis=1)]
    labels = setting_labels(ran)
    order = {text: place for place, text in enumerate(dict.fromkeys(labels.values()))}
    setting = ran["job"].map(lambda job: order[labels[job]])
    cells = 100 * ran.groupby(["target", setting])[list(HEAT_MAPS)].mean().dropna(axis=1, how="all")
    ticks = list(order)
    if len(names) == 1:
        texts: dict[int, str] = dict(zip(map(int, setting), map(setting_text, ran[names[0]]), strict=True))
        ticks = [texts[place] for place in range(len(order))]
    shape = cells["target_error"].unstack().shape
    longest = max(len(short(str(name), MOST_LETTERS)) for name in cells.index.get_level_values(0))
    tall = 0.0 if len(names) == 1 else 0.07 * min(MOST_LETTERS + 6, max(map(len, ticks)))
    width, height = 1.6 + 0.08 * longest + max(2.2, min(9.0, 0.62 * shape[1])), 1.3 + tall + max(0.9, 0.38 * shape[0])
    count = cells.shape[1]
    if shape[1] > STACKED_SETTINGS:
        figure, all_axes = empty_figure(width, count * height, rows=count)
    else:
        figure, all_axes = empty_figure(count * width, height, columns=count)
    across = heading(names[0]) if len(names) == 1 else "setting"
    for axes, name in zip(all_axes, cells, strict=True):
        values = cells[name].unstack()
        values = values.loc[sorted(values.index, key=target_order)]
        _heat_map(figure, axes, values, *HEAT_MAPS[str(name)])
        step = -(-len(values.columns) // 24)
        shown = [short(ticks[place], MOST_LETTERS + 6) for place in map(int, values.columns[::step])]
        axes.set_xticks(np.arange(0, len(values.columns), step) + 0.5, shown, rotation=0 if len(names) == 1 else 60)
        axes.set_xlabel(across)
    return figure


def _heat_map(figure: Figure, axes: Axes, values: pd.DataFrame, title: str, unit: str, around_zero: bool) -> None:
    """Draw values by target and setting, written into their cells where these are few."""
    numbers = values.to_numpy(dtype=float)
    rows, _ = numbers.shape
    most = max(float(np.nanmax(np.abs(numbers))), 0.01)
    scale = {"cmap": AROUND_ZERO, "vmin": -most, "vmax": most} if around_zero else {"cmap": "viridis"}
    mesh = axes.pcolormesh(np.ma.masked_invalid(numbers), edgecolors="white", linewidth=1, **scale)
    axes.set_facecolor("#DDDDDD")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(rows) + 0.5, [short(str(name), MOST_LETTERS) for name in values.index])
    axes.set_ylabel("target class")
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(mesh, ax=axes, label=unit, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    sign, decimals = "+" if around_zero else "", 2 if most < 10 else 1
    for (row, column), value in np.ndenumerate(numbers) if numbers.size <= WRITTEN_CELLS else ():
        known = np.isfinite(value)
        text = f"{value:{sign}.{decimals}f}" if known else "–"
        colour = text_on(tuple(mesh.to_rgba(value))) if known else INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)


def text_on(colour: Sequence[float]) -> str:
    """Black or white, whichever has more contrast with a colour (WCAG 2.2): at least 4.5 to 1 with any."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def gain_against_price(frame: pd.DataFrame) -> Figure:
    """Draw the error on the target (%) against forgetting (percentage points), a mark a run, with the fronts."""
    runs = finished(frame)
    labels = setting_labels(runs)
    order = list(dict.fromkeys(labels.values()))
    tones = colormaps["viridis"](np.linspace(0, 0.92, len(order)))
    figure, (axes,) = empty_figure(9, 4.6)
    for label, tone in zip(order, tones, strict=True):
        own = runs[runs["job"].map(lambda job, label=label: labels[job] == label)]
        axes.scatter(
            100 * own["forgetting"], 100 * own["target_error"], s=26, color=tone, lw=0.4, ec="white", label=label
        )
    front = runs.set_index("job").loc[pareto_front(runs)]
    task = task_names(varied(runs))
    for _, own in front.groupby(task, sort=False, dropna=False) if task else [((), front)]:
        axes.plot(100 * own["forgetting"], 100 * own["target_error"], color=FAINT, lw=1, ls=":")
    axes.set_xlabel("forgetting: rise of the error on the other classes (percentage points)")
    axes.set_ylabel("error on the target (%)")
    axes.set_title("Gain against price; dotted: the front of each class", fontsize=11)
    if 1 < len(order) <= LABELLED_LINES:
        axes.legend(frameon=False, fontsize=8.5)
    return figure


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
