"""python -m pytest tests/test_sweeps_read.py

What `lora_exp.load_sweep` and `list_sweeps` say of sweeps, here of made ones.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import made_results as made
import numpy as np
import pytest
from numpy.typing import NDArray

from lora_exp import LoraExpError, list_sweeps, load_run, load_sweep
from lora_exp.api.sweep import Sweep
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import Stopped, write_failure

LABELS = made.pictures_and_labels()[1]
Made = tuple[RunResult, dict[str, NDArray[Any]]]


def named(run: Made, classes: tuple[str, ...]) -> Made:
    """The same run, had its classes these names."""
    spec = dataclasses.replace(run[0].spec, finetune=dataclasses.replace(run[0].spec.finetune, target=(classes[3],)))
    return dataclasses.replace(run[0], spec=spec, facts=dataclasses.replace(run[0].facts, classes=classes)), run[1]


def renamed(folder: Path, **changed: str) -> None:
    """Change what the record of a sweep says."""
    file = folder / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 1, 4 and 16 over classes 3 and 9, one that diverged, one that failed, and one that never ran."""
    runs = [made.made_run(LABELS, (digit,), rank) for rank in (16, 1, 4) for digit in (3, 9)]
    ended = [made.made_run(LABELS, (3,), 64, diverged_at=5), "no <memory>", None]
    return made.write_sweep(tmp_path_factory.mktemp("made") / "sweep", [*runs, *ended])


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Sweep:
    return load_sweep(folder)


def test_a_sweep_is_a_sequence_of_its_jobs(sweep: Sweep, folder: Path) -> None:
    statuses = ["finished"] * 6 + ["diverged", "failed", "missing"]
    assert len(sweep) == 9 and [run.status for run in sweep] == statuses
    assert [run.spec.adapter.rank for run in sweep.runs] == [16, 16, 1, 1, 4, 4]
    assert sweep[-1].status == "missing" and sweep[7].error == "no <memory>"
    assert sweep[2].folder == folder / "2" and sweep[2].outcome == load_run(folder / "2").outcome
    with pytest.raises(IndexError, match="job 9: this sweep has jobs 0 to 8"):
        sweep[9]


def test_columns_hold_integers_where_they_hold_nothing_else(sweep: Sweep) -> None:
    frame = sweep.frame
    kinds = frame.dtypes.astype(str)
    assert kinds["target"] == "Int64" and frame["target"].tolist()[:6] == [3, 9, 3, 9, 3, 9]
    assert {kinds[name] for name in ("mended", "broken", "errors_before_3", "errors_3", "images_3")} == {"Int64"}
    counts = np.bincount(LABELS, minlength=10)
    assert [frame[f"images_{digit}"][0] for digit in range(10)] == counts.tolist()
    threes = frame[(frame["status"] == "finished") & (frame["target"] == 3)]
    np.testing.assert_allclose((threes["errors_3"] / threes["images_3"]).astype(float), threes["target_error"])
    assert frame["images_3"].isna().tolist() == [False] * 7 + [True] * 2


@pytest.mark.parametrize("classes", [tuple("abcdefghij"), ("00", "01", *"23456789")])
def test_names_of_classes_stay_text(tmp_path: Path, classes: tuple[str, ...]) -> None:
    runs = [named(made.made_run(LABELS, (3,), rank), classes) for rank in (1, 2)]
    frame = load_sweep(made.write_sweep(tmp_path / "s", runs)).frame
    assert frame["target"].tolist() == ([3, 3] if classes[3] == "3" else [classes[3]] * 2)
    assert f"images_{classes[0]}" in frame
    both = [made.made_run(LABELS, (3,)), made.made_run(LABELS, (3, 8))]
    assert load_sweep(made.write_sweep(tmp_path / "t", both)).frame["target"].tolist() == ["3", "3,8"]


def test_the_best_run_is_of_the_setting_that_is_recommended(sweep: Sweep) -> None:
    frame = sweep.frame.query("status == 'finished'")
    means = frame.groupby("rank")["chosen_gained"].mean()
    assert sweep.best().spec.adapter.rank == means.idxmax()
    for target in (3, "9", [9]):
        own = frame[frame["target"] == int(np.ravel(target)[0])]
        assert sweep.best(target=target).folder == Path(own.loc[own["chosen_gained"].idxmax(), "folder"])
    assert sweep.best(rank=[1, 16], target=3).spec.adapter.rank in (1, 16)
    recommended = sweep.recommended
    assert recommended["task"].tolist() == ["both classes", "class 3", "class 9"]
    assert recommended["jobs"][0][0] == int(sweep.best().folder.name)


@pytest.mark.parametrize(
    ("by", "lowest"), [("target_error", True), ("forgetting", True), ("accuracy", False), ("beyond_shift", False)]
)
def test_by_a_measure_the_best_run_is_the_lowest_or_the_highest(sweep: Sweep, by: str, lowest: bool) -> None:
    values = sweep.frame[by]
    assert sweep.best(by).folder == Path(sweep.frame["folder"][values.idxmin() if lowest else values.idxmax()])


