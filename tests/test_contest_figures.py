"""python -m pytest tests/test_contest_figures.py

The figures of a contest show the numbers of its verdict, tell outcomes apart without colour, and have equal bytes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import made_contest as made
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from lora_exp.contest.comparison import BETTER, NOT_TUNED, NOTHING, OPEN
from lora_exp.contest.figures import MARKS, figure_names, forest_plot, rate_curves, write_figures
from lora_exp.contest.verdict import Verdict

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: make() for name, make in made.CONTESTS.items()}


def marks(axes: Axes) -> dict[int, Line2D]:
    """The marks of a panel of the forest plot by row."""
    return {round(float(line.get_ydata()[0])): line for line in axes.lines if line.get_marker() != "None"}


def test_every_difference_is_a_mark_with_its_interval_and_its_outcome(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["twelve"]
    panels = forest_plot(verdict).axes
    assert [axes.get_title() for axes in panels] == [f"minus {opponent}" for opponent in verdict.opponents]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [arm.name for arm in verdict.protocol.arms]
    seen = set()
    for axes, opponent in zip(panels, verdict.opponents, strict=True):
        found = marks(axes)
        intervals = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
        for row, standing in enumerate(verdict.standings):
            if (one := standing.against(opponent)) is None:
                assert row not in found
                continue
            shape, colour, is_filled = MARKS[one.outcome]
            assert found[row].get_xdata()[0] == one.interval.mean
            assert (one.interval.low, one.interval.high) in intervals
            assert found[row].get_marker() == shape
            assert to_rgba(found[row].get_markerfacecolor()) == to_rgba(colour if is_filled else "white")
            seen.add(one.outcome)
    assert seen >= {BETTER, OPEN, NOT_TUNED}


def test_outcomes_differ_in_shape_or_filling() -> None:
    assert len({(shape, filled) for shape, _, filled in MARKS.values()}) == len(MARKS)


def test_the_margin_is_a_band_about_zero(verdicts: dict[str, Verdict]) -> None:
    for axes in forest_plot(verdicts["equal"]).axes:
        [band] = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == (-0.3, 0.3)
        low, high = axes.get_xlim()
        assert low == -high and high > 0.3


def test_an_arm_far_from_all_others_is_an_arrow_with_its_number(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["long names"]
    far = verdict.standings[3].comparisons
    for axes, one in zip(forest_plot(verdict).axes, far, strict=True):
        assert axes.get_xlim()[1] < one.interval.mean
        assert [text.get_text() for text in axes.texts][-1] == f"{one.interval.mean:+.1f}"


def test_an_interval_without_limits_goes_through_the_whole_panel(verdicts: dict[str, Verdict]) -> None:
    for axes in forest_plot(verdicts["two"]).axes:
        low, high = axes.get_xlim()
        ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] < low]
        assert ends and all(end > high for _, end in ends)
        assert all(low < line.get_xdata()[0] < high for line in marks(axes).values())


def test_where_nothing_can_be_compared_words_say_so(verdicts: dict[str, Verdict]) -> None:
    _, threshold, reference = forest_plot(verdicts["unmatched"]).axes
    assert [text.get_text() for text in threshold.texts] == [NOTHING]
    assert [text.get_text() for text in reference.texts] == ["the reference"]


def test_curves_are_the_means_of_every_rate_with_the_chosen_one_marked(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["not tuned"]
    for axes, standing in zip(rate_curves(verdict).axes, verdict.standings, strict=True):
        name = standing.arm.name
        tried = verdict.tried[name]
        [line] = [line for line in axes.lines if line.get_marker() == "."]
        assert list(line.get_xdata()) == [one.point.rate for one in tried]
        assert list(line.get_ydata()) == [one.interval.mean for one in tried]
        [chosen] = [line for line in axes.lines if line.get_marker() == "o"]
        assert chosen.get_xdata()[0] == standing.best.rate
        assert (chosen.get_markerfacecolor() == "white") == (standing.end is not None)
        assert [text.get_text() for text in axes.texts] == (["not tuned"] if standing.end else [])
        assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == (name != "lora")


def test_bands_are_intervals_or_the_range_of_few_bases(verdicts: dict[str, Verdict]) -> None:
    for name in ("equal", "two"):
        verdict = verdicts[name]
        [band] = rate_curves(verdict).axes[1].collections
        heights = band.get_paths()[0].vertices[:, 1]
        own = [one.interval for one in verdict.tried["dora"]]
        assert heights.min() == min(one.low if name == "equal" else one.mean for one in own)
        assert heights.max() == max(one.high if name == "equal" else one.mean for one in own)


def test_further_keys_have_a_line_for_each_value(verdicts: dict[str, Verdict]) -> None:
    panels = {axes.get_title(): axes for axes in rate_curves(verdicts["twelve"]).axes}
    assert {name: len([line for line in axes.lines if line.get_marker() == "."]) for name, axes in panels.items()} == {
        name: 2 if name == "lora_plus" else 1 for name in panels
    }


def test_a_rate_at_which_no_run_ended_is_a_cross(verdicts: dict[str, Verdict]) -> None:
    crosses = [
        [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"]
        for axes in rate_curves(verdicts["diverged"]).axes
    ]
    assert crosses == [[], [[1e-2]], []]


def test_there_is_no_figure_of_what_has_not_run(verdicts: dict[str, Verdict]) -> None:
    assert figure_names(verdicts["unjudged"]) == ["contest_rates"]
    assert figure_names(verdicts["two"]) == ["contest_forest", "contest_rates"]


@pytest.mark.parametrize("name", made.CONTESTS)
def test_every_contest_is_drawn_and_its_texts_stay_inside(verdicts: dict[str, Verdict], name: str) -> None:
    verdict = verdicts[name]
    for draw in (forest_plot, rate_curves)[0 if verdict.standings else 1 :]:
        figure = draw(verdict)
        figure.draw_without_rendering()
        texts = [axes.title for axes in figure.axes if axes.get_visible()]
        texts += figure.axes[0].get_yticklabels() if draw is forest_plot else []
        for text in texts:
            own = text.get_window_extent()
            assert figure.bbox.x0 <= own.x0 and own.x1 <= figure.bbox.x1 and own.y1 <= figure.bbox.y1, text.get_text()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_equal_verdicts_give_equal_bytes_in_another_process_too(verdicts: dict[str, Verdict], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    write_figures(verdicts["winner"], folders[0])
    code = (
        "import sys, pathlib, made_contest\n"
        "from lora_exp.contest.figures import write_figures\n"
        "write_figures(made_contest.CONTESTS['winner'](), pathlib.Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folders[1])]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HOME": str(tmp_path)})
    found = hashes(folders[0])
    assert list(found) == [f"contest_{name}.{kind}" for name in ("forest", "rates") for kind in ("pdf", "svg")]
    assert found == hashes(folders[1])
