"""python -m pytest tests/test_facts.py

What MLflow records: parameters that tell runs apart, numbers of a sweep that sort, and a description with links.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from made_results import made_run, pictures_and_labels, write_sweep

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import SPECS, AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.storage.recommendation import representative
from lora_exp.storage.sweep_folder import Sweep, read_sweep
from lora_exp.storage.table import pareto_front
from lora_exp.tracking.facts import FRONT_LIMIT, Links, description_of_sweep, metrics_of_sweep

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
    assert metrics["highest_balanced_accuracy_gained"] == sound["balanced_accuracy_gained"].max()
    assert metrics["mean_beyond_shift"] == sound["beyond_shift"].mean()
    assert metrics["pareto_runs"] == len(pareto_front(sweep.frame))


def test_the_description_links_to_the_runs_that_stand_out_and_says_what_they_cost(sweep: Sweep) -> None:
    links = Links({job: f"#/run/{job}" for job in range(9)}, "#/all", "#/report")
    shown = description_of_sweep(sweep, links)
    counts = "9 jobs: 6 finished, 1 diverged, 1 failed, 1 missing."
    assert shown.startswith(f"{counts} [All runs of this sweep](#/all), [its report](#/report).\n\n")
    lowest = representative(sweep.frame)
    row = sweep.frame.loc[lowest]
    numbers = [100 * row[name] for name in ("target_error_before", "target_error", "other_error_before", "other_error")]
    cells = [*(f"{number:.2f} %" for number in numbers), f"{100 * row['forgetting']:+.2f}"]
    link = f"[{row['name']}](#/run/{lowest})"
    chosen = f"Chosen by balanced accuracy on half of the test images: {link}, error on the target {cells[0]} to "
    assert f"{chosen}{cells[1]}, on the other" in shown
    assert f"| {' | &emsp;'.join([link, *cells])} |" in shown
    front = shown.partition("Pareto front")[2]
    assert [f"(#/run/{job})" in front for job in range(9)] == [job in pareto_front(sweep.frame) for job in range(9)]
    assert shown.endswith(f"```\n{sweep.command}\n```")
    assert "best" not in shown.lower() and "better" not in shown.lower()


def test_a_long_command_and_a_long_front_leave_a_description_that_mlflow_takes_whole(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", [made_run(LABELS)] * 30))
    sweep = replace(sweep, command="lora-exp -m " + "adapter.rank=1 " * 1000)
    links = Links({job: f"#/experiments/12345/runs/{job:032}" for job in range(30)}, "#/" + "a" * 200, None)
    shown = description_of_sweep(sweep, links)
    assert f"(the first {FRONT_LIMIT} of 30)" in shown
    assert shown.count("\n| [") == FRONT_LIMIT
    assert len(shown) < 8000


def test_a_sweep_without_a_sound_run_says_what_became_of_its_jobs(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path / "sweep", ["no luck", None]))
    shown = description_of_sweep(sweep, Links({}, "#/all", None))
    assert shown.startswith("2 jobs: 1 failed, 1 missing. [All runs of this sweep](#/all).\n\n```\n")
    assert metrics_of_sweep(sweep.frame) == {"jobs_failed": 1, "jobs_missing": 1}


def test_every_field_of_a_spec_is_a_parameter_of_its_own() -> None:
    result = made_run(LABELS)[0]
    plain = result.parameters()
    unused = 1 + 5  # learning_rate_ratio, by LoRA; name, patch, width, blocks and heads, by a stack
    assert len(plain) == sum(len(fields(part)) for part in SPECS.values()) - unused
    other = RunSpec(
        ModelSpec((), True, (8,), 5),
        DataSpec("kmnist", 500, 6000, "letters", (8, 8), 3, (1, 2), 0.3, True),
        BaseSpec(2, 20, 1e-4, 1, (1, 3), "ab" * 32, "new", "head"),
        AdapterSpec(
            *("rslora", 3, "rank", (("linear1", 2),), (("linear1", 2.0),), ("linear1",), "kaiming", 0.5, 0.1),
        ),
        FinetuneSpec((2, 7), 100, 0.5, 20, 1e-4, 1, 0.25),
    )
    changed = replace(result, spec=other, outcome=replace(result.outcome, steps=7)).parameters()
    assert changed.keys() == plain.keys() - {"init_std"}  # which kaiming does not use
    assert [name for name in changed if plain[name] == changed[name]] == ["model_kind"]
    transformer = replace(other, model=ModelSpec(kind="vit"))
    assert replace(result, spec=transformer).parameters().keys() >= {"model_patch", "model_width", "model_blocks"}
    assert (changed["alpha"], changed["target"], changed["learning_rate"]) == ("rank", "2,7", "0.0001")
