"""Figures of runs, drawn without pyplot, so that nothing global changes and no display is needed.

Colours are told apart by colour-blind readers too: viridis for amounts, Okabe and Ito's blue and orange for
before and after (their vermilion and green where a third and fourth are needed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lora_exp.config.spec import CLASSES
from lora_exp.report.gallery import changes, spread
from lora_exp.storage.result import RunResult

BLUE, ORANGE, VERMILION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
INK, FAINT = "#222222", "#8A8A8A"
Kind = tuple[str, int | None]  # method and rank, None for a method without one
LEGEND_RUNS = 8  # kinds of run that a legend still shows better than a colour bar
LEAST_LOSS = 1e-4
SMOOTHED_STEPS = 50  # a loss curve of this length or more is averaged over a tenth of its steps


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as PNG to `path`."""
    figure.savefig(path, format="png")
    return path


def run_figures(
    result: RunResult,
    predictions: Mapping[str, NDArray[Any]],
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    folder: Path,
) -> list[Path]:
    """Write the figures of one run into `folder`, made if absent: errors per digit, wrong digits, loss curve.

    Takes what `wrong_digits` takes. A diverged run gets its loss curve only: its errors mean nothing. An imported
    adapter has no loss curve.
    """
    drawn = {} if result.imported else {"loss_curve": loss_curves([result])}
    if not result.diverged:
        drawn["errors_per_digit"] = error_bars(result)
        drawn["wrong_digits"] = wrong_digits(result, predictions, pictures, labels)
    folder.mkdir(parents=True, exist_ok=True)
    return [save(figure, folder / f"{name}.png") for name, figure in sorted(drawn.items())]


def error_bars(result: RunResult) -> Figure:
    """Error rate of every digit (%) before and after fine-tuning, the target digits set off."""
    figure, (axes,) = empty_figure(9, 4.2)
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

    `predictions` holds `before_predicted` and `predicted` (uint8 [N]) of `pictures` (uint8 [N, 28, 28]),
    whose true digits are `labels` [N]. Where there are more than fit, every so-many-th is shown. Raises
    ValueError when the predictions are not this result's for these labels.
    """
    before, after = predictions["before_predicted"], predictions["predicted"]
    changed = changes(result, predictions, labels)
    parts = [
        ("Mended: {} images, wrong before and right after", GREEN, changed.mended, 2),
        ("Broken: {} images, right before and wrong after", VERMILION, changed.broken, 3),
        ("Wrong before and after: {} images", FAINT, changed.still_wrong, 1),
    ]
    chosen = [spread(indices, rows * columns) for _, _, indices, rows in parts]
    heights = [max(0.1, -(-len(indices) // columns)) for indices in chosen]
    figure, all_axes = empty_figure(10, 1.3 + 0.9 * sum(heights), rows=len(parts), height_ratios=heights)
    for axes, (title, colour, every, _), indices, height in zip(all_axes, parts, chosen, heights, strict=True):
        axes.axis("off")
        axes.set_title(title.format(f"{len(every):,}"), loc="left", color=colour, fontweight="bold", fontsize=10)
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


def loss_curves(results: Sequence[RunResult]) -> Figure:
    """Fine-tuning loss by step, one line a run, coloured by method and rank; long curves as moving averages.

    One run alone shows its single losses too; where runs are many, each colour's mean over its sound runs of
    full length stands out. A run that diverged ends in a cross at its last finite loss.
    """
    figure, (axes,) = empty_figure(9, 4.4)
    kinds = sorted({kind_of(result) for result in results}, key=lambda kind: (kind[0], kind[1] or 0))
    colours = dict(zip(kinds, colormaps["viridis"](np.linspace(0, 0.92, len(kinds))), strict=True))
    longest = max(len(result.outcome.loss_curve) for result in results)
    window = longest // 10 if longest >= SMOOTHED_STEPS else 1
    many = len(results) > LEGEND_RUNS
    whole: dict[Kind, list[list[float]]] = {}
    for result in results:
        kind, losses = kind_of(result), result.outcome.loss_curve
        if result.outcome.diverged_at is not None:
            losses = losses[: result.outcome.diverged_at - 1]
        elif len(losses) == longest:
            whole.setdefault(kind, []).append(losses)
        if not losses:
            continue  # diverged at the first step: there is nothing to draw
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
    title = f"Loss, {setting(results[0])}" if len(results) == 1 else "Loss during fine-tuning"
    lines = "strong lines: means" if many else "thin: each batch" if len(results) == 1 and window > 1 else ""
    axes.set_title(f"{title} ({lines})" if lines else title, fontsize=11)
    return figure


def setting(result: RunResult) -> str:
    """In words: `fine-tuned on digit 9 at rank 4`."""
    digits = " and ".join(map(str, result.spec.finetune.digit))
    return f"fine-tuned on digit {digits} {adapted(*kind_of(result))}"


def kind_of(result: RunResult) -> Kind:
    """Method and rank of a run."""
    adapter = result.spec.adapter
    return adapter.method, None if adapter.scaling is None else adapter.rank


def kind_label(method: str, rank: int | None) -> str:
    """`rank 4`, `dora rank 4`, `full`."""
    return " ".join(([] if method == "lora" else [method]) + ([] if rank is None else [f"rank {rank}"]))


def adapted(method: str, rank: int | None) -> str:
    """How a run was adapted: `at rank 4`, `with dora rank 4`, `with full`."""
    return f"{'at' if method == 'lora' else 'with'} {kind_label(method, rank)}"


def empty_figure(
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


def _draw_losses(axes: Axes, losses: Sequence[float] | NDArray[Any], window: int, **look: Any) -> tuple[float, float]:
    """Draw the mean of each `window` neighbouring losses over the last step of them; return the last point.

    A log scale has no place for a loss of zero: it is drawn at LEAST_LOSS.
    """
    window = min(window, len(losses))
    means = np.maximum(np.convolve(losses, np.ones(window) / window, mode="valid"), LEAST_LOSS)
    axes.plot(np.arange(window, len(losses) + 1), means, **look)
    return len(losses), float(means[-1])


def _explain_colours(figure: Figure, axes: Axes, colours: Mapping[Kind, Any], crosses: bool) -> None:
    """A legend of few methods and ranks or a colour bar of many, and what a cross means."""
    labels = [kind_label(*kind) for kind in colours]
    if len(labels) <= LEGEND_RUNS:
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
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, -0.28), ncols=LEGEND_RUNS + 1, fontsize=9)
