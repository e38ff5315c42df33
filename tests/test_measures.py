"""python -m pytest tests/test_measures.py

What a run gained and cost, against scikit-learn, statsmodels, brute force and thresholds moved by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn import metrics
from statsmodels.stats import contingency_tables, proportion

from lora_exp.measures import gains as gained
from lora_exp.measures import paired
from lora_exp.measures.classification import measures
from lora_exp.measures.gains import NUMBERS
from lora_exp.measures.logits import Array, Logits, compact, from_tensors, probabilities, to_tensors
from lora_exp.measures.measured import gains
from lora_exp.measures.shift import halves, matched_shift

CLASSES = 5


def drawn(seed: int, count: int = 900, gain: float = 0.0, classes: int = CLASSES) -> Logits:
    """A classifier that is right about three times in four, and one whose class 2 has `gain` more, with noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count).astype(np.uint8)
    before = random.normal(0, 1, (count, classes)).astype(np.float32)
    before[np.arange(count), labels] += 1.8
    after = before + random.normal(0, 0.3, before.shape).astype(np.float32)
    after[:, 2] += gain
    return Logits(labels, compact(before), compact(after))


@pytest.mark.parametrize("target", [(2,), (0, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_measures_are_those_of_scikit_learn(seed: int, target: tuple[int, ...]) -> None:
    logits = drawn(seed, gain=1.0)
    own = measures(logits.labels, logits.after, target)
    predicted, chances = logits.after.argmax(axis=1), probabilities(logits.after)
    some = {"labels": list(target), "average": "macro", "zero_division": 0}
    expected = {
        "accuracy": metrics.accuracy_score(logits.labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(logits.labels, predicted),
        "precision": metrics.precision_score(logits.labels, predicted, **some),
        "recall": metrics.recall_score(logits.labels, predicted, **some),
        "f1": metrics.f1_score(logits.labels, predicted, **some),
        "auroc": np.mean([metrics.roc_auc_score(logits.labels == digit, chances[:, digit]) for digit in target]),
        "worst_class_error": 1 - metrics.recall_score(logits.labels, predicted, average=None).min(),
        "predicted_share": np.isin(predicted, target).mean(),
    }
    for name, value in expected.items():
        assert getattr(own, name) == pytest.approx(value, abs=1e-12), name


def test_equal_scores_count_half_in_the_auroc() -> None:
    scores = np.random.default_rng(0).integers(0, 4, 500).astype(float)
    positive = np.random.default_rng(1).random(500) < 0.2 + 0.1 * scores
    from lora_exp.measures.classification import auroc

    assert auroc(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    assert math.isnan(auroc(scores, np.zeros(500, dtype=bool)))


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    logits = drawn(0)
    chances = probabilities(logits.before).max(axis=1)
    right = logits.right_before
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (chances >= low) & (chances < low + 1 / 15)
        if inside.any():
            gaps += inside.sum() * abs(right[inside].mean() - chances[inside].mean())
    found = measures(logits.labels, logits.before, (2,)).calibration_error
    assert found == pytest.approx(gaps / len(chances), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemars_test_is_that_of_statsmodels(mended: int, broken: int) -> None:
    if mended + broken == 0:
        assert paired.sign_test(0, 0) == 1
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = contingency_tables.mcnemar([[9, broken], [mended, 9]], exact=True).pvalue
    assert paired.sign_test(mended, broken) == pytest.approx(min(1.0, expected), rel=1e-9)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (981, 1010)])
def test_wilsons_interval_is_that_of_statsmodels(hits: int, count: int) -> None:
    found = paired.wilson(np.array([float(hits)]), np.array([float(count)]))
    expected = proportion.proportion_confint(hits, count, method="wilson")
    assert [limit[0] for limit in found] == pytest.approx(list(expected), abs=1e-12)


def test_the_paired_interval_is_the_one_that_newcombe_printed() -> None:
    """Newcombe 1998, table III, method 10: 36 right in both, 12 and 2 in one alone, none in neither."""
    cells = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    one, other = np.array(cells).T
    found = paired.change(other, one, np.zeros(len(cells), dtype=int), np.ones(1))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_the_interval_of_a_change_holds_the_truth_about_95_times_in_100() -> None:
    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), 200)
    weights, held = np.array([0.5, 0.0, 0.5]), 0
    right, mended, broken = np.array([0.9, 0.5, 0.7]), np.array([0.3, 0.2, 0.1]), np.array([0.05, 0.1, 0.1])
    truth = float(weights @ ((1 - right) * mended - right * broken))
    for _ in range(1000):
        before = random.random(600) < right[labels]
        after = np.where(before, random.random(600) >= broken[labels], random.random(600) < mended[labels])
        found = paired.change(before, after, labels, weights)
        held += found.low <= truth <= found.high
    assert 925 <= held <= 975


def by_hand(logits: Array, target: int, constant: float) -> Array:
    moved = logits.astype(np.float64).copy()
    moved[:, target] += constant
    return moved.argmax(axis=1)


def test_a_matched_shift_is_what_adding_its_constants_to_the_targets_logit_gives() -> None:
    test = drawn(0, gain=0.8)
    found = matched_shift(test, None, (2,))
    assert found is not None
    second = halves(test.labels)
    right = np.empty(len(test.labels), dtype=bool)
    for constant, chosen in zip(found.constants, (~second, second), strict=True):
        own = test.labels == 2
        reached = (by_hand(test.before, 2, constant) == test.labels)[own & chosen].mean()
        adapted = test.right_after[own & chosen].mean()
        assert abs(reached - adapted) <= 0.5 / (own & chosen).sum() + 1e-9  # as near as whole images allow
        right[~chosen] = (by_hand(test.before, 2, constant) == test.labels)[~chosen]
    assert found.accuracy == pytest.approx(right.mean())
    rest = [digit for digit in range(CLASSES) if digit != 2]

    def error(of: Array) -> float:
        return float(np.mean([1 - of[test.labels == digit].mean() for digit in rest]))

    assert found.forgetting == pytest.approx(error(right) - error(test.right_before))
    assert found.beyond.value == pytest.approx(error(right) - error(test.right_after))
    assert found.recall == pytest.approx(right[test.labels == 2].mean())
    assert found.balanced_accuracy == pytest.approx(np.mean([right[test.labels == d].mean() for d in range(CLASSES)]))


def test_with_validation_images_the_constant_is_chosen_on_them_alone() -> None:
    test, validation = drawn(1, gain=0.8), drawn(2, gain=0.8)
    found = matched_shift(test, validation, (2,))
    assert found is not None and len(found.constants) == 1
    changed = Logits(test.labels, test.before, test.before)  # another adapter on the test images
    assert (again := matched_shift(changed, validation, (2,))) is not None
    assert again.constants == found.constants
    few = validation.where(np.arange(900) < 60)  # a dozen images of the target: no recall worth matching
    assert (without := matched_shift(test, few, (2,))) is not None
    assert len(without.constants) == 2


def test_no_image_is_judged_with_a_constant_that_it_helped_to_choose() -> None:
    test = drawn(3, gain=0.8)
    found = matched_shift(test, None, (2,))
    second = halves(test.labels)
    after = test.after.copy()
    after[second, 2] += 3  # another adapter on the second half: only the constant for the first half may change
    other = matched_shift(Logits(test.labels, test.before, after), None, (2,))
    assert found is not None and other is not None
    assert found.constants[0] == other.constants[0] and found.constants[1] != other.constants[1]


def test_a_shift_is_no_better_than_itself() -> None:
    test = drawn(4)
    after = test.before.astype(np.float32)
    after[:, 2] += 0.7
    found = matched_shift(Logits(test.labels, test.before, compact(after)), None, (2,))
    assert found is not None
    assert all(constant == pytest.approx(0.7, abs=0.05) for constant in found.constants)
    assert found.beyond.low <= 0 <= found.beyond.high
    assert abs(found.beyond.value) < 0.01


def test_an_adapter_that_knows_more_than_the_base_beats_the_shift() -> None:
    test = drawn(6, count=4000)
    after = test.before.astype(np.float32)
    after[np.arange(4000), test.labels] += 1.0
    found = gains(Logits(test.labels, test.before, compact(after)), None, (2,))
    assert found.beyond is not None and found.beyond.low > 0.05
    assert found.balanced_accuracy.low > 0 and found.all_images.broken == 0


def test_several_targets_share_a_constant_and_can_be_out_of_its_reach() -> None:
    test = drawn(7, gain=0.0)
    after = test.before.astype(np.float32)
    after[np.arange(900), test.labels] += 9.0  # all right, also among the targets, which a shift can't tell apart
    perfect = Logits(test.labels, test.before, compact(after))
    assert matched_shift(perfect, None, (2, 3)) is None
    assert matched_shift(perfect, None, (2,)) is not None
    numbers = gains(perfect, None, (2, 3)).numbers()
    assert numbers["beyond_shift"] is None and numbers["shift_recall"] is None
    assert matched_shift(test, None, (2, 3)) is not None


def test_halves_have_the_same_images_of_each_class_but_for_one() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 1001)
    second = halves(labels)
    counts, of_second = np.bincount(labels), np.bincount(labels[second])
    assert (of_second == counts // 2).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 1e-3, 1.0, 30.0, 1e5]))
@settings(max_examples=40, deadline=None)
def test_compact_logits_predict_the_same(seed: int, size: float) -> None:
    logits = (np.random.default_rng(seed).normal(0, 1, (300, 4)) * size).astype(np.float32)
    kept = compact(logits)
    assert (kept.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert kept.dtype in (np.float16, np.float32)
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(probabilities(kept), exact / exact.sum(axis=1, keepdims=True), atol=1e-3)


def test_the_logits_of_a_diverged_run_can_be_stored() -> None:
    assert compact(np.full((3, 4), np.nan, dtype=np.float32)).dtype == np.float32


def test_logits_come_back_from_their_file_and_others_are_rejected() -> None:
    test, validation = drawn(0), drawn(1, count=50)
    found = from_tensors(load(save(to_tensors(test, validation))))
    for one, other in zip((test, validation), found, strict=True):
        assert other is not None
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("labels", "before", "after"))
    assert from_tensors(to_tensors(test, None))[1] is None
    with pytest.raises(ValueError, match="older version"):
        from_tensors({"predicted": test.labels})
    with pytest.raises(ValueError, match="don't fit"):
        from_tensors(to_tensors(Logits(test.labels[1:], test.before, test.after), None))


def test_gains_come_back_from_json_and_name_every_number() -> None:
    for target, validation in product([(2,), (0, 4)], [None, drawn(1, gain=0.5)]):
        found = gains(drawn(0, gain=0.5), validation, target)
        assert gained.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found
        assert tuple(found.numbers()) == NUMBERS
        on = "half of the test images" if validation is None else "validation images"
        assert found.choice.images == on


def test_a_choice_is_made_on_other_images_than_it_is_judged_on() -> None:
    test = drawn(0, gain=0.5)
    second = halves(test.labels)
    one, other = (gains(test.where(half), None, (2,)) for half in (~second, second))
    choice = gains(test, None, (2,)).choice
    assert choice.gained == pytest.approx(one.balanced_accuracy.value)
    assert choice.forgetting == pytest.approx(one.forgetting.value)
    assert choice.gained_elsewhere == pytest.approx(other.balanced_accuracy.value)
    assert choice.forgetting_elsewhere == pytest.approx(other.forgetting.value)