def test_what_no_run_has_is_refused_in_one_line(sweep: Sweep, tmp_path: Path) -> None:
    failed = load_sweep(made.write_sweep(tmp_path / "failed", ["boom", None]))
    other = [made.made_run(LABELS)[0], made.made_run(LABELS, rank=2)[0]]
    other[1] = dataclasses.replace(other[1], spec=dataclasses.replace(other[1].spec, model=made.ModelSpec((8,))))
    models = load_sweep(made.write_sweep(tmp_path / "models", [(result, made.made_run(LABELS)[1]) for result in other]))
    for call, line in (
        (lambda: sweep.best(target=5), "target=5: no job has it; there are 3, 9"),
        (lambda: sweep.best(rnk=4), "rnk: no such column; settings that vary are target, rank"),
        (lambda: sweep.plot_heat_maps(status="failed"), "no finished run has a value of target_error to draw"),
        (lambda: sweep.best("rank"), "by=rank: no such measure; allowed: target_error_before, "),
        (lambda: sweep.best("validation_target_error"), "by=validation_target_error: no finished run has a value"),
        (failed.best, "has no finished run"),
        (models.best, "has no best run of several tasks"),
        (models.best, "; pass one, such as best(hidden='"),
        (lambda: list_sweeps(tmp_path / "nowhere"), "nowhere: no such folder"),
        (failed.plot_heat_maps, "no finished run has a value of target_error to draw"),
        (failed.plot_parameters, "no finished run has a value of parameters_adapter to draw"),
        (failed.plot_loss_curves, "no run has a loss to draw"),
    ):
        with pytest.raises(LoraExpError) as caught:
            call()
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_slice_of_a_sweep_is_a_list_of_its_runs(sweep: Sweep) -> None:
    assert [run.folder.name for run in sweep[0:2]] == ["0", "1"] and sweep[9:] == []


def test_figures_are_those_of_the_report(sweep: Sweep) -> None:
    assert sweep.plot_heat_maps().axes[0].get_ylabel() == "target class"
    assert sweep.plot_parameters().axes[0].get_title() == "Error on the target class"
    assert sweep.plot_loss_curves().axes[0].get_title() == "Loss during fine-tuning"
    marks = [len(own.get_offsets()) for own in sweep.plot_gain_against_price().axes[0].collections]
    assert sum(marks) == len(sweep.runs)
    ranks = [label.get_text() for label in sweep.plot_heat_maps(rank=[1, 4], target=3).axes[0].get_xticklabels()]
    assert ranks == ["1", "4"]
    assert len(sweep.plot_loss_curves(rank=4, target=9).axes[0].lines) <= 3


def test_what_is_shown_of_a_sweep_is_short_and_escaped(sweep: Sweep, tmp_path: Path) -> None:
    assert repr(sweep) == (
        f"<Sweep {sweep.folder}: 9 jobs (6 finished, 1 diverged, 1 failed, 1 missing) over class, rank>"
    )
    assert repr(sweep[7]) == f"<Run {sweep.folder / '7'}: failed: no <memory>>"
    assert "failed: no &lt;memory&gt;" in sweep[7]._repr_html_() and "<table" in sweep[0]._repr_html_()
    assert "diverged at step 5" in sweep[6]._repr_html_()
    runs = [named(made.made_run(LABELS, (3,), rank), ("0", "1", "2", "<script>", *"456789")) for rank in range(1, 25)]
    folder = made.write_sweep(tmp_path / "s", runs)
    renamed(folder, name="<img src=x>")
    page = load_sweep(folder)._repr_html_()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page and "&lt;img src=x&gt;" in page
    assert page.count("<table") == 2 and "4 more rows; .frame has all" in page


def test_sweeps_are_listed_from_the_newest_with_their_jobs_by_status(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "runs" / "day"
    made.write_sweep(there / "later", [made.made_run(LABELS), "boom"])
    write_failure(there / "later" / "1", "name", [], Stopped(3, 9, "both_errors", 0.5, 0.4, 4))
    about = json.loads((there / "later" / "sweep.json").read_text())
    (there / "later" / "sweep.json").write_text(
        json.dumps(about | {"name": "later", "started": "2026-02-02T03:04:05+00:00"})
    )
    made.write_sweep(there / "damaged", ["boom"])
    (there / "damaged" / "sweep.json").write_text("{")
    (there / "link").symlink_to(folder)
    made.write_sweep(there / "earlier", [made.made_run(LABELS, diverged_at=3), None, "boom"])
    found = list_sweeps(tmp_path / "runs")
    assert found["name"].tolist() == ["later", "ranks by digit"]
    counts = found[["jobs", "finished", "diverged", "stopped", "failed", "missing"]]
    assert counts.to_numpy().tolist() == [[2, 1, 0, 1, 0, 0], [3, 0, 1, 0, 1, 1]]
    assert found["started"].dt.year.tolist() == [2026, 2026]
    assert load_sweep(found["folder"][0]).name == "later" and found["command"][1] == "lora-exp -m adapter.rank=1,2"
    (tmp_path / "empty").mkdir()
    nothing = list_sweeps(tmp_path / "empty")
    assert nothing.empty and list(nothing) == list(found)
