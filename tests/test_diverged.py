"""python -m pytest tests/test_diverged.py

A run that diverged, at whichever step, has no errors: it is never the best, never found by a filter, never in a mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import forkserver
import numpy as np
import pandas as pd
import pytest
from made_results import made_run, pictures_and_labels, write_sweep
from numpy.typing import NDArray

from lora_exp.config.settings import TrackingSettings
from lora_exp.model.data import ImageData
from lora_exp.report.terminal import sweep_text
from lora_exp.report.verdict import verdict
from lora_exp.report.write import write_report
from lora_exp.storage.recommendation import representative
from lora_exp.storage.result import RunResult, read
from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.storage.table import COLUMNS, pareto_front
from lora_exp.tracking.recorder import Recorder, Ticket

# MLflow 3.17 uses an option that SQLAlchemy 2.1 will remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

STEPS = 5
FILTERS = (
    *("metrics.target_error < 0.1", "metrics.target_error <= 1", "metrics.forgetting < 1", "metrics.other_error >= 0"),
    *("metrics.accuracy > -1", "metrics.`error_after/9` < 1", "metrics.target_error != 0.5"),
)
Made = tuple[RunResult, dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def test_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return pictures_and_labels()


def diverging(labels: NDArray[np.uint8], at: int, value: float, rank: int) -> Made:
    """A run whose losses are `value` from step `at` on, and whose errors look better than any other's."""
    result, predictions = made_run(labels, (9,), rank, diverged_at=at, steps=STEPS)
    out = result.outcome
    best = replace(
        out,
        loss_curve=[*out.loss_curve[: at - 1], *[value] * (STEPS - at + 1)],
        after=replace(out.after, accuracy=1.0, loss=value, errors=[0] * 10, error_rates=[0.0] * 10),
        target_error=0.0,
        other_error=0.0,
        forgetting=-1.0,
    )
    return replace(result, outcome=best), predictions


