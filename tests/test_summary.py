"""python -m pytest tests/test_summary.py

What MLflow records of a sweep: numbers that sort, the recommendation for each class, and a description with links.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_results import made_run, pictures_and_labels, write_sweep
from numpy.typing import NDArray

from lora_exp.storage.recommendation import recommendations, representative
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.storage.table import pareto_front
from lora_exp.storage.words import KEEP
from lora_exp.tracking.facts import NOTE
from lora_exp.tracking.summary import ROWS, Links, metrics_of_sweep, tags_of_sweep

LABELS = pictures_and_labels()[1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Three ranks for each of two digits, one run that diverged, a job that failed and one that never ran."""
    runs = [made_run(LABELS, (digit,), rank) for digit in (3, 9) for rank in (1, 4, 16)]
    return read_sweep(
        write_sweep(
            tmp_path_factory.mktemp("sweep") / "sweep",
            [*runs, made_run(LABELS, rank=8, diverged_at=5), "no luck", None],
        )
    )


def metrics(sweep: Sweep) -> dict[str, float]:
    return metrics_of_sweep(sweep.frame, recommendations(sweep.frame))


def tags(sweep: Sweep, report: str | None = "#/report", address: str = "#/run/{}") -> dict[str, str]:
    jobs = range(len(sweep.frame))
    links = Links({job: address.format(job) for job in jobs}, "#/all", report)
    return tags_of_sweep(sweep, recommendations(sweep.frame), links, {job: f"id{job}" for job in jobs})


def test_the_metrics_count_the_jobs_and_give_means_and_lowest_values_of_the_sound_runs(sweep: Sweep) -> None:
    numbers = metrics(sweep)
    counts = {name: value for name, value in numbers.items() if name.startswith("jobs_")}
    assert counts == {"jobs_finished": 6, "jobs_diverged": 1, "jobs_failed": 1, "jobs_missing": 1}
    sound = sweep.frame[sweep.frame["status"] == "finished"]
    assert numbers["mean_target_error"] == sound["target_error"].mean()
    assert numbers["lowest_forgetting"] == sound["forgetting"].min()
    assert numbers["highest_balanced_accuracy_gained"] == sound["balanced_accuracy_gained"].max()
    assert numbers["mean_beyond_shift"] == sound["beyond_shift"].mean()
    assert numbers["pareto_runs"] == len(pareto_front(sweep.frame))


def run_that_gains(rank: int, gained: float, digit: int = 9) -> tuple[RunResult, dict[str, NDArray[Any]]]:
    """A run that gained so much where it was chosen, and half of it elsewhere."""
    result, tensors = made_run(LABELS, (digit,), rank)
    assert result.outcome.gains is not None
    choice = replace(result.outcome.gains.choice, gained=gained, gained_elsewhere=gained / 2, forgetting_elsewhere=0.01)
    gains = replace(result.outcome.gains, choice=choice)
    return replace(result, outcome=replace(result.outcome, gains=gains)), tensors


def test_what_is_recommended_is_a_number_a_tag_and_the_first_sentence_after_the_links(tmp_path: Path) -> None:
    runs = [run_that_gains(rank, gained, digit) for digit in (3, 9) for rank, gained in ((1, 0.01), (4, 0.1))]
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [*runs, "no luck"]))
    numbers, found = metrics(sweep), tags(sweep)
    assert (numbers["recommended_gain"], numbers["recommended_forgetting"]) == (0.05, 0.01)
    assert found["recommended"] == "rank 4"
    assert found["chosen_run"] == f"id{representative(sweep.frame)}" == "id1"
    links, sentence, table = found[NOTE].split("\n\n")[:3]
    assert links == "5 jobs: 4 finished, 1 failed. [All runs of this sweep](#/all), [its report](#/report)."
    assert sentence == (
        "**For both classes: use [rank 4](#/run/1).** Chosen by balanced accuracy on half of the test images; on "
        "images that took no part in the choice: balanced accuracy +5.00 points, forgetting +1.00 points."
    )
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| both classes", "| class 3", "| class 9"]
    assert [row[1] for row in rows] == [f"&emsp;[rank 4](#/run/{job})" for job in (1, 1, 3)]


def test_where_no_setting_gains_the_base_is_to_be_kept_and_nothing_is_gained(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [run_that_gains(1, -0.1), run_that_gains(4, -0.2)]))
    assert metrics(sweep)["recommended_gain"] == 0
    found = tags(sweep)
    assert found["recommended"] == KEEP
    assert "**For class 9: keep the base as it is.** The nearest is [rank 1](#/run/0), by" in found[NOTE]


def test_the_description_lists_a_front_of_each_class_and_names_its_runs_by_what_varies(sweep: Sweep) -> None:
    shown = tags(sweep)[NOTE]
    front = shown.partition("Pareto fronts of each class")[2]
    assert [f"(#/run/{job})" in front for job in range(9)] == [job in pareto_front(sweep.frame) for job in range(9)]
    for job in pareto_front(sweep.frame):
        row = sweep.frame.loc[job]
        rates = [row[name] for name in ("target_error_before", "target_error", "other_error_before", "other_error")]
        cells = [
            f"[class {row['target']}, rank {row['rank']}](#/run/{job})",
            *(f"{100 * rate:.2f} %" for rate in rates),
        ]
        forgetting = f"{100 * row['forgetting']:+.2f}"
        assert f"| {' | &emsp;'.join([*cells, forgetting])} |" in front
    assert shown.endswith(f"```\n{sweep.command}\n```")
    assert "best" not in shown.lower() and "better" not in shown.lower()


def test_a_long_command_and_long_fronts_leave_a_description_that_mlflow_takes_whole(tmp_path: Path) -> None:
    runs = [made_run(LABELS, (digit,), base_seed=seed) for digit in range(10) for seed in range(3)]
    sweep = read_sweep(write_sweep(tmp_path / "sweep", runs))
    sweep = replace(sweep, command="lora-exp -m " + "adapter.rank=1 " * 1000)
    front = len(pareto_front(sweep.frame))
    assert front > ROWS
    shown = tags(sweep, None, "#/experiments/12345/runs/{:032}?workflowType=machine_learning")[NOTE]
    assert f"(the first {ROWS} of {front})" in shown
    assert shown.count("\n| [") == ROWS
    assert len(shown) < 8000


def test_names_of_classes_can_not_break_the_tables(tmp_path: Path) -> None:
    names = tuple(f"{'x' * 300}{digit}" if digit < 9 else "a|b](#c) *d*" for digit in range(10))
    made = [made_run(LABELS, (digit,)) for digit in (9, 3)]
    runs = [(replace(one, facts=replace(one.facts, classes=names)), tensors) for one, tensors in made]
    shown = tags(read_sweep(write_sweep(tmp_path / "sweep", runs)))[NOTE]
    assert r"[a\|b\](#c) \*d\*](#/run/0)" in shown
    assert "x" * 61 not in shown and len(shown) < 8000


def test_a_sweep_without_a_sound_run_says_what_became_of_its_jobs(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", ["no luck", None]))
    found = tags(sweep, None)
    assert found.keys() == {NOTE}
    assert found[NOTE].startswith("2 jobs: 1 failed, 1 missing. [All runs of this sweep](#/all).\n\n```\n")
    assert metrics(sweep) == {"jobs_failed": 1, "jobs_missing": 1}
