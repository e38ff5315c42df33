"""Figures of runs and sweeps, drawn without pyplot, so that nothing global changes and no display is needed.

Colours are told apart by colour-blind readers too: viridis for amounts, Okabe and Ito's blue and orange for
before and after (their vermilion and green where a third and fourth are needed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from lora_exp.result import RunResult
from lora_exp.spec import CLASSES

BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
INK, FAINT = "#222222", "#8A8A8A"
WRITTEN_CELLS = 120  # more heat-map cells than these leave no room for their numbers
LEGEND_RUNS = 8  # ranks that a legend still shows better than a colour bar
SMOOTHED_STEPS = 50  # a longer loss curve is averaged, to about this many independent values


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as PNG to `path`."""
    FigureCanvasAgg(figure).print_png(path, metadata={"Title": path.stem})
    return path


def run_figures(
    result: RunResult,
    predictions: Mapping[str, NDArray[Any]],
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    folder: Path,
) -> list[Path]:
    """Write the figures of one run into `folder`: errors per digit, wrong digits, loss curve.

    Takes what `wrong_digits` takes. A diverged run gets its loss curve only: its errors mean nothing.
    """
    drawn = {"loss_curve": loss_curves([result])}
    if not result.diverged:
        drawn["errors_per_digit"] = error_bars(result)
        drawn["wrong_digits"] = wrong_digits(result, predictions, pictures, labels)
    return [save(figure, folder / f"{name}.png") for name, figure in sorted(drawn.items())]


def error_bars(result: RunResult) -> Figure:
    """Error rate of every digit (%) before and after fine-tuning, the target digits set off."""
    figure, (axes,) = _figure(9, 4.2)
    digits = np.arange(CLASSES)
    targets = result.spec.finetune.digit
    for target in targets:
        axes.axvspan(target - 0.5, target + 0.5, color="#F0E442", alpha=0.3, lw=0)
    outcome = result.outcome
    for errors, shift, colour, when in (
        (outcome.before, -0.2, BLUE, "before fine-tuning"),
        (outcome.after, 0.2, ORANGE, "after fine-tuning"),
    ):
        heights = 100 * np.array(errors.error_rates)
        bars = axes.bar(digits + shift, heights, 0.38, color=colour, label=f"{when} (accuracy {errors.accuracy:.1%})")
        axes.bar_label(bars, [f"{height:.1f}" for height in heights], padding=2, fontsize=7.5, color=INK)
    axes.set_xticks(digits, [f"{d}\ntarget" if d in targets else str(d) for d in digits])
    axes.set_xlim(-0.6, CLASSES - 0.4)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)  # room for the legend above the tallest bar
    axes.set_xlabel("true digit")
    axes.set_ylabel("error rate (% of the digit's test images)")
    axes.grid(axis="x", visible=False)
    axes.set_title(f"Errors per digit, {setting(result)}", fontsize=11)
    axes.legend(frameon=False, ncols=2, loc="upper left")
    return figure


