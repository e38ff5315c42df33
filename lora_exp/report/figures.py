"""Figures of runs. They are drawn without pyplot, so they change no global state and need no display.

The colours suit colour-blind readers: viridis for amounts, Okabe and Ito's blue and orange for before and
after, their vermilion and green as third and fourth.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lora_exp.measures.logits import Logits
from lora_exp.report.shown import is_dark, short, shown_classes, thumbnails
from lora_exp.storage.result import RunResult
from lora_exp.storage.words import kind_label

BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
INK, FAINT = "#222222", "#8A8A8A"
LEGEND_KINDS = 8  # with more methods and ranks, a colour bar takes the place of the legend
LEAST_LOSS = 1e-4
# Of an image among others, in parts of its side: the border of its frame, and room for a line of text below.
BORDER, TEXT = 1 / 14, 9 / 28
MOST_LETTERS = 18  # of a name beside an axis
SHORT_NAME = 2  # longest name of which three stand in that line
ROW = 0.7  # inches of a row of images without its text
FEW_CLASSES, LONG_NAME = 12, 8  # of a chart in which names and numbers have room
SMOOTHED_STEPS = 50  # from this length on a loss curve is a moving average over a tenth of its steps


def run_figures(
    result: RunResult,
    logits: Logits,
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    folder: Path,
) -> list[Path]:
    """Write the figures of one run into `folder`, made if absent: errors per class, wrong images, loss curve.

    The arguments are those of `wrong_images`. A diverged run gets its loss curve only, since its errors mean nothing.
    An imported adapter has no loss curve.
    """
    drawn = {} if result.imported else {"loss_curve": loss_curves([result])}
    if not result.diverged:
        drawn["errors_per_class"] = error_bars(result)
        drawn["wrong_images"] = wrong_images(result, logits, pictures, labels)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in sorted(drawn)]


def error_bars(result: RunResult) -> Figure:
    """Draw the error rate of every class (%) before and after fine-tuning, with the target classes marked."""
    names = result.facts.classes
    is_plain = len(names) <= FEW_CLASSES and max(map(len, names)) <= LONG_NAME
    figure, (axes,) = empty_figure(9, 4.2, margins=(0.7, 0.65, 0.1, 0.35) if is_plain else None)
    outcome, targets = result.outcome, result.target
    shown = shown_classes(outcome.before, [outcome.after], targets)
    places, marked = np.arange(len(shown)), [at for at, label in enumerate(shown) if label in targets]
    for place in marked:
        axes.axvspan(place - 0.5, place + 0.5, color="#F0E442", alpha=0.3, lw=0)
    for errors, shift, colour, when in (
        (outcome.before, -0.2, BLUE, "before fine-tuning"),
        (outcome.after, 0.2, ORANGE, "after fine-tuning"),
    ):
        heights = 100 * np.array(errors.error_rates)[shown]
        bars = axes.bar(places + shift, heights, 0.38, color=colour, label=f"{when} (accuracy {errors.accuracy:.1%})")
        if len(shown) <= FEW_CLASSES:
            axes.bar_label(bars, [f"{height:.1f}" for height in heights], padding=2, fontsize=7.5, color=INK)
    mark = "{}\ntarget" if is_plain else "{} (target)"
    own = [short(names[label], MOST_LETTERS) for label in shown]
    texts = [mark.format(name) if at in marked else name for at, name in enumerate(own)]
    axes.set_xticks(places, texts, rotation=0 if is_plain else 60, ha="center" if is_plain else "right")
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)  # room for the legend above the tallest bar
    some = f", {len(shown)} of {len(names)}: the target and those whose errors changed most"
    axes.set_xlabel("true class" + (some if len(shown) < len(names) else ""))
    axes.set_ylabel("error rate (% of the class's test images)")
    axes.grid(axis="x", visible=False)
    axes.set_title(f"Errors per class, {result.description}", fontsize=11)
    axes.legend(frameon=False, ncols=2, loc="upper left")
    return figure


def wrong_images(
    result: RunResult,
    logits: Logits,
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    columns: int = 14,
) -> Figure:
    """Draw images that fine-tuning mended, broke or left wrong, with true class and both predictions.

    `logits` are those of `pictures` (uint8 [N, C, H, W]), whose true classes are `labels` [N]. Where there are more
    images than fit, an even selection is shown. Raises ValueError when the logits are not this result's for these
    labels.
    """
    before, after, names = logits.before.argmax(axis=1), logits.after.argmax(axis=1), result.facts.classes
    dark = is_dark(pictures)
    side = thumbnails(pictures[:1], dark).shape[1]
    border = max(1, round(BORDER * side))
    cell_width = side + 2 * border
    lines = 1 if max(map(len, names)) <= SHORT_NAME else 3
    cell_height = cell_width + round(TEXT * side * lines)
    changed = changes(result, logits, labels)
    parts = [
        ("Mended: {} images, wrong before and right after", GREEN, changed["mended"], 2),
        ("Broken: {} images, right before and wrong after", VERMILION, changed["broken"], 3),
        ("Wrong before and after: {} images", FAINT, changed["still wrong"], 1),
    ]
    chosen = [spread(indices, rows * columns) for _, _, indices, rows in parts]
    heights = [max(0.1, -(-len(indices) // columns)) for indices in chosen]
    margins, size = (0.1, 0.1, 0.1, 0.85), 1.3 + ROW * cell_height / cell_width * sum(heights)
    figure, all_axes = empty_figure(10, size, rows=len(parts), height_ratios=heights, margins=margins)
    figure.subplots_adjust(hspace=0.25)
    for axes, (title, colour, every, _), indices, height in zip(all_axes, parts, chosen, heights, strict=True):
        axes.axis("off")
        axes.set_title(title.format(f"{len(every):,}"), loc="left", color=colour, fontweight="bold", fontsize=10)
        rows = -(-len(indices) // columns)
        # One picture of all: drawing many is slow.
        sheet = np.full((rows, cell_height, columns, cell_width, 3), 255, np.uint8)
        frames = []
        for position, (image, small) in enumerate(zip(indices, thumbnails(pictures[indices], dark), strict=True)):
            row, column = divmod(position, columns)
            sheet[row, border : border + side, column, border : border + side] = small
            x, y = column * cell_width, row * cell_height
            frames.append(Rectangle((x + border, y + border), side, side))
            told = [short(names[label]) for label in (labels[image], before[image], after[image])]
            text = ("{}: {} → {}" if lines == 1 else "{}:\n{}\n→ {}").format(*told)
            place = (x + cell_width / 2, y + cell_width + (0.4 if lines == 1 else 0.48) * (cell_height - cell_width))
            axes.text(*place, text, ha="center", va="center", fontsize=7.5 if lines == 1 else 6, color=INK)
        if frames:
            pixels = sheet.reshape(rows * cell_height, columns * cell_width, 3)
            extent = (0, columns * cell_width, rows * cell_height, 0)
            axes.imshow(pixels, interpolation="nearest", extent=extent)
            axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=colour, linewidth=1.6))
        axes.set(xlim=(0, columns * cell_width), ylim=(height * cell_height, 0), aspect="equal", anchor="W")
    title = f"Images predicted wrongly, {result.description}"
    figure.suptitle(f"{title}\n(true class: prediction before → after)", fontsize=11)
    return figure


def loss_curves(results: Sequence[RunResult], labels: Sequence[str] | None = None) -> Figure:
    """Draw the fine-tuning loss by step, one line a run, coloured by their `labels`; long curves are averaged.

    Without labels the colours are those of methods and ranks.

    A single run shows the loss of each step too. With many runs, a strong line shows each colour's mean over its
    finished runs of full length. A diverged run ends in a cross at its last finite loss.
    """
    labels = labels or [kind_label(result.kind) for result in results]
    kinds = list(dict.fromkeys(labels))
    colours = dict(zip(kinds, colormaps["viridis"](np.linspace(0, 0.92, len(kinds))), strict=True))
    with_bar = len(kinds) > LEGEND_KINDS
    figure, (axes,) = empty_figure(9, 4.4, margins=None if with_bar else (0.75, 0.95, 0.1, 0.35))
    longest = max(len(result.outcome.loss_curve) for result in results)
    window = longest // 10 if longest >= SMOOTHED_STEPS else 1
    many = len(results) > LEGEND_KINDS
    whole: dict[str, list[list[float]]] = {}
    for result, kind in zip(results, labels, strict=True):
        losses = result.outcome.loss_curve
        if result.outcome.diverged_at is not None:
            losses = losses[: result.outcome.diverged_at - 1]
        elif len(losses) == longest:
            whole.setdefault(kind, []).append(losses)
        if not losses:
            continue  # diverged at the first step
        if len(results) == 1 and window > 1:
            _draw_losses(axes, losses, 1, color=FAINT, lw=0.8, alpha=0.6)
        end = _draw_losses(axes, losses, window, color=colours[kind], lw=0.7 if many else 2, alpha=0.3 if many else 1)
        if result.diverged:
            axes.plot(*end, "X", color=VERMILION, ms=9, zorder=3)
    if many:
        for kind, curves in whole.items():
            _draw_losses(axes, np.mean(curves, axis=0), window, color=colours[kind], lw=2.2)
    _explain_colours(figure, axes, colours, any((result.outcome.diverged_at or 0) > 1 for result in results))
    axes.set_yscale("log")
    axes.set_xlabel("fine-tuning step")
    axes.set_ylabel("cross-entropy (nats)" + (f", mean of {window} steps" if window > 1 else ", of each batch"))
    title = f"Loss, {results[0].description}" if len(results) == 1 else "Loss during fine-tuning"
    lines = "strong lines: means" if many else "thin: each batch" if len(results) == 1 and window > 1 else ""
    axes.set_title(f"{title} ({lines})" if lines else title, fontsize=11)
    return figure


def changes(result: RunResult, logits: Logits, labels: NDArray[Any]) -> dict[str, NDArray[np.intp]]:
    """Return the ascending indices of the images that fine-tuning mended, broke or left wrong, under `mended`, ...

    `logits` comes from `Sweep.logits`, and `labels` [N] are the true classes.
    Raises ValueError when the logits are not this result's for these labels.
    """
    was_right, is_right = logits.right_before, logits.right_after
    if not np.array_equal(logits.labels, labels) or (
        np.bincount(labels[~is_right], minlength=logits.classes).tolist() != result.outcome.after.errors
    ):
        raise ValueError("the predictions are not of this result and these labels")
    parts = {"mended": ~was_right & is_right, "broken": was_right & ~is_right, "still wrong": ~was_right & ~is_right}
    return {name: np.flatnonzero(part) for name, part in parts.items()}


def save(figure: Figure, path: Path | BinaryIO) -> None:
    """Write a figure. Fonts lack some letters of names, and layouts room; neither is for users to be warned of."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(path)
    finally:
        log.setLevel(level)


