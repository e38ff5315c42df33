"""python -m pytest tests/test_facts.py

What MLflow records of a run: parameters that tell runs apart.
"""

from __future__ import annotations

from dataclasses import fields, replace

from made_results import made_run, pictures_and_labels

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import SPECS, AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec

LABELS = pictures_and_labels()[1]


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
