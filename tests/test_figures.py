"""pytest tests/test_figures.py: figures show the numbers that they are given, and touch nothing global."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_results as made
import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgba

from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.logits import Logits, from_tensors
from lora_exp.report import figures, sweep_figures
from lora_exp.report.shown import folded, shown_classes, shown_names, thumbnails
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_folder import read_sweep

PICTURES, LABELS = made.pictures_and_labels()


def drawn_run(*arguments: Any, **more: Any) -> tuple[RunResult, Logits]:
    """A made-up run and its logits."""
    result, tensors = made.made_run(LABELS, *arguments, **more)
    return result, from_tensors(tensors)[0]


def test_bars_are_the_error_rates_in_percent() -> None:
    result, _ = made.made_run(LABELS)
    [axes] = figures.error_bars(result).axes
    before, after = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert before == pytest.approx([100 * rate for rate in result.outcome.before.error_rates])
    assert after == pytest.approx([100 * rate for rate in result.outcome.after.error_rates])
    assert [label.get_text() for label in axes.get_xticklabels()][9] == "9\ntarget"


def test_wrong_images_tell_mended_from_broken_ones() -> None:
    result, logits = drawn_run()
    before, after = logits.before.argmax(axis=1), logits.after.argmax(axis=1)
    drawn = figures.wrong_images(result, logits, PICTURES, LABELS)
    mended, broken, wrong = drawn.axes
    assert f"{np.sum((before != LABELS) & (after == LABELS)):,} images" in mended.get_title(loc="left")
    assert f"{np.sum((before == LABELS) & (after != LABELS)):,} images" in broken.get_title(loc="left")
    assert f"{np.sum((before != LABELS) & (after != LABELS)):,} images" in wrong.get_title(loc="left")
    for text in (text.get_text() for text in broken.texts):
        true, said = text.split(": ")
        assert said.split(" → ")[0] == true
        assert said.split(" → ")[1] != true
    assert len(broken.collections[0].get_paths()) == len(broken.texts) > 0


def test_predictions_of_another_run_are_refused() -> None:
    result, _ = drawn_run()
    _, foreign = drawn_run((2,))
    with pytest.raises(ValueError, match="not of this result"):
        figures.wrong_images(result, foreign, PICTURES, LABELS)
    with pytest.raises(ValueError, match="not of this result"):
        figures.wrong_images(result, foreign, PICTURES[:10], LABELS[:10])


def test_a_run_without_any_error_has_an_empty_gallery(tmp_path: Path) -> None:
    result, logits = drawn_run()
    right = dataclasses.replace(result.outcome.after, errors=[0] * 10)
    result = dataclasses.replace(result, outcome=dataclasses.replace(result.outcome, after=right))
    certain = np.eye(10, dtype=np.float16)[LABELS]
    drawn = figures.wrong_images(result, dataclasses.replace(logits, before=certain, after=certain), PICTURES, LABELS)
    assert [len(axes.images) for axes in drawn.axes] == [0, 0, 0]
    drawn.savefig(tmp_path / "empty.png")


def test_heat_map_cells_are_means_of_finished_runs(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS, (9,), 2, seed=seed) for seed in (0, 1)]
    runs += [made.made_run(LABELS, (3,), 16), made.made_run(LABELS, (9,), 16, diverged_at=3)]
    frame = read_sweep(made.write_sweep(tmp_path / "s", runs)).frame
    target, forgetting, gained, *_ = sweep_figures.heat_maps(frame).axes
    assert [label.get_text() for label in target.get_yticklabels()] == ["3", "9"]
    assert [label.get_text() for label in target.get_xticklabels()] == ["2", "16"]
    names = ("target_error", "forgetting", "balanced_accuracy_gained")
    for axes, name in zip((target, forgetting, gained), names, strict=True):
        cells = axes.collections[0].get_array()
        assert cells[1, 0] == pytest.approx(50 * (frame[name][0] + frame[name][1]))
        assert cells[0, 1] == pytest.approx(100 * frame[name][2])
        assert bool(cells.mask[0, 0])
        assert bool(cells.mask[1, 1])
    assert target.texts[0].get_text() == "–"
    assert gained.texts[1].get_text() == f"{100 * frame['balanced_accuracy_gained'][2]:+.1f}"


def test_no_gain_has_the_middle_colour_and_gain_and_loss_opposite_ones(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS[:2000], (digit,), rank) for digit in (1, 9) for rank in (1, 64)]
    axes = sweep_figures.heat_maps(read_sweep(made.write_sweep(tmp_path / "s", runs)).frame).axes[2]
    mesh = axes.collections[0]
    low, high = mesh.get_clim()
    assert high == -low == pytest.approx(np.abs(mesh.get_array()).max())
    assert mesh.to_rgba(0.0) == pytest.approx((1, 1, 1, 1), abs=0.01)
    for value, hexadecimal in ((high, figures.BLUE), (low, figures.VERMILION)):
        assert mesh.to_rgba(value) == pytest.approx(to_rgba(hexadecimal), abs=0.01)


def test_results_of_an_older_version_have_heat_maps_of_errors_only(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS[:500], (digit,)) for digit in (1, 2)]
    old = [(dataclasses.replace(run, outcome=dataclasses.replace(run.outcome, gains=None)), own) for run, own in runs]
    drawn = sweep_figures.heat_maps(read_sweep(made.write_sweep(tmp_path / "s", old)).frame)
    assert [axes.get_title() for axes in drawn.axes[:2]] == [
        "Error on the target class",
        "Forgetting: rise of the error on the others",
    ]
    assert len(drawn.axes) == 4  # with their colour bars


def test_cells_are_written_into_only_where_they_are_few(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS[:500], (digit,), rank) for digit in (1, 2) for rank in range(1, 65)]
    drawn = sweep_figures.heat_maps(read_sweep(made.write_sweep(tmp_path / "s", runs)).frame)
    assert [len(axes.texts) for axes in drawn.axes[:3]] == [0, 0, 0]
    assert len(drawn.axes[0].get_xticklabels()) <= 24


def test_parameters_stand_against_the_mean_of_either_error(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS, (digit,), rank) for digit in (3, 9) for rank in (1, 8)]
    frame = read_sweep(made.write_sweep(tmp_path / "s", runs)).frame
    drawn = sweep_figures.parameters_against_error(frame)
    for axes, name in zip(drawn.axes, ("target_error", "other_error"), strict=True):
        [mean] = [line for line in axes.lines if line.get_label().startswith("after")]
        assert list(mean.get_xdata()) == [6794, 8 * 6794]
        assert mean.get_ydata()[0] == pytest.approx(100 * frame[frame["rank"] == 1][name].mean())
        assert axes.get_ylim()[0] == 0


def test_long_loss_curves_are_averaged_and_short_ones_are_not() -> None:
    short, long = (made.made_run(LABELS, steps=steps)[0] for steps in (40, 1000))
    line = figures.loss_curves([short]).axes[0].lines[0]
    assert list(line.get_ydata()) == pytest.approx(short.outcome.loss_curve)
    single, line = figures.loss_curves([long]).axes[0].lines[:2]
    assert list(single.get_ydata()) == pytest.approx(np.maximum(long.outcome.loss_curve, figures.LEAST_LOSS))
    assert line.get_ydata()[0] == pytest.approx(np.mean(long.outcome.loss_curve[:100]))
    assert list(line.get_xdata())[::900] == [100, 1000]


def test_a_diverged_loss_curve_ends_in_a_cross() -> None:
    axes = figures.loss_curves([made.made_run(LABELS, diverged_at=11, steps=40)[0]]).axes[0]
    curve, cross = axes.lines[:2]
    assert len(curve.get_xdata()) == 10
    assert cross.get_marker() == "X"


@pytest.mark.parametrize(("ranks", "bars", "labels"), [(3, 0, 3), (20, 1, 0)])
def test_a_legend_gives_way_to_a_colour_bar(ranks: int, bars: int, labels: int) -> None:
    drawn = figures.loss_curves([made.made_run(LABELS[:500], rank=rank)[0] for rank in range(1, ranks + 1)])
    assert len(drawn.axes) == 1 + bars
    assert len(drawn.axes[0].get_legend_handles_labels()[0]) == labels


def test_a_run_gets_its_figures_and_a_diverged_one_its_loss_curve_only(tmp_path: Path) -> None:
    paths = figures.run_figures(*drawn_run(), PICTURES, LABELS, tmp_path / "figures")
    assert [path.name for path in paths] == ["errors_per_class.png", "loss_curve.png", "wrong_images.png"]
    for path in paths:
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.05
    diverged = drawn_run(diverged_at=5)
    assert [p.name for p in figures.run_figures(*diverged, PICTURES, LABELS, tmp_path)] == ["loss_curve.png"]


def test_drawing_needs_no_pyplot() -> None:
    code = "import sys, lora_exp.report.write; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_no_font_has_and_that_have_no_room_are_drawn_without_a_warning(tmp_path: Path) -> None:
    figure, (axes,) = figures.empty_figure(3, 2)
    axes.set_title("ﾊﾝ字 " + "x" * 300)
    axes.set_xticks([0, 1], ["ﾊﾝ字", "y" * 300], rotation=60)
    figures.save(figure, tmp_path / "names.png")
    assert (tmp_path / "names.png").stat().st_size > 1000
    assert figures.short("a name that is long", 8) == "a name …" and figures.short("a name", 8) == "a name"


def test_of_many_classes_those_are_shown_whose_errors_changed_and_all_others_as_one() -> None:
    def errors(wrong: dict[int, int]) -> ClassErrors:
        confusion = [[0] * 100 for _ in range(100)]
        for label in range(100):
            confusion[label][label] = 10 - wrong.get(label, 0)
            confusion[label][(label + 1) % 100] = wrong.get(label, 0)
        return ClassErrors.of(confusion, 0.1, [0.1] * 100)

    before, after = errors({50: 9, 60: 3}), errors({50: 9, 61: 5, 62: 4})
    shown = shown_classes(before, [after], [7])
    assert len(shown) == 30 and shown == sorted(shown) and {7, 50, 60, 61, 62} <= set(shown)
    wrong, counts, confusion = folded(after, shown)
    assert (sum(wrong), sum(counts), int(confusion.sum())) == (18, 1000, 1000)
    assert counts[-1] == 700 and shown_names([f"c{label}" for label in range(100)], shown)[-1] == "70 others"
    assert shown_classes(ClassErrors.of([[1, 0], [0, 1]], 0.1, [0.1, 0.1]), [], [0]) == [0, 1]


def test_thumbnails_are_square_and_of_a_size_that_can_be_seen() -> None:
    small = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 1, 8, 8)
    assert thumbnails(small, False).shape == (2, 24, 24, 3)
    assert (thumbnails(small, True)[0, ::3, ::3, 0] == 255 - small[0, 0]).all()
    wide = np.full((1, 3, 100, 200), 9, np.uint8)
    made = thumbnails(wide, False)
    assert made.shape == (1, 50, 50, 3) and (made[0, 0] == 0).all() and (made[0, 25] == 9).all()
