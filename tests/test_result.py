"""pytest tests/test_result.py"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, ModelSpec, RunSpec
from lora_exp.storage.result import ClassErrors, Outcome, RunResult, from_json, read


def class_errors(wrong: int, loss: float = 0.25) -> ClassErrors:
    """Ten classes of ten images each, `wrong` of each taken for the next class."""
    confusion = [[0] * 10 for _ in range(10)]
    for digit in range(10):
        confusion[digit][digit] = 10 - wrong
        confusion[digit][(digit + 1) % 10] += wrong
    return ClassErrors(1 - wrong / 10, loss, [10] * 10, [wrong] * 10, [wrong / 10] * 10, confusion)


def result(**changed: object) -> RunResult:
    spec = RunSpec(
        ModelSpec((1000, 2000)),
        DataSpec("mnist", validation=500),
        BaseSpec(seed=3),
        AdapterSpec(rank=4, alpha=2.0, layers=("linear1", "linear2")),
        FinetuneSpec(digit=(3, 8), steps=3, seed=7, replay=0.25),
    )
    outcome = Outcome(
        before=class_errors(1),
        after=class_errors(2),
        target_error_before=0.1,
        target_error=0.2,
        other_error_before=0.1,
        other_error=0.2,
        forgetting=0.1,
        parameters_base=2_807_010,
        parameters_adapter=27_176,
        parameters_total=2_834_186,
        overhead_percent=100 * 27_176 / 2_807_010,
        layers=[{"layer": "linear1", "shape": [1000, 784], "base": 785_000, "adapter": 7136}],
        steps=3,
        loss_curve=[0.1, 1 / 3, 0.05],
        base_sha256_before="a" * 64,
        base_sha256_after="a" * 64,
        base_unchanged=True,
        adapter_off_equals_base=True,
        adapter_sha256="b" * 64,
    )
    times = {"base_training": 30.5, "fine_tuning": 0.1, "evaluation": 0.2}
    provenance = {"versions": {"torch": "2.14.1"}, "commit": None, "threads": 2}
    return RunResult(spec, replace(outcome, **changed), times, provenance)


def test_a_result_survives_json_and_its_file(tmp_path: Path) -> None:
    for one in (result(), result(validation_before=class_errors(3), validation_after=class_errors(4))):
        assert from_json(one.to_json()) == one
        one.write(tmp_path)
        assert read(tmp_path) == one
        assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_losses_that_are_not_finite_survive_json_that_any_reader_can_read() -> None:
    diverged = result(
        loss_curve=[0.5, math.inf, -math.inf, math.nan],
        after=class_errors(9, loss=math.nan),
        validation_after=class_errors(9, loss=math.inf),
        diverged_at=2,
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(diverged.to_json(), parse_constant=refuse)
    back = from_json(diverged.to_json())
    assert back.diverged
    assert back.outcome.loss_curve[:3] == [0.5, math.inf, -math.inf]
    assert math.isnan(back.outcome.loss_curve[3])
    assert math.isnan(back.outcome.after.loss)
    assert back.outcome.validation_after is not None
    assert back.outcome.validation_after.loss == math.inf
    assert back.to_json() == diverged.to_json()


def test_floats_keep_every_bit() -> None:
    curve = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308]
    assert from_json(result(loss_curve=curve).to_json()).outcome.loss_curve == curve


def test_a_row_tells_setting_errors_and_times() -> None:
    one = result()
    row = one.row()
    expected = {
        "name": "digit-38_lora_rank-4_alpha-2_seed-7",
        "digit": "3,8",
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
    assert list(row) == list(result(diverged_at=1).row())


def test_a_row_of_a_diverged_run_says_so() -> None:
    row = result(loss_curve=[0.5, math.nan], diverged_at=2).row()
    assert row["status"] == "diverged"
    assert math.isnan(row["final_loss"])


def test_alpha_rank_stays_a_word_in_a_row() -> None:
    one = result()
    row = replace(one, spec=replace(one.spec, adapter=AdapterSpec(rank=4, alpha="rank"))).row()
    assert (row["alpha"], row["scaling"]) == ("rank", 1.0)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"spec": {}, "outcome": {}}'])
def test_text_that_is_no_result_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(text)


def test_a_result_cut_short_is_refused() -> None:
    text = result().to_json()
    for stop in range(0, len(text) - 1, 97):
        with pytest.raises(ValueError):
            from_json(text[:stop])


def test_a_result_of_a_spec_that_is_no_longer_allowed_is_refused() -> None:
    values = json.loads(result().to_json())
    values["spec"]["adapter"]["rank"] = 0
    with pytest.raises(ValueError, match=r"adapter\.rank=0"):
        from_json(json.dumps(values))
