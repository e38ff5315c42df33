"""python -m pytest tests/test_sweep_folder.py: a sweep's folder as a table, whatever became of its jobs."""

from __future__ import annotations

from pathlib import Path

import made_results as made
import numpy as np
import pandas as pd
import pytest

from lora_exp.measures.logits import to_tensors
from lora_exp.storage.result import PREDICTIONS, RESULT
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import read_sweep
from lora_exp.storage.table import row_of

PICTURES, LABELS = made.pictures_and_labels()
UNSOUND = ["diverged", "failed", "missing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five jobs: finished, diverged, failed, missing, finished."""
    runs = [made.made_run(LABELS), made.made_run(LABELS, rank=8, diverged_at=7), "no memory", None]
    return made.write_sweep(tmp_path_factory.mktemp("a sweep") / "my runs", [*runs, made.made_run(LABELS, (2, 7))])


def test_every_job_has_a_row_in_job_order(folder: Path) -> None:
    frame = read_sweep(folder).frame
    assert frame["job"].tolist() == [0, 1, 2, 3, 4]
    assert frame["status"].tolist() == ["finished", *UNSOUND, "finished"]
    assert frame["folder"].tolist() == [str(folder / str(job)) for job in range(5)]


def test_a_finished_row_holds_the_numbers_of_its_result(folder: Path) -> None:
    sweep = read_sweep(folder)
    row = sweep.frame.iloc[4]
    for name, value in row_of(sweep.results[4]).items():
        assert row[name] == value or (value is None and pd.isna(row[name])), name


def test_a_diverged_run_has_no_errors_in_the_table(folder: Path) -> None:
    row = read_sweep(folder).frame.iloc[1]
    for name in row.index:
        if name.startswith(("target_error", "other_error", "forgetting", "accuracy", "errors_")):
            assert pd.isna(row[name]), name
    assert row["rank"] == 8
    assert row["error"] is None


def test_failed_and_missing_jobs_have_no_numbers_but_keep_their_overrides(folder: Path) -> None:
    rows = read_sweep(folder).frame.iloc[2:4]
    kept = ["job", "sweep", "status", "error", "folder", "overrides"]
    assert rows.drop(columns=kept).isna().all(axis=None)
    assert rows["error"].tolist() == ["no memory", None]
    assert "finetune.digit=2" in rows["overrides"].iloc[0]


def test_overrides_are_quoted_for_a_shell(folder: Path) -> None:
    import shlex

    overrides = read_sweep(folder).frame["overrides"].iloc[2]
    assert shlex.split(overrides) == ["finetune.digit=2", "adapter.layers=[linear1, 'linear2']"]


def test_the_table_has_the_same_columns_and_types_when_nothing_finished(folder: Path, tmp_path: Path) -> None:
    some, none = read_sweep(folder).frame, read_sweep(made.write_sweep(tmp_path / "sweep", ["boom", None])).frame
    # Of stages, and of classes, none is known.
    times = [name for name in some if name.startswith(("seconds_", "errors_"))]
    assert some.drop(columns=times).dtypes.drop("alpha").to_dict() == none.dtypes.drop("alpha").to_dict()


def test_a_rank_is_a_whole_number_beside_failed_jobs(folder: Path) -> None:
    assert read_sweep(folder).frame["rank"].astype(object).tolist()[0] == 4
    assert str(read_sweep(folder).frame["rank"].dtype) == "Int64"


def test_alphas_that_are_words_and_numbers_become_text(tmp_path: Path) -> None:
    runs = [made.made_run(LABELS, alpha=16.0), made.made_run(LABELS, alpha="rank"), "boom"]
    assert read_sweep(made.write_sweep(tmp_path / "sweep", runs)).frame["alpha"].tolist() == ["16", "rank", None]
    numbers = read_sweep(made.write_sweep(tmp_path / "numbers", [runs[0], "boom"])).frame["alpha"]
    assert numbers.dtype == np.float64


def test_a_single_run_reads_as_a_sweep_of_one_job(tmp_path: Path) -> None:
    run = made.made_run(LABELS)
    made.write_run(tmp_path / "run", run)
    sweep = read_sweep(tmp_path / "run")
    assert len(sweep.frame) == 1
    assert sweep.name == run[0].spec.name
    assert sweep.command == "lora-exp " + " ".join(made.overrides_of(run[0].spec))


def test_a_single_failed_run_keeps_its_reason(tmp_path: Path) -> None:
    made.write_failure(tmp_path / "run", "no\nmemory", ["adapter.rank=3"])
    row = read_sweep(tmp_path / "run").frame.iloc[0]
    assert (row["status"], row["error"], row["overrides"]) == ("failed", "no memory", "adapter.rank=3")


def test_a_truncated_result_counts_as_failed(tmp_path: Path) -> None:
    folder = made.write_sweep(tmp_path / "sweep", [made.made_run(LABELS), made.made_run(LABELS, rank=2)])
    path = folder / "0" / RESULT
    path.write_text(path.read_text()[:500])
    frame = read_sweep(folder).frame
    assert frame["status"].tolist() == ["failed", "finished"]
    assert RESULT in frame["error"].iloc[0]


@pytest.mark.parametrize("content", [None, '{"name": "x", "jobs": []}', '{"name": "x"}', "[]", "{"])
def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=tmp_path.name) as caught:
        read_sweep(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_predictions_come_back_and_damaged_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    run = made.made_run(LABELS)
    other = read_sweep(made.write_sweep(tmp_path / "sweep", [run, None]))
    logits = other.logits(0)
    assert all(np.array_equal(own, run[1][name]) for name, own in to_tensors(logits, None).items())
    assert len(run[1]) == 3
    (tmp_path / "sweep" / "0" / PREDICTIONS).write_bytes(b"not a safetensors file")
    for job in (0, 1):
        with pytest.raises(ValueError, match="its predictions can't be read"):
            other.logits(job)


def test_the_command_of_a_row_runs_that_job_alone() -> None:
    assert run_command("adapter.rank=2 'data.root=a b'") == "lora-exp adapter.rank=2 'data.root=a b'"
    preset = "adapter.rank=2 experiment=rank_by_digit report.name=example"
    assert run_command(preset) == "lora-exp adapter.rank=2 experiment=rank_by_digit hydra.mode=RUN"
