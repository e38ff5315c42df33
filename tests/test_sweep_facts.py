"""python -m pytest tests/test_sweep_facts.py

What is told of a sweep: numbers that sort, and a description whose links lead to the runs that stand out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lora_exp.tracking.sweep_facts import SHOWN, Pages, description_of, metrics_of_sweep
from made_results import made_run, pictures_and_labels, write_sweep

from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.storage.trade_off import pareto_front, representative

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


def test_the_metrics_count_the_jobs_and_give_means_and_lowest_values_of_the_sound_runs(sweep: Sweep) -> None:
    metrics = metrics_of_sweep(sweep.frame)
    counts = {name: value for name, value in metrics.items() if name.startswith("jobs_")}
    assert counts == {"jobs_finished": 6, "jobs_diverged": 1, "jobs_failed": 1, "jobs_missing": 1}
    sound = sweep.frame[sweep.frame["status"] == "finished"]
    assert metrics["mean_target_error"] == sound["target_error"].mean()
    assert metrics["lowest_forgetting"] == sound["forgetting"].min()
    assert metrics["lowest_sum_of_both_errors"] == (sound["target_error"] + sound["other_error"]).min()
    assert metrics["pareto_runs"] == len(pareto_front(sweep.frame))


def test_the_description_links_to_the_runs_that_stand_out_and_says_what_they_cost(sweep: Sweep) -> None:
    pages = Pages({job: f"#/run/{job}" for job in range(9)}, "#/all", "#/report")
    told = description_of(sweep, pages)
    counts = "9 jobs: 6 finished, 1 diverged, 1 failed, 1 missing."
    assert told.startswith(f"{counts} [All runs of this sweep](#/all), [its report](#/report).\n\n")
    lowest = representative(sweep.frame)
    row = sweep.frame.loc[lowest]
    numbers = [100 * row[name] for name in ("target_error_before", "target_error", "other_error_before", "other_error")]
    cells = [*(f"{number:.2f} %" for number in numbers), f"{100 * row['forgetting']:+.2f}"]
    link = f"[{row['name']}](#/run/{lowest})"
    assert f"Lowest sum of both errors: {link}, error on the target {cells[0]} to {cells[1]}, on the other" in told
    assert f"| {' | &emsp;'.join([link, *cells])} |" in told
    front = told.partition("Pareto front")[2]
    assert [f"(#/run/{job})" in front for job in range(9)] == [job in pareto_front(sweep.frame) for job in range(9)]
    assert told.endswith(f"```\n{sweep.command}\n```")
    assert "best" not in told.lower() and "better" not in told.lower()


def test_a_long_command_and_a_long_front_leave_a_description_that_mlflow_takes_whole(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [made_run(LABELS)] * 30))
    sweep = replace(sweep, command="lora-exp -m " + "adapter.rank=1 " * 1000)
    pages = Pages({job: f"#/experiments/12345/runs/{job:032}" for job in range(30)}, "#/" + "a" * 200, None)
    told = description_of(sweep, pages)
    assert f"(the first {SHOWN} of 30)" in told
    assert told.count("\n| [") == SHOWN
    assert len(told) < 8000


def test_a_sweep_without_a_sound_run_says_what_became_of_its_jobs(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", ["no luck", None]))
    told = description_of(sweep, Pages({}, "#/all", None))
    assert told.startswith("2 jobs: 1 failed, 1 missing. [All runs of this sweep](#/all).\n\n```\n")
    assert metrics_of_sweep(sweep.frame) == {"jobs_failed": 1, "jobs_missing": 1}
