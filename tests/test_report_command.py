"""python -m pytest tests/test_report_command.py: a report written again, and one report of several sweeps."""

from __future__ import annotations

from pathlib import Path

import made_results as made
import pandas as pd
import pytest
from places import QUICK, Place, prepared

from lora_exp.model.data import ImageData
from lora_exp.storage.sweep_folder import join, read_sweep

FEW = made.pictures_and_labels()[1][:500]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Place:
    """Two sweeps that share a run: digit 3 at rank 1 with seed 0; the second has a job that diverges."""
    place = prepared(tmp_path_factory.mktemp("two sweeps"), data_root)
    place.run("-m", *QUICK, "finetune.digit=3,4", "adapter.rank=1", "hydra.sweep.dir=runs/a/first")
    rates = ["finetune.learning_rate=0.001,1e30", "adapter.dropout=0,0.1"]
    place.run("-m", *QUICK, "finetune.digit=3", *rates, "hydra.sweep.dir=runs/a/second", code=1)
    return place


def test_a_report_made_again_is_the_one_that_the_sweep_wrote(place: Place) -> None:
    [written] = place.folder.glob("multirun_reports/a-first")
    before = {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}
    assert {"report.md", "report.html", "summary.csv", "summary.parquet"} == set(before)
    (written / "report.html").unlink()
    out, _ = place.run("report", "runs/a/first")
    assert str(written / "report.html") in out
    assert {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()} == before


def test_two_sweeps_in_one_report_count_a_run_that_both_have_once(place: Place) -> None:
    place.run("report", "runs/a/first", "runs/a/second", "--out", "both")
    table = pd.read_csv(place.folder / "both" / "summary.csv")
    assert list(table["job"]) == list(range(5))
    assert list(table["sweep"]) == ["a-first"] * 2 + ["a-second"] * 3
    assert list(table["folder"]) == ["first/0", "first/1", "second/1", "second/2", "second/3"]
    assert list(table["status"]).count("diverged") == 2
    assert list(table["dropout"]) == [0, 0, 0.1, 0, 0.1]
    page = (place.folder / "both" / "report.md").read_text()
    assert "# a-first+a-second" in page and "jobs: 3 finished, 2 diverged" in page
    # A row of it can be made again as one of a sweep can.
    printed, _ = place.run("reproduce", "both/summary.csv:1")
    assert "reproduced: all" in printed


def test_an_experiment_of_the_tracker_has_a_report_of_its_runs(place: Place) -> None:
    out, _ = place.run("report", "--experiment", "lora_exp", "--out", "all of it")
    assert "all of it/report.html" in out
    table = pd.read_csv(place.folder / "all of it" / "summary.csv")
    assert set(table["sweep"]) == {"a-first", "a-second"}
    assert sorted(table["status"]) == ["diverged"] * 2 + ["finished"] * 3
    first = read_sweep(place.folder / "runs/a/first").frame
    joined = table[table["spec_key"] == first["spec_key"][1]]
    assert joined["target_error"].tolist() == [first["target_error"][1]]
    assert "No figure for job" in (place.folder / "all of it" / "report.md").read_text()
    _, printed = place.run("report", "--experiment", "other", code=2)
    assert "tracking.experiment=other: is not in" in printed and "lora_exp" in printed


def test_a_run_of_an_experiment_whose_files_are_gone_is_counted_and_named(place: Place) -> None:
    results = place.folder.glob("mlartifacts/*/artifacts/result.json")
    kept = {path: path.read_bytes() for path in results if '"diverged_at": null' in path.read_text()}
    for path in kept:
        path.unlink()
    told = "".join(place.run("report", "--experiment", "lora_exp", "--out", "fewer"))
    for path, content in kept.items():
        path.write_bytes(content)
    assert f"{len(kept)} runs are left out, since their artifacts hold no result.json: " in told
    assert list(pd.read_csv(place.folder / "fewer" / "summary.csv")["status"]) == ["diverged", "diverged"]


def test_what_is_no_sweep_is_refused_in_one_line(place: Place) -> None:
    (place.folder / "thesis").mkdir()
    (place.folder / "thesis" / "text").touch()
    for arguments, reason in (
        (["report", "nowhere"], "nowhere: holds no run"),
        (["report", "runs/a/first", "--out", "thesis"], "thesis: exists and is not a report"),
        (["report", "runs/a/first", "report.name=a/b"], "report.name=a/b: must be"),
    ):
        _, printed = place.run(*arguments, code=2)
        assert reason in printed and len(printed.strip().splitlines()) == 1


def test_settings_without_a_column_of_their_own_tell_runs_apart(tmp_path: Path) -> None:
    runs = [made.made_run(FEW, rank=rank) for rank in (1, 2)]
    sweeps = [read_sweep(made.write_sweep(tmp_path / name, [run])) for name, run in zip("ab", runs, strict=True)]
    joined = join(sweeps)
    assert joined.name == "2 sweeps from ranks by digit"
    assert list(joined.frame["rank"]) == [1, 2]
    assert joined.logits(1) is not None
    assert joined.frame.dtypes.to_dict() == sweeps[0].frame.dtypes.to_dict()
