"""python -m pytest tests/test_contest_scores.py

What a run scores in a contest is what its logits say, and both measures agree on a moved threshold.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_contest import made_protocol
from made_results import made_run, pictures_and_labels

from lora_exp.contest.protocol import SELECTION
from lora_exp.contest.scores import Entry, score_of
from lora_exp.contest.space import Point
from lora_exp.storage.result import RunResult


@pytest.fixture(scope="module")
def result() -> RunResult:
    made = made_run(pictures_and_labels()[1], digit=(3,))[0]
    held = {"validation_before": made.outcome.before, "validation_after": made.outcome.after}
    return dataclasses.replace(made, outcome=dataclasses.replace(made.outcome, **held))


def test_a_run_scores_the_mean_error_of_all_classes_or_the_sum_of_both_errors(result: RunResult) -> None:
    out = result.outcome
    balanced, both = score_of(result, "balanced_error"), score_of(result, "both_errors")
    assert balanced is not None and both is not None and out.gains is not None
    assert balanced.test == pytest.approx(np.mean(out.after.error_rates))
    assert balanced.base == pytest.approx(np.mean(out.before.error_rates))
    assert balanced.balanced_accuracy == pytest.approx(1 - balanced.test)
    assert both.test == pytest.approx(out.target_error + out.other_error)
    assert both.base == pytest.approx(out.target_error_before + out.other_error_before)
    assert balanced.seconds == 0.75 and balanced.steps == 100 and balanced.parameters == out.parameters_adapter


def test_both_measures_of_a_moved_threshold_come_from_the_same_errors(result: RunResult) -> None:
    balanced, both = score_of(result, "balanced_error"), score_of(result, "both_errors")
    assert result.outcome.gains is not None and result.outcome.gains.shift is not None
    assert balanced is not None and both is not None and balanced.threshold is not None and both.threshold is not None
    target = 1 - result.outcome.gains.shift.recall
    assert 10 * balanced.threshold == pytest.approx(target + 9 * (both.threshold - target))


def test_a_diverged_run_scores_nothing() -> None:
    labels = pictures_and_labels()[1]
    assert score_of(made_run(labels, diverged_at=50)[0], "balanced_error") is None


def test_a_run_without_a_matching_threshold_has_none(result: RunResult) -> None:
    assert result.outcome.gains is not None
    alone = dataclasses.replace(result.outcome, gains=dataclasses.replace(result.outcome.gains, shift=None))
    score = score_of(dataclasses.replace(result, outcome=alone), "both_errors")
    assert score is not None and score.threshold is None


def test_a_job_has_all_overrides_of_its_contest() -> None:
    protocol = made_protocol(("lora", "dora"), bases=3, selection=2, ratios={}, notes={})
    entry = Entry(SELECTION, "dora", Point(0.003, (("adapter.dropout", 0.1),)), 1, base=7, order=15)
    assert entry.overrides(protocol) == [
        *("model=cnn_small", "data=fashion_mnist", "adapter=dora", "finetune.learning_rate=0.003"),
        *("adapter.dropout=0.1", "finetune.digit=8", "base.seed=7", "finetune.seed=15"),
    ]


def test_a_result_is_that_of_a_job_with_its_seeds_rate_method_and_target(result: RunResult) -> None:
    protocol = dataclasses.replace(made_protocol(("lora", "dora"), 3, 2, {}, {}), classes=("3", "8"))
    spec = result.spec
    entry = Entry(SELECTION, "lora", Point(spec.finetune.learning_rate), 0, spec.base.seed, spec.finetune.seed)
    assert entry.is_of(result, protocol)
    assert not dataclasses.replace(entry, arm="dora").is_of(result, protocol)
    assert not dataclasses.replace(entry, target=1).is_of(result, protocol)
    assert not dataclasses.replace(entry, base=9).is_of(result, protocol)
    assert not dataclasses.replace(entry, order=9).is_of(result, protocol)
    assert not dataclasses.replace(entry, point=Point(0.5)).is_of(result, protocol)