def spread(indices: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Return at most `most` of `indices`, evenly spread over them."""
    return indices.take(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int))


def empty_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    height_ratios: Sequence[float] | None = None,
    margins: tuple[float, float, float, float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Make an empty figure and its axes in the style that all figures share; sizes are in inches.

    `margins` (left, bottom, right, top) are for titles and labels. Without them matplotlib measures all texts and draws
    the figure twice.
    """
    figure = Figure(figsize=(width, height), dpi=110, layout=None if margins else "constrained", facecolor="white")
    if margins is not None:
        left, bottom, right, top = margins
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, list(grid.flat)


def _draw_losses(axes: Axes, losses: Sequence[float] | NDArray[Any], window: int, **look: Any) -> tuple[float, float]:
    """Draw the moving average over `window` steps, each at the last of its steps; return the last point.

    A log scale can't show a loss of zero, so it is drawn at LEAST_LOSS.
    """
    window = min(window, len(losses))
    means = np.maximum(np.convolve(losses, np.ones(window) / window, mode="valid"), LEAST_LOSS)
    axes.plot(np.arange(window, len(losses) + 1), means, **look)
    return len(losses), float(means[-1])


def _explain_colours(figure: Figure, axes: Axes, colours: Mapping[str, Any], crosses: bool) -> None:
    """Add a legend of few labels or a colour bar of many, and the meaning of a cross."""
    labels = list(colours)
    if len(labels) <= LEGEND_KINDS:
        for label, colour in zip(labels, colours.values(), strict=True):
            axes.plot([], [], color=colour, lw=2.2, label=label)
    else:
        steps = BoundaryNorm(np.arange(len(labels) + 1) - 0.5, len(labels))
        scale = ScalarMappable(steps, ListedColormap(list(colours.values())))
        shown = range(0, len(labels), -(-len(labels) // 10))
        bar = figure.colorbar(scale, ax=axes, ticks=list(shown), pad=0.02)
        bar.minorticks_off()
        bar.set_ticklabels([labels[at] for at in shown])
    if crosses:
        axes.plot([], [], "X", color=VERMILION, ms=9, label="diverged")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, -0.28), ncols=LEGEND_KINDS + 1, fontsize=9)