@pytest.fixture(params=[float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "-inf"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path, test_images: tuple[NDArray[np.uint8], Any]) -> Sweep:
    """Jobs 1 and 3 are sound; 0, 2 and 4 diverged at the first step, in the middle and at the last."""
    labels = test_images[1]
    bad = [diverging(labels, at, request.param, rank) for at, rank in ((1, 1), (3, 3), (STEPS, 5))]
    good = [made_run(labels, (9,), rank, steps=STEPS) for rank in (2, 4)]
    return read_sweep(write_sweep(tmp_path / "sweep", [bad[0], good[0], bad[1], good[1], bad[2]]))


def test_a_diverged_run_has_no_errors_in_the_table_and_is_never_the_best(sweep: Sweep) -> None:
    frame = sweep.frame
    assert list(frame["status"]) == ["diverged", "finished", "diverged", "finished", "diverged"]
    judged = [name for name, column in COLUMNS.items() if column.judgement]
    assert len(judged) > 20
    assert frame.loc[frame["status"] == "diverged", judged].isna().all(axis=None)
    assert representative(frame) in (1, 3)
    assert len(frame.sort_values("target_error").head(2)["job"].isin([1, 3])) == 2
    assert len(frame[frame["target_error"] < 0.1]) <= 2 and len(frame[frame["forgetting"] < 1]) == 2


def test_every_table_shows_it_as_diverged(
    sweep: Sweep, tmp_path: Path, test_images: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_report(sweep, tmp_path / "report", *test_images)
    for frame in (
        pd.read_csv(out / "summary.csv"),
        pd.read_parquet(out / "summary.parquet"),
    ):
        assert list(frame["status"]) == ["diverged", "finished", "diverged", "finished", "diverged"]
        assert (
            frame.loc[frame["status"] == "diverged", ["target_error", "other_error", "forgetting"]]
            .isna()
            .all(axis=None)
        )
    page = (out / "report.md").read_text()
    assert "5 jobs: 2 finished, 3 diverged." in page
    assert page.count("| diverged | ") == 3
    for step in (1, 3, STEPS):
        assert f"the loss stopped being finite at step {step}" in page
    assert not [word for word in ("nan", "inf %", "0.00 % ->") if f" {word}" in page]
    print(sweep_text(sweep.frame, terminal=False), end="")
    text = capsys.readouterr().out
    assert [f"job {job} " in text and "diverged" in text for job in (0, 2, 4)] == [True] * 3
    assert "nan" not in text.lower() and "inf" not in text
    assert "Mean of 2 finished runs (3 diverged besides)" in verdict(sweep.frame)


def test_a_sweep_in_which_all_diverged_has_a_report_without_a_best(tmp_path: Path, test_images: Any) -> None:
    runs = [diverging(test_images[1], at, float("nan"), at) for at in (1, 3, STEPS)]
    sweep = read_sweep(write_sweep(tmp_path / "sweep", runs))
    page = (write_report(sweep, tmp_path / "report", *test_images) / "report.md").read_text()
    assert "No finished run among 3 (3 diverged)" in page and "owest" not in page
    assert representative(sweep.frame) is None


def test_no_filter_of_the_tracker_finds_it(sweep: Sweep, tmp_path: Path) -> None:
    recorder = Recorder.open(TrackingSettings("sqlite", f"sqlite:///{tmp_path}/m.db", str(tmp_path / "artifacts")))
    for job, result in sweep.results.items():
        recorder.record_run(result, sweep.folder / str(job), None, Ticket.new())
    for query in FILTERS:
        found = recorder.client.search_runs([recorder.experiment_id], query)
        assert {run.data.tags["status"] for run in found} <= {"finished"}, query
    assert len(recorder.client.search_runs([recorder.experiment_id], "tags.status = 'diverged'")) == 3
    best = recorder.client.search_runs([recorder.experiment_id], "", order_by=["metrics.target_error ASC"])[0]
    assert best.data.tags["status"] == "finished"
    assert len(recorder.client.search_runs([recorder.experiment_id], "attributes.status = 'FAILED'")) == 3


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> tuple[Path, str]:
    """A sweep of three learning rates and three lengths; at 1e30 the first update is too large already.

    Whether two steps at 1e10 are too many depends on the bits of the base, and so on the processor.
    """
    folder = tmp_path_factory.mktemp("diverged")
    (folder / "cache").mkdir()
    (folder / "cache" / "data").symlink_to(data_root)
    sweep = ("finetune.learning_rate=1e-3,1e10,1e30", "finetune.steps=1,2,5", "report.name=report")
    done = forkserver.run(["-m", "model=tiny", "data.limit=2000", "hydra.sweep.dir=sweep", *sweep], folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    diverged = [path for path in (folder / "sweep").glob("*/result.json") if read(path.parent).diverged]
    assert f"{len(diverged)} of 9 jobs failed" in done.stderr
    return folder, done.stdout


def test_a_real_run_diverges_at_the_first_the_middle_or_the_last_step(real: tuple[Path, str]) -> None:
    at = {
        (run.spec.finetune.learning_rate, run.spec.finetune.steps): run.outcome.diverged_at
        for run in (read(path.parent) for path in (real[0] / "sweep").glob("*/result.json"))
    }
    assert at[1e30, 1] == 1  # no loss of training has seen that update, but that on the test set has
    assert at[1e30, 2] == at[1e30, 5] == 2
    assert at[1e10, 5] in (3, 4, 5)
    assert at[1e-3, 1] is at[1e-3, 2] is at[1e-3, 5] is at[1e10, 1] is None


def test_a_real_diverged_run_is_told_and_never_compared(real: tuple[Path, str]) -> None:
    folder, printed = real
    frame = read_sweep(folder / "sweep").frame
    diverged = frame[frame["status"] == "diverged"]
    count = len(diverged)
    assert count in (4, 5) and diverged["target_error"].isna().all()
    compared = {representative(frame), *pareto_front(frame)}
    assert compared and not compared & set(diverged["job"])
    assert printed.count(" diverged\n") == count and f"({count} diverged besides)" in printed
    page = (folder / "multirun_reports" / "report" / "report.md").read_text()
    assert f"jobs: {9 - count} finished, {count} diverged" in page and page.count("| diverged | ") == count
    recorder = Recorder.open(TrackingSettings("sqlite", f"sqlite:///{folder}/mlflow.db", f"{folder}/mlartifacts"))
    for query in FILTERS:
        found = recorder.client.search_runs([recorder.experiment_id], f"tags.kind = 'run' and {query}")
        assert {run.data.tags["status"] for run in found} <= {"finished"}, query
    assert len(recorder.client.search_runs([recorder.experiment_id], "tags.status = 'diverged'")) == count
    [parent] = recorder.client.search_runs([recorder.experiment_id], "tags.kind = 'sweep'")
    sound = frame[frame["status"] == "finished"]
    assert parent.data.metrics["mean_target_error"] == pytest.approx(sound["target_error"].mean())
    assert parent.data.metrics["jobs_diverged"] == count
