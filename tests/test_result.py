"""python -m pytest tests/test_result.py"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import class_errors, write_result
from made_results import small_result as result

from lora_exp.config.spec import AdapterSpec
from lora_exp.measures.class_errors import error_of
from lora_exp.storage.result import from_json, read
from lora_exp.storage.words import kind_label


def test_a_result_survives_json_and_its_file(tmp_path: Path) -> None:
    for one in (result(), result(validation_before=class_errors(3), validation_after=class_errors(4))):
        assert from_json(one.to_json()) == one
        write_result(tmp_path, one)
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


def test_objectives_are_means_over_classes() -> None:
    before, after = [0.1] * 10, [0.0, 0.2, *[0.3] * 8]
    assert error_of("target_error", (0, 1), before, after) == pytest.approx(0.1)
    assert error_of("both_errors", (0, 1), before, after) == pytest.approx(0.4)
    assert error_of("forgetting", (0, 1), before, after) == pytest.approx(0.2)


def test_the_objectives_of_a_run_are_its_errors_on_validation_images_and_its_size() -> None:
    judged = result(validation_before=class_errors(1), validation_after=class_errors(4))
    names = ("parameters", "both_errors", "forgetting", "target_error")
    assert judged.objectives(names) == pytest.approx([27_176, 0.8, 0.3, 0.4])
    with pytest.raises(ValueError, match="has no errors on validation images"):
        result().objectives(names)


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


def test_a_run_in_words_names_method_rank_and_digits() -> None:
    one = result()
    assert one.kind == ("lora", 4) and one.description == "fine-tuned on classes 3 and 8 at rank 4"
    assert one.summary == (
        "classes 3 and 8 lora rank 4: target error 10.00 % -> 20.00 %, other classes 10.00 % -> 20.00 %, "
        "27,176 parameters (+0.968 %)"
    )
    full = replace(one, spec=replace(one.spec, adapter=AdapterSpec("full").used()))
    assert full.kind == ("full", None) and full.description == "fine-tuned on classes 3 and 8 with full"
    assert kind_label(("dora", 4)) == "dora rank 4"
    assert "diverged at step 2" in result(diverged_at=2).summary
