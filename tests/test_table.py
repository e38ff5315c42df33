"""python -m pytest tests/test_table.py: the row of a result, and the runs that stand out in a table."""

from __future__ import annotations

import math
from dataclasses import replace

import made_results as made
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import small_result as result

from lora_exp.config.spec import AdapterSpec
from lora_exp.measures.logits import Logits
from lora_exp.measures.measured import gains
from lora_exp.measures.shift import halves
from lora_exp.storage.recommendation import representative
from lora_exp.storage.result import IMPORTED_FROM
from lora_exp.storage.table import COLUMNS, frame_of, pareto_front, row_of

RATES = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3]), st.sampled_from([-0.1, 0.0, 0.1, 0.2])), max_size=30)


def table(rates: list[tuple[float, float]], status: str = "finished") -> pd.DataFrame:
    rows = [{"target_error": error, "forgetting": cost} for error, cost in rates]
    return frame_of([row | {"job": job, "status": status} for job, row in enumerate(rows)], {})


@given(RATES)
def test_the_front_is_what_no_run_beats(rates: list[tuple[float, float]]) -> None:
    def beaten(run: tuple[float, float]) -> bool:
        return any(a <= run[0] and b <= run[1] and (a, b) != run for a, b in rates)

    front = pareto_front(table(rates))

    assert sorted(front) == [job for job, run in enumerate(rates) if not beaten(run)]
    assert [rates[job][0] for job in front] == sorted(rates[job][0] for job in front)


def test_a_run_without_errors_stands_out_nowhere() -> None:
    lost = table([(0.0, 0.0)], status="diverged")

    assert pareto_front(lost) == []
    assert representative(lost) is None


def test_a_front_is_of_one_class_and_never_across_several() -> None:
    rows = [("1", 0.1, 0.1), ("2", 0.2, 0.2), ("1", 0.2, 0.2), ("2", 0.3, 0.1)]
    own = [{"target": name, "target_error": error, "forgetting": cost} for name, error, cost in rows]
    frame = frame_of([row | {"job": job, "status": "finished"} for job, row in enumerate(own)], {})
    assert pareto_front(frame) == [0, 1, 3]


def test_the_run_to_show_is_not_chosen_by_the_images_that_it_is_judged_on() -> None:
    """A run that is better on the images of the choice alone is shown, one that is better elsewhere alone is not."""
    labels = made.pictures_and_labels()[1][:2000]
    second = halves(labels)
    runs = []
    for chosen in (~second, second):
        after = labels.copy()
        after[~chosen] = (after[~chosen] + 1) % 10
        logits = Logits(labels, *(np.eye(10, dtype=np.float32)[predicted] for predicted in (labels, after)))
        runs.append(result(gains=gains(logits, None, (3, 8))))
    rows = [row_of(run) | {"job": job} for job, run in enumerate(runs)]
    frame = frame_of(rows, dict(enumerate(runs)))
    assert representative(frame) == 0
    assert frame["chosen_gained"].tolist() == pytest.approx([0.0, -1.0])
    assert frame["elsewhere_gained"].tolist() == pytest.approx([-1.0, 0.0])
    assert frame["balanced_accuracy_gained"].tolist() == pytest.approx([-0.5, -0.5], abs=0.01)


def test_a_result_of_an_older_version_is_chosen_by_its_test_images_and_says_so() -> None:
    row = row_of(result())
    assert (row["chosen_on"], row["chosen_forgetting"]) == ("the test images", 0.1)
    assert row["chosen_gained"] == pytest.approx(-0.1)
    assert "beyond_shift" not in row


def test_a_row_tells_setting_errors_and_times() -> None:
    one = result()
    row = row_of(one)
    expected = {
        "name": "target-3-8_lora_rank-4_alpha-2_seed-7",
        "target": "3,8",
        "rank": 4,
        "alpha": 2.0,
        "scaling": 0.5,
        "seed": 7,
        "replay": 0.25,
        "layers": "linear1,linear2",
        "hidden": "1000-2000",
        "data": "mnist",
        "base_seed": 3,
        "steps": 3,
        "status": "finished",
        "target_error": 0.2,
        "forgetting": 0.1,
        "accuracy_before": 0.9,
        "accuracy": 0.8,
        "parameters_adapter": 27_176,
        "final_loss": 0.05,
        "errors_before_9": 1,
        "errors_0": 2,
        "seconds_fine_tuning": 0.1,
        "spec_key": one.spec.key,
    }
    assert {name: row[name] for name in expected} == expected
    assert not any(isinstance(value, list | dict | tuple) for value in row.values())
    assert list(row) == list(row_of(result(diverged_at=1)))


def test_a_row_of_a_diverged_run_says_so() -> None:
    row = row_of(result(loss_curve=[0.5, math.nan], diverged_at=2))
    assert row["status"] == "diverged"
    assert math.isnan(row["final_loss"])


def test_alpha_rank_stays_a_word_in_a_row() -> None:
    one = result()
    row = row_of(replace(one, spec=replace(one.spec, adapter=AdapterSpec(rank=4, alpha="rank"))))
    assert (row["alpha"], row["scaling"]) == ("rank", 1.0)


def test_a_row_leaves_out_what_means_nothing_or_is_unknown() -> None:
    validated = {"validation_before": made.class_errors(1), "validation_after": made.class_errors(2)}
    sound, diverged = row_of(result(**validated)), row_of(result(**validated, diverged_at=1))
    imported = row_of(replace(result(**validated), provenance={IMPORTED_FROM: "elsewhere"}))
    for name, column in COLUMNS.items():
        if column.value is not None and name != "epochs":
            assert sound[name] is not None, name
            assert (diverged[name] is None) == column.judgement, name
            assert (imported[name] is None) == column.of_training, name
