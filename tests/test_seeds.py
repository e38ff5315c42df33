"""python -m pytest tests/test_seeds.py: what seeds carry is said, and no more."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora_exp.report.seeds import LEAST_SEEDS, Comparison, compare
from lora_exp.storage.table import frame_of

SAME = {"target": "3", "method": "lora", "origin": "trained here", "alpha": 1.0, "scaling": 1.0, "layers": "linear1"}
SAME |= {"learning_rate": 1e-3, "batch_size": 10, "replay": 0.0, "hidden": "64", "data": "mnist", "base_seed": 0}
SAME |= {"steps": 100, "status": "finished", "parameters_adapter": 100}
Errors = Callable[[int, int], tuple[float, float]]  # rank and seed -> target error and forgetting


def frame(ranks: list[int], seeds: list[int], errors: Errors, **other: Any) -> pd.DataFrame:
    rows = []
    for rank in ranks:
        for seed in seeds:
            target, forgetting = errors(rank, seed)
            row = SAME | {"rank": rank, "seed": seed, "target_error": target, "forgetting": forgetting}
            row |= {"balanced_accuracy_gained": 0.2 - target, "beyond_shift": 0.01 - forgetting} | other
            rows.append(row | {"job": len(rows), "other_error": 0.1 + forgetting})
    return frame_of(rows, {})


def noisy(effect: float, noise: float) -> Errors:
    random = np.random.default_rng(0)
    return lambda rank, seed: (0.01 * seed + effect * rank + noise * random.standard_normal(), 0.02)


def compared(table: pd.DataFrame) -> Comparison:
    found = compare(table)
    assert found is not None
    return found


def test_a_clear_difference_is_called_better_and_the_lowest_best() -> None:
    told = compared(frame([1, 2, 4], [0, 1, 2, 3, 4], noisy(0.05, 0.001))).sentences()
    assert told[0] == "Better than doing nothing: rank 1; rank 2 (gain in balanced accuracy)."
    assert told[1] == "No setting is better than moving one threshold (forgetting below that of a moved threshold)."
    assert told[2] == (
        "Best gain in balanced accuracy: rank 1 (balanced accuracy +13.00 points, forgetting +2.00 points), "
        "better than doing nothing and every other setting."
    )
    assert told[3].startswith("Best error on the target: rank 1 (")
    assert told[4].startswith("Lowest forgetting: ") and "no significant difference from any other setting" in told[4]
    assert told[5] == (
        "Significance: paired t tests over 5 orders of images over one base, which say nothing of others, p < 0.05 "
        "with Holm's correction for the 6 tests against doing nothing and a moved threshold, and for the 9 of all "
        "pairs and measures."
    )


def test_a_setting_that_is_worse_than_doing_nothing_is_never_called_best() -> None:
    table = frame([1, 2, 4], [0, 1, 2, 3, 4], noisy(0.05, 0.001))
    table = table.assign(balanced_accuracy_gained=table["balanced_accuracy_gained"] - 0.3)
    told = compared(table).sentences()
    assert (
        told[0] == "No setting is better than doing nothing; worse: rank 1; rank 2; rank 4 (gain in balanced accuracy)."
    )
    assert told[2].endswith("better than every other setting, but not better than doing nothing.")
    assert told[2].startswith("Highest gain in balanced accuracy: rank 1") and "Best" not in " ".join(told)


def test_a_setting_of_which_a_run_diverged_is_never_called_better() -> None:
    table = frame([1, 2], [0, 1, 2, 3, 4], noisy(0.05, 0.001))
    assert compared(table).sentences()[0].startswith("Better than doing nothing: rank 1; rank 2")
    table.loc[4, "status"] = "diverged"  # the last seed of rank 1
    found = compared(table)
    assert [setting.lost for setting in found.settings] == [1, 0]
    told = found.sentences()
    assert told[0].startswith("Better than doing nothing: rank 2 (")
    assert told[2].startswith("Highest gain in balanced accuracy: rank 1") and "1 of its runs diverged" in told[2]


def test_settings_whose_values_are_written_alike_stay_apart() -> None:
    parts = [frame([1], range(4), noisy(0.0, 0.01), learning_rate=rate) for rate in (1e-3, 1e-3 + 1e-12, 2e-3)]
    found = compared(pd.concat(parts, ignore_index=True).assign(job=range(12)))
    assert len(found.settings) == 3 and [len(ranking.others) for ranking in found.rankings] == [2, 2, 2]
    assert len({id(other) for other, _ in found.rankings[0].others}) == 2


def test_differences_of_the_size_of_chance_are_not_called_better() -> None:
    table = frame([1, 2, 4], [0, 1, 2, 3, 4], noisy(0.0, 0.01))
    table = table.assign(balanced_accuracy_gained=table["balanced_accuracy_gained"] - 0.18, beyond_shift=0.0)
    told = " ".join(compared(table).sentences())
    assert "est " in told and told.count("etter") == 2 and told.count("No setting is better") == 2
    assert "Best" not in told


@pytest.mark.parametrize("effect", [0.02, 0.0])
def test_p_values_are_those_of_paired_t_tests_with_holms_correction(effect: float) -> None:
    table = frame([1, 2, 4, 8], [0, 1, 2, 3], noisy(effect, 0.01))
    found = compared(table)
    values = {rank: group["target_error"].to_numpy() for rank, group in table.groupby("rank")}
    pairs = list(combinations(values, 2))  # the gain is a constant minus the target error, forgetting never differs
    chances = [stats.ttest_rel(values[a], values[b]).pvalue for a, b in pairs] * 2 + [1.0] * len(pairs)
    order = np.argsort(chances)
    holm = np.empty(len(chances))
    holm[order] = np.minimum(1, np.maximum.accumulate(np.sort(chances) * np.arange(len(chances), 0, -1)))
    ranking = found.rankings[1]
    lowest = min(values, key=lambda rank: values[rank].mean())
    assert ranking.first.values == {"rank": lowest}
    others = {other.values["rank"]: chance for other, chance in ranking.others}
    for (a, b), chance in zip(pairs, holm[len(pairs) : 2 * len(pairs)], strict=True):
        if lowest in (a, b):
            assert others[b if a == lowest else a] == pytest.approx(chance)


def test_p_values_against_the_contestants_are_those_of_t_tests_with_holms_correction() -> None:
    table = frame([1, 2], range(5), noisy(0.05, 0.02))
    random = np.random.default_rng(3)
    table = table.assign(beyond_shift=random.normal(0.01, 0.01, 10))
    chances = [
        stats.ttest_1samp(group[name], 0).pvalue
        for _, group in table.groupby("rank")
        for name in ("balanced_accuracy_gained", "beyond_shift")
    ]
    order = np.argsort(chances)
    holm = np.empty(4)
    holm[order] = np.minimum(1, np.maximum.accumulate(np.sort(chances) * np.arange(4, 0, -1)))
    found = [chance for setting in compared(table).settings for chance in setting.chances.values()]
    assert found == pytest.approx(holm.tolist())


def test_means_deviations_and_intervals_are_over_seeds_not_over_digits() -> None:
    parts = [frame([1, 2], [0, 1, 2], noisy(0.01, 0.02), target=digit) for digit in ("3", "8")]
    both = pd.concat(parts, ignore_index=True).assign(job=range(12))
    setting = compared(both).settings[0]
    by_seed = both[both["rank"] == 1].groupby("seed")["target_error"].mean()
    mean = setting.means["target_error"]
    assert (setting.runs, setting.seeds) == (6, 3)
    assert mean.mean == pytest.approx(by_seed.mean())
    assert setting.deviations["target_error"] == pytest.approx(by_seed.std())
    limits = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert (mean.low, mean.high) == pytest.approx(limits)


def test_what_is_tested_are_the_means_of_seeds_over_their_digits() -> None:
    parts = [frame([1, 2], [0, 1, 2], noisy(0.01, 0.02), target=digit) for digit in ("3", "8")]
    both = pd.concat(parts, ignore_index=True).assign(job=range(12))
    found = compared(both)
    assert found.seeds == 3 and "over 3 orders of images over one base" in found.sentences()[-1]
    by_seed = both.groupby(["rank", "seed"])["target_error"].mean()
    chance = stats.ttest_rel(by_seed[1], by_seed[2]).pvalue
    # Holm's first of three tests: forgetting never differs, and the gain has the same p value.
    assert [own for _, own in found.rankings[1].others] == pytest.approx([min(1.0, 3 * chance)])


def test_seeds_that_a_setting_lacks_are_left_out_of_the_tests_only() -> None:
    whole = frame([1, 2], [0, 1, 2, 3, 4], noisy(0.05, 0.001))
    found = compared(whole[~((whole["rank"] == 2) & (whole["seed"] > 2))].reset_index(drop=True))
    assert [setting.seeds for setting in found.settings] == [5, 3]
    assert found.seeds == 3 and found.rankings
    few = compared(whole[~((whole["rank"] == 2) & (whole["seed"] > 1))].reset_index(drop=True))
    assert few.sentences()[-1] == f"All settings have 2 of 5 seeds in common; a test needs at least {LEAST_SEEDS}."
    apart = compared(whole[(whole["rank"] == 1) == (whole["seed"] > 2)].reset_index(drop=True))
    assert apart.sentences()[-1].startswith("No seed and target are common to all settings")


def test_digits_that_a_setting_lacks_are_left_out_of_the_tests_only() -> None:
    parts = [frame([1, 2], [0, 1, 2], noisy(0.01, 0.02), target=digit) for digit in ("3", "8")]
    both = pd.concat(parts, ignore_index=True).assign(job=range(12))
    both.loc[both["target"] == "8", "target_error"] += 0.5  # a digit that is hard for all
    found = compared(both[(both["rank"] == 1) | (both["target"] == "3")].reset_index(drop=True))
    easy = {rank: group["target_error"].to_numpy() for rank, group in both[both["target"] == "3"].groupby("rank")}
    chance = stats.ttest_rel(easy[1], easy[2]).pvalue
    assert [own for _, own in found.rankings[1].others] == pytest.approx([min(1.0, 3 * chance)])
    assert [setting.runs for setting in found.settings] == [6, 3]


def test_one_seed_tells_nothing_from_chance() -> None:
    told = compared(frame([1, 2], [0], noisy(0.5, 0.0))).sentences()
    assert told == ["Every setting ran with one seed, so small differences between settings may be chance."]
    assert compared(frame([1], [0, 1], noisy(0.5, 0.0))).sentences() == []
    assert compare(frame([1], [0], noisy(0.5, 0.0), status="failed")) is None


def test_a_difference_that_does_not_vary_has_no_scale_and_is_not_called_certain() -> None:
    found = compared(frame([1, 2], [0, 1, 2], lambda rank, seed: (0.125 * rank, 0.0)))
    assert [chance for _, chance in found.rankings[1].others] == [1.0]
    assert [setting.standing("balanced_accuracy_gained") for setting in found.settings] == [0, 0]


def test_bases_with_seeds_of_their_own_are_what_is_counted() -> None:
    parts = [frame([1, 2], [0, 1, 2], noisy(0.01, 0.02), base_seed=seed) for seed in (0, 1)]
    found = compared(pd.concat(parts, ignore_index=True).assign(job=range(12)))
    assert [setting.seeds for setting in found.settings] == [2, 2]
    assert "2 of 2 seeds" in found.sentences()[0]


def test_steps_that_follow_from_epochs_are_no_setting() -> None:
    parts = [
        frame([1, 2], [0, 1, 2], noisy(0.01, 0.02), target=d, steps=s, epochs=1.0) for d, s in (("3", 60), ("8", 58))
    ]
    found = compared(pd.concat(parts, ignore_index=True).assign(job=range(12)))
    assert [setting.label for setting in found.settings] == ["rank 1", "rank 2"]


def test_without_any_difference_better_is_said_of_one_sweep_in_twenty() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        noise = random.normal((0.1, 0.02), 0.01, (4, 4, 2))
        pure = frame([0, 1, 2, 3], [0, 1, 2, 3], lambda rank, seed, drawn=noise: tuple(drawn[rank, seed]))  # type: ignore[misc]
        pure = pure.assign(balanced_accuracy_gained=-pure["target_error"], beyond_shift=0.0)  # none beats the base
        alarms += any(chance < 0.05 for one in compared(pure).rankings for _, chance in one.others)
    assert alarms <= 5  # 2 on average; more than 5 have a chance of 1 %
