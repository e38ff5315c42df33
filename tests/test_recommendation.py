"""python -m pytest tests/test_recommendation.py: which setting is recommended, for whom, and how sure that is."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from lora_exp.report.recommended import headline, how_sure, note, recommended_table
from lora_exp.report.seeds import compare
from lora_exp.storage.recommendation import Recommendation, recommendations, representative
from lora_exp.storage.table import frame_of

SAME: dict[str, Any] = {"target": "3", "method": "lora", "origin": "trained here", "alpha": 1.0, "layers": "linear1"}
SAME |= {"rank": 4, "seed": 0, "base_seed": 0, "learning_rate": 1e-3, "batch_size": 10, "replay": 0.0, "hidden": "64"}
SAME |= {"data": "mnist", "steps": 100, "status": "finished", "parameters_adapter": 100, "overhead_percent": 0.1}
SAME |= {"target_error_before": 0.1, "target_error": 0.05, "other_error_before": 0.1, "other_error": 0.11}
SAME |= {"forgetting": 0.01, "balanced_accuracy_before": 0.9, "balanced_accuracy": 0.91, "beyond_shift": 0.002}
SAME |= {"beyond_shift_low": -0.001, "beyond_shift_high": 0.005}
SAME |= {"chosen_on": "validation images", "chosen_gained": 0.01, "chosen_forgetting": 0.01}
SAME |= {"elsewhere_gained": 0.01, "elsewhere_forgetting": 0.02}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return frame_of([SAME | {"spec_key": str(job), **row, "job": job} for job, row in enumerate(rows)], {})


def only(table: pd.DataFrame) -> Recommendation:
    [found] = recommendations(table)
    return found


def test_the_setting_that_gained_most_on_held_out_images_is_recommended_and_judged_on_others() -> None:
    found = only(
        frame(
            {"rank": 1, "chosen_gained": 0.02, "elsewhere_gained": -0.01},
            {"rank": 2, "chosen_gained": 0.01, "elsewhere_gained": 0.5},
        )
    )
    assert found.setting == {"rank": 1} and found.jobs == (0,)
    assert found.gained == (-0.01,) and not found.is_gain  # what it gained where it was chosen was chance
    assert "validation images" in note([found]) and "the test images" in note([found])


def test_of_equal_gains_the_one_that_forgot_less_there_is_recommended() -> None:
    assert only(frame({"rank": 1, "chosen_forgetting": 0.2}, {"rank": 2, "chosen_forgetting": 0.1})).jobs == (1,)


def test_each_class_has_its_own_recommendation_and_all_together_come_first() -> None:
    gains = {("2", 1): 0.03, ("2", 4): 0.01, ("10", 1): -0.05, ("10", 4): -0.01}
    rows = [{"target": t, "rank": r, "chosen_gained": g} for (t, r), g in gains.items()]
    every, two, ten = recommendations(frame(*rows))
    assert (every.task_label, two.task_label, ten.task_label) == ("both classes", "class 2", "class 10")
    assert every.setting == {"rank": 4} and every.jobs == (1, 3)
    assert two.setting == {"rank": 1} and two.is_gain
    assert ten.setting == {"rank": 4}
    assert representative(frame(*rows)) == 1
    assert headline([every, two, ten]).endswith("Class by class, 2 of 2 gain.")


def test_data_sets_and_classifiers_are_tasks_of_their_own() -> None:
    rows = [{"data": data, "hidden": hidden} for data in ("mnist", "kmnist") for hidden in ("64", "1000")]
    assert [one.task for one in recommendations(frame(*rows))] == rows
    assert recommendations(frame(*rows))[3].task_label == "class 3, model 1000, kmnist"


def test_seeds_repeat_a_setting_and_are_none() -> None:
    rows = [{"rank": rank, "base_seed": seed, "seed": seed} for rank in (1, 2) for seed in range(3)]
    rows[4] |= {"chosen_gained": 0.5}
    found = only(frame(*rows))
    assert found.jobs == (3, 4, 5) and len(found.gained) == 3 and found.over_bases


def test_a_job_that_was_asked_for_twice_counts_once() -> None:
    assert only(frame({"spec_key": "a"}, {"spec_key": "a"})).jobs == (0,)


def test_a_setting_of_which_a_run_diverged_is_not_recommended_where_another_is_whole() -> None:
    rows = [{"rank": rank, "base_seed": seed} for rank in (1, 2) for seed in (0, 1)]
    rows[0] |= {"chosen_gained": 0.9}
    rows[1] |= {"status": "diverged"}
    assert only(frame(*rows)).setting == {"rank": 2}
    assert only(frame(*rows[:2])).jobs == (0,)  # there is no other


def test_after_halving_the_setting_that_is_left_has_the_name_that_it_had_among_all() -> None:
    stopped = dict.fromkeys(SAME) | {"status": "stopped", "steps": 10}
    rows = [{**stopped, "overrides": f"adapter.rank={rank} finetune.learning_rate=1e-3"} for rank in (1, 2)]
    rows.append({"rank": 4, "overrides": "adapter.rank=4 finetune.learning_rate=1e-3"})
    found = only(frame(*rows))
    assert found.setting_label == "rank 4" and found.others == 0


def test_lost_jobs_without_a_rank_are_told_from_others() -> None:
    lost = {"status": "diverged", "method": "full", "rank": None, "alpha": None, "learning_rate": 1.0}
    kept = [{"rank": rank, "learning_rate": rate} for rank in (1, 4) for rate in (1e-3, 1e-2)]
    assert only(frame(lost, *kept, {"method": "full", "rank": None, "alpha": None})).others == 4
    comparison = compare(frame(lost, *kept))
    assert comparison is not None and [setting.lost for setting in comparison.settings] == [0] * 4


def test_a_setting_without_a_rank_is_found_again() -> None:
    rows = [{"method": "bitfit", "rank": None, "alpha": None, "chosen_gained": 0.2}, {"rank": 2}]
    found = only(frame(*rows))
    assert found.setting_label == "bitfit" and found.jobs == (0,)


@pytest.mark.parametrize(
    ("gained", "words"),
    [
        ([0.01], "1 base: 2 more at least"),
        ([0.010, 0.011, 0.012], "3 bases, +0.85 to +1.35: decided"),
        ([0.01, 0.03, 0.00], "3 bases, -2.46 to +5.13: 5 more to decide"),
        ([0.01, -0.01, 0.0001], "3 bases, -2.48 to +2.49: over 100 more to decide"),
    ],
)
def test_how_sure_it_is_counts_bases(gained: list[float], words: str) -> None:
    rows = [{"base_seed": seed, "elsewhere_gained": gain} for seed, gain in enumerate(gained)]
    assert how_sure(only(frame(*rows))) == words


def test_settings_that_the_same_bases_do_not_tell_from_it_are_named() -> None:
    bad, near = [-0.1, -0.11, -0.1], [0.012, 0.009, 0.011]
    rows = [{"rank": 1, "base_seed": seed, "chosen_gained": 0.1} for seed in range(3)]
    rows += [{"rank": 2, "base_seed": seed, "elsewhere_gained": gain} for seed, gain in enumerate(bad)]
    rows += [{"rank": 3, "base_seed": seed, "elsewhere_gained": gain} for seed, gain in enumerate(near)]
    found = only(frame(*rows))
    assert found.close == ("rank 3",) and found.others == 2
    headings, [row] = recommended_table([found])
    assert headings[-1] == "no difference shown from" and row[-1] == "rank 3"


def test_where_nothing_gains_the_base_is_recommended_and_the_nearest_setting_named() -> None:
    table = frame({"rank": 1, "chosen_gained": -0.1}, {"rank": 2, "chosen_gained": 0.05, "elsewhere_gained": -0.06})
    told = headline(recommendations(table))
    assert told == (
        "Keep the base as it is: the nearest, rank 2, has -6.00 points of balanced accuracy, at +2.00 points of "
        "forgetting (no better than moving one threshold). 1 base: 2 more at least."
    )
    _, [row] = recommended_table(recommendations(table))
    assert row[1] == "the base as it is (next: rank 2)"


def test_without_a_finished_run_nothing_is_recommended() -> None:
    table = frame({"status": "diverged"}, {"status": "failed"})
    assert recommendations(table) == [] and representative(table) is None
