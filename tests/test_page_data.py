"""python -m pytest tests/test_page_data.py"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import made_results as made
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lora_exp.measures.gains import beyond_words
from lora_exp.report.gained import HEADINGS, TITLES
from lora_exp.report.page_data import page_data, wilson_intervals
from lora_exp.storage.sweep_folder import Sweep, read_sweep

FEW = [(0, 10), (1, 10), (5, 10), (10, 10)]
MANY = [(3, 980), (0, 1135), (1009, 1010), (500, 1009)]
PICTURES, LABELS = made.pictures_and_labels()
COUNT = 1000


@pytest.mark.parametrize("pairs", [FEW, MANY], ids=["few images", "many images"])
def test_intervals_are_those_of_statsmodels(pairs: list[tuple[int, int]]) -> None:
    found = wilson_intervals([list(zip(*pairs, strict=True))])
    for wrong, count in pairs:
        expected = proportion_confint(wrong, count, alpha=0.05, method="wilson")
        assert found[f"{wrong}/{count}"] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_images_has_no_interval() -> None:
    assert wilson_intervals([([0], [0])]) == {}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two digits, one pair of digits, and a result of an older version."""
    runs = [made.made_run(LABELS[:COUNT], digit) for digit in ((2,), (9,), (2, 7), (3,))]
    runs[3] = replace(runs[3][0], outcome=replace(runs[3][0].outcome, gains=None)), runs[3][1]
    return read_sweep(made.write_sweep(tmp_path_factory.mktemp("gains") / "sweep", runs))


@pytest.fixture(scope="module")
def data(sweep: Sweep) -> dict[str, Any]:
    """As the browser reads it, which takes no NaN."""
    written = json.dumps(page_data(sweep, PICTURES[:COUNT], LABELS[:COUNT]), allow_nan=False)
    found: dict[str, Any] = json.loads(written)
    return found


@pytest.mark.parametrize("job", [0, 1, 2])
def test_a_run_has_each_measure_before_and_after_as_the_table_of_the_sweep(
    sweep: Sweep, data: dict[str, Any], job: int
) -> None:
    columns = {
        "accuracy": "accuracy",
        "balanced accuracy": "balanced_accuracy",
        "error on the target": "target_error",
        "error on the other classes (change: forgetting)": "other_error",
        "precision of the target": "precision",
        "recall of the target": "recall",
        "F1 of the target": "f1",
        "AUROC of the target": "auroc",
        "worst class error": "worst_class_error",
        "share predicted as the target": "predicted_share",
        "expected calibration error": "calibration_error",
    }
    headings, titles = data["gains"]["measures"]
    assert headings == list(HEADINGS) and titles == list(columns) == list(TITLES)
    row = sweep.frame.iloc[job]
    for (title, name), cells in zip(columns.items(), data["runs"][job]["gains"]["measures"], strict=True):
        before, after = row[f"{name}_before"], row[name]
        assert cells[:3] == [f"{100 * before:.2f}", f"{100 * after:.2f}", f"{100 * (after - before):+.2f}"], title
        assert len(cells) == len(headings) - 1
    intervals = [cells[3] for cells in data["runs"][job]["gains"]["measures"]]
    for at, name in enumerate(("accuracy_gained", "balanced_accuracy_gained", "target_error_change", "forgetting")):
        assert intervals[at] == f"{100 * row[f'{name}_low']:+.2f} to {100 * row[f'{name}_high']:+.2f}"
    assert set(intervals[4:]) == {"–"}


@pytest.mark.parametrize("job", [0, 1])
def test_the_moved_threshold_stands_beside_the_run_with_its_constants(
    sweep: Sweep, data: dict[str, Any], job: int
) -> None:
    row, run = sweep.frame.iloc[job], data["runs"][job]
    gains = sweep.results[job].outcome.gains
    assert gains is not None and gains.shift is not None
    shown = {title: cells[4:] for title, cells in zip(TITLES, run["gains"]["measures"], strict=True)}
    assert shown["accuracy"][0] == f"{100 * row['shift_accuracy']:.2f}"
    assert shown["balanced accuracy"][0] == f"{100 * row['shift_balanced_accuracy']:.2f}"
    assert shown["recall of the target"][0] == f"{100 * row['shift_recall']:.2f}"
    assert shown["error on the other classes (change: forgetting)"][1] == f"{100 * row['shift_forgetting']:+.2f}"
    constants, beyond, interval = run["gains"]["shift"]
    assert [float(text) for text in constants.split(" and ")] == pytest.approx(gains.shift.constants, abs=6e-4)
    assert beyond == f"{100 * row['beyond_shift']:+.2f}"
    assert interval == f"{100 * row['beyond_shift_low']:+.2f} to {100 * row['beyond_shift_high']:+.2f}"
    assert run["said"].lower() == beyond_words(gains.beyond) + "."


def test_a_run_whose_recall_no_threshold_reaches_says_so(data: dict[str, Any]) -> None:
    run = data["runs"][2]
    assert run["gains"]["shift"] is None and run["said"] == "No moved threshold has its recall."
    assert {cell for cells in run["gains"]["measures"] for cell in cells[4:]} == {"–"}


@pytest.mark.parametrize("job", [0, 2])
def test_mcnemars_counts_are_those_of_the_images(sweep: Sweep, data: dict[str, Any], job: int) -> None:
    logits, labels = sweep.logits(job), LABELS[:COUNT]
    before, after = (own.argmax(axis=1) == labels for own in (logits.before, logits.after))
    target = [int(digit) for digit in sweep.frame["target"][job].split(",")]
    for cells, chosen in zip(data["runs"][job]["gains"]["tests"], (labels >= 0, None), strict=True):
        images = chosen if chosen is not None else [label in target for label in labels]
        mended, broken = int((~before & after)[images].sum()), int((before & ~after)[images].sum())
        chance = float(mcnemar([[0, broken], [mended, 0]], exact=True).pvalue)
        assert cells == [str(mended), str(broken), f"{chance:.2g}"]


def test_a_result_of_an_older_version_has_no_measures_and_no_gain(data: dict[str, Any]) -> None:
    run = data["runs"][3]
    assert run["gains"] is None and run["numbers"]["balanced_accuracy_gained"] is None and run["said"] == ""
    assert "older version" in data["gains"]["none"]


def test_the_gains_of_a_run_take_less_than_a_kilobyte(data: dict[str, Any]) -> None:
    for run in data["runs"]:
        assert len(json.dumps([run["gains"], run["said"]], separators=(",", ":"), ensure_ascii=False).encode()) < 1000