def wrong_digits(
    result: RunResult,
    predictions: Mapping[str, NDArray[Any]],
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    columns: int = 14,
) -> Figure:
    """Pictures that fine-tuning mended, broke, or left wrong: true digit, prediction before and after.

    `predictions` holds `before_predicted` and `predicted` (uint8 [N]) of `pictures` (uint8 [N, 28, 28]), whose
    true digits are `labels` [N]. Where there are more than fit, every so-many-th is shown. Raises ValueError
    when the predictions are not this result's for these labels.
    """
    before, after = predictions["before_predicted"], predictions["predicted"]
    if len(before) != len(labels) or (
        np.bincount(labels[after != labels], minlength=CLASSES).tolist() != result.outcome.after.errors
    ):
        raise ValueError("the predictions are not of this result and these labels")
    was_right, is_right = before == labels, after == labels
    parts = [
        ("Mended: {} images, wrong before and right after", GREEN, ~was_right & is_right, 2),
        ("Broken: {} images, right before and wrong after", VERMILION, was_right & ~is_right, 3),
        ("Wrong before and after: {} images", FAINT, ~was_right & ~is_right, 1),
    ]
    chosen = [_spread(np.flatnonzero(which), rows * columns) for _, _, which, rows in parts]
    heights = [max(0.1, -(-len(indices) // columns)) for indices in chosen]
    figure, all_axes = _figure(10, 1.3 + 0.9 * sum(heights), rows=len(parts), height_ratios=heights)
    for axes, (title, colour, which, _), indices, height in zip(all_axes, parts, chosen, heights, strict=True):
        axes.axis("off")
        axes.set_title(title.format(f"{int(which.sum()):,}"), loc="left", color=colour, fontweight="bold", fontsize=10)
        for position, image in enumerate(indices):
            x, y = position % columns, 1.28 * (position // columns)
            extent = (x + 0.06, x + 0.94, y + 0.94, y + 0.06)
            axes.imshow(pictures[image], cmap="gray_r", extent=extent, vmin=0, vmax=255, interpolation="nearest")
            axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, ec=colour, lw=1.6))
            text = f"{labels[image]}: {before[image]} → {after[image]}"
            axes.text(x + 0.5, y + 1.1, text, ha="center", va="center", fontsize=7.5, color=INK)
        axes.set(xlim=(0, columns), ylim=(height * 1.28, 0), aspect="equal")  # imshow had changed them
    title = f"Digits predicted wrongly, {setting(result)}"
    figure.suptitle(f"{title}\n(true digit: prediction before → after)", fontsize=11)
    return figure


def heat_maps(frame: pd.DataFrame) -> Figure:
    """Target error (%) and forgetting (percentage points) by target digit and rank; `frame` as of `load_sweep`.

    A cell with several sound jobs shows their mean; one without any is grey.
    """
    ran = frame[frame["rank"].notna()]
    cells = ran.groupby(["digit", ran["rank"].astype(int)])[["target_error", "forgetting"]].mean()
    first = cells["target_error"].unstack()
    wide = first.shape[1] > 12
    rows, columns = first.shape
    width, height = 1.6 + max(2.2, min(9.0, 0.62 * columns)), 1.3 + max(0.9, 0.38 * rows)
    figure, all_axes = _figure(
        *((width, 2 * height) if wide else (2 * width, height)), rows=2 if wide else 1, columns=1 if wide else 2
    )
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
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=8, length=0)
        if numbers.size <= WRITTEN_CELLS:
            _write_cells(axes, numbers)
    return figure


def parameters_against_error(frame: pd.DataFrame) -> Figure:
    """Adapter parameters (log scale) against the error (%) on the target and on the other digits, side by side.

    One faint line a target digit (mean where several sound jobs share a size), one strong line for the mean.
    """
    sound = frame[frame["status"] == "finished"]
    size = sound["parameters_adapter"].astype(int)
    figure, all_axes = _figure(10, 4.4, columns=2)
    for axes, name, title in (
        (all_axes[0], "target_error", "Error on the target digit"),
        (all_axes[1], "other_error", "Mean error on the other digits"),
    ):
        lines = 100 * sound.groupby([size, "digit"])[name].mean().unstack()
        if lines.shape[1] > 1:
            for digit in lines:
                axes.plot(lines.index, lines[digit], color=FAINT, lw=0.8, alpha=0.7, marker=".", ms=4)
        mean = 100 * sound.groupby(size)[name].mean()
        axes.plot(mean.index, mean, color=ORANGE, lw=2.4, marker="o", ms=6, label="after fine-tuning, mean")
        axes.axhline(100 * sound[f"{name}_before"].mean(), color=BLUE, ls="--", lw=1.5, label="before, mean")
        _size_axis(axes, [int(at) for at in mean.index])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("error rate (%)")
        axes.set_title(title, fontsize=10)
        if 1 < lines.shape[1] <= CLASSES:
            _label_ends(axes, int(lines.index[-1]), lines.iloc[-1].dropna().to_dict())
    faint = "; faint: one line per target digit" if sound["digit"].nunique() > 1 else ""
    all_axes[0].legend(frameon=False, fontsize=8.5)
    figure.suptitle(f"What more adapter parameters bring, and what they cost{faint}", fontsize=11)
    return figure


def loss_curves(results: Sequence[RunResult]) -> Figure:
    """Fine-tuning loss by step, one line a run, coloured by rank; long curves as moving averages.

    Where runs are many, each rank's mean over its sound runs of full length is drawn strongly over them. A run
    that diverged ends in a cross at its last finite loss.
    """
    figure, (axes,) = _figure(9, 4.4)
    ranks = sorted({result.spec.adapter.rank for result in results})
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(ranks)))
    longest = max(len(result.outcome.loss_curve) for result in results)
    window = max(1, longest // SMOOTHED_STEPS)
    many = len(results) > LEGEND_RUNS
    for result in results:
        losses = np.array(result.outcome.loss_curve)
        losses = losses[: int(np.argmin(np.isfinite(losses)))] if result.diverged else losses
        if not len(losses):
            continue  # diverged at the first step: there is nothing to draw
        own = min(window, len(losses))
        smooth = _smooth(losses, own)
        colour = colours[ranks.index(result.spec.adapter.rank)]
        steps = np.arange(own, len(losses) + 1)
        axes.plot(steps, smooth, color=colour, lw=0.7 if many else 1.6, alpha=0.3 if many else 1)
        if result.diverged:
            axes.plot(steps[-1], smooth[-1], "X", color=VERMILION, ms=9, zorder=3)
    if many:
        for rank, colour in zip(ranks, colours, strict=True):
            whole = [
                result.outcome.loss_curve
                for result in results
                if result.spec.adapter.rank == rank
                and not result.diverged
                and len(result.outcome.loss_curve) == longest
            ]
            if whole:
                mean = _smooth(np.mean(whole, axis=0), window)
                axes.plot(np.arange(window, longest + 1), mean, color=colour, lw=2.2)
    if len(ranks) <= LEGEND_RUNS:
        for rank, colour in zip(ranks, colours, strict=True):
            axes.plot([], [], color=colour, lw=2.2, label=f"rank {rank}" + (", mean" if many else ""))
    else:
        scale = ScalarMappable(BoundaryNorm(np.arange(len(ranks) + 1) - 0.5, len(ranks)), ListedColormap(colours))
        shown = range(0, len(ranks), -(-len(ranks) // 10))
        bar = figure.colorbar(scale, ax=axes, label="rank", ticks=list(shown), pad=0.02)
        bar.set_ticklabels([str(ranks[at]) for at in shown])
    if any(result.diverged for result in results):
        axes.plot([], [], "X", color=VERMILION, ms=9, label="diverged")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.set_yscale("log")
    axes.set_xlabel("fine-tuning step")
    axes.set_ylabel("cross-entropy of the batch (nats)" + (f", mean of {window} steps" if window > 1 else ""))
    axes.set_title("Loss, " + setting(results[0]) if len(results) == 1 else "Loss during fine-tuning", fontsize=11)
    return figure


def setting(result: RunResult) -> str:
    """In words: `fine-tuned on digit 9 at rank 4`."""
    digits = " and ".join(map(str, result.spec.finetune.digit))
    return f"fine-tuned on digit {digits} at rank {result.spec.adapter.rank}"


def digits_of(label: str) -> tuple[int, ...]:
    """The digits of a `digit` column's text, by which it sorts: "2,7" -> (2, 7)."""
    return tuple(int(digit) for digit in label.split(","))


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """An empty figure, in inches, and its axes, in the one look that all figures share."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, list(grid.flat)


def _spread(indices: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most `most` of `indices`, evenly spread over them."""
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).astype(int)]


def _smooth(losses: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each `window` neighbouring losses; value i is that of the steps up to i + `window`."""
    return np.convolve(losses, np.ones(window) / window, mode="valid")


def _write_cells(axes: Axes, numbers: NDArray[np.float64]) -> None:
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    for (row, column), value in np.ndenumerate(numbers):
        bright = value > low + 0.6 * (high - low)
        text = f"{value:.1f}" if np.isfinite(value) else "–"
        colour = INK if bright or np.isnan(value) else "white"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    """A log axis with ticks at sizes that were run, thinned so that their labels don't touch."""
    axes.set_xscale("log")
    apart = 1.25 * (sizes[-1] / sizes[0]) ** 0.06
    ticks = sizes[:1]
    for size in sizes:
        if size > ticks[-1] * apart:
            ticks.append(size)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("adapter parameters")


def _label_ends(axes: Axes, x: int, ends: Mapping[str, float]) -> None:
    """Each line's digit right of its end, pushed upwards where two would touch."""
    axes.margins(x=0.08)
    apart = 0.04 * axes.get_ylim()[1]
    y = -np.inf
    for label, value in sorted(ends.items(), key=lambda end: end[1]):
        y = max(y + apart, value)
        axes.annotate(label, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8, color=FAINT)
