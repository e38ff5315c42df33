"""pytest tests/test_spec.py"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_exp
from lora_exp.config.spec import SPECS, RunSpec, from_dict, spec_from
from lora_exp.errors import LoraExpError

CONFIG: dict[str, dict[str, Any]] = {
    "model": {"hidden": [1000, 2000], "rectify_logits": False},
    "data": {"name": "mnist", "root": "somewhere", "validation": 0, "limit": None},
    "base": {"epochs": 1, "batch_size": 10, "learning_rate": 1e-3, "seed": 0},
    "adapter": {"rank": 4, "alpha": 1.0, "init_std": 1.0, "layers": ["*"]},
    "finetune": {
        "target": 2,
        "steps": 100,
        "epochs": None,
        "batch_size": 10,
        "learning_rate": 1e-3,
        "seed": 0,
        "replay": 0.0,
    },
}

BAD_WHOLE_NUMBERS = [0, -1, 1.5, 4.0, "4", True, None, math.nan, math.inf, [4]]
BAD_POSITIVE_NUMBERS = [0, 0.0, -1, "big", True, None, math.nan, math.inf, [1]]
BAD_SEEDS = [-1, 1.0, True, None, "0"]
BAD: dict[str, list[Any]] = {
    "model.hidden": [[0], [1], [-5], [100, True], [100.0], "1000", 1000, None, [[100]]],
    "model.rectify_logits": [0, 1, "true", None],
    "model.channels": [[0], [1], [-5], [8, True], [8.0], "8", 8, None, [8] * 5],
    "model.kernel": [0, 2, 9, 3.0, True, None, "3"],
    "model.kind": ["", "mlp", None, 1, True],
    "model.name": ["", "a/b", "..", 1, True],
    "model.patch": BAD_WHOLE_NUMBERS,
    "model.width": [*BAD_WHOLE_NUMBERS, 1],
    "model.blocks": BAD_WHOLE_NUMBERS,
    "model.heads": BAD_WHOLE_NUMBERS,
    "data.name": ["cifar", "", None, 1, True],
    "data.validation": [-1, 1, 2.0, 1.5, True, None, "500", math.nan],
    "data.split": ["", "mnist2", 1, True],
    "data.size": [0, -1, 28.0, True, "28", [28], [28, 28, 3], [28, 0], 5000],
    "data.channels": [0, 2, 4, 1.0, True, "1"],
    "data.classes": [[], [-1], [1.0], [None], [True], [""], ["a\nb"]],
    "data.test": [0, 1, -0.1, 1.5, True, None, "half", math.nan],
    "data.skip_bad": [0, 1, "true", None],
    "data.limit": [0, 1, -100, 100.0, True, "500", math.nan],
    "base.epochs": [value for value in BAD_WHOLE_NUMBERS if value != 0],
    "base.batch_size": BAD_WHOLE_NUMBERS,
    "base.learning_rate": BAD_POSITIVE_NUMBERS,
    "base.seed": BAD_SEEDS,
    "base.classes": [[], [-1], [1.0], [None], [True], ""],
    "base.weights": [1, 1.5, True, ["a.safetensors"]],
    "base.head": ["", "old", None, 1, True],
    "base.trained": ["", "none", None, 1, True],
    "adapter.method": ["", "LoRA", "qlora", None, 1, True],
    "adapter.rank": BAD_WHOLE_NUMBERS,
    "adapter.alpha": BAD_POSITIVE_NUMBERS,
    "adapter.rank_pattern": [{"linear1": 0}, {"linear1": 1.5}, {"linear1": "rank"}, {1: 2}, 4, ["linear1"]],
    "adapter.alpha_pattern": [{"linear1": 0}, {"linear1": True}, {"linear1": "big"}, {1: 2}, 4.0, ["linear1"]],
    "adapter.init": ["", "zeros", None, 1],
    "adapter.dropout": [1, 1.0, -0.1, True, None, "half", math.nan],
    "adapter.learning_rate_ratio": BAD_POSITIVE_NUMBERS,
    "adapter.init_std": BAD_POSITIVE_NUMBERS,
    "adapter.layers": [[], "linear1", [1], [None], None, ["linear1", True]],
    "finetune.target": [-1, 2.0, True, None, math.nan, [], [[1]], "", ["cat", None]],
    "finetune.steps": BAD_WHOLE_NUMBERS,
    "finetune.epochs": [0, -1, "1", True, math.nan, math.inf],
    "finetune.batch_size": BAD_WHOLE_NUMBERS,
    "finetune.learning_rate": BAD_POSITIVE_NUMBERS,
    "finetune.seed": BAD_SEEDS,
    "finetune.replay": [1, 1.0, 1.5, -0.1, True, None, "half", math.nan],
}

OTHER: list[tuple[str, Any]] = [
    ("model.hidden", [2000, 1000]),
    ("model.hidden", []),
    ("model.rectify_logits", True),
    ("model.channels", [8]),
    ("data.name", "qmnist"),
    ("data.validation", 2),
    ("data.limit", 100),
    ("base.epochs", 2),
    ("base.batch_size", 20),
    ("base.learning_rate", 2e-3),
    ("base.seed", 1),
    ("base.classes", [1, 3]),
    ("base.trained", "head"),
    ("data.split", "letters"),
    ("data.size", 14),
    ("data.channels", 3),
    ("data.classes", ["a", "b"]),
    ("data.test", 0.3),
    ("data.skip_bad", True),
    ("adapter.method", "rslora"),
    ("adapter.method", "full"),
    ("adapter.rank_pattern", {"linear1": 8}),
    ("adapter.alpha_pattern", {"linear1": 8.0}),
    ("adapter.init", "kaiming"),
    ("adapter.dropout", 0.1),
    ("adapter.rank", 1),
    ("adapter.alpha", 4),
    ("adapter.alpha", "rank"),
    ("adapter.init_std", 0.5),
    ("adapter.layers", ["linear1"]),
    ("finetune.target", 0),
    ("finetune.target", [2, 3]),
    ("finetune.target", "shirt"),
    ("finetune.steps", 101),
    ("finetune.epochs", 1),
    ("finetune.batch_size", 1),
    ("finetune.learning_rate", 1),
    ("finetune.seed", 1),
    ("finetune.replay", 0.5),
]


def config_with(**values: Any) -> dict[str, dict[str, Any]]:
    """The config above with `group__key=value` put in."""
    config = copy.deepcopy(CONFIG)
    for dotted, value in values.items():
        group, _, key = dotted.partition("__")
        config[group][key] = value
    return config


def spec_with(dotted: str = "adapter.rank", value: Any = 4) -> RunSpec:
    return spec_from(config_with(**{dotted.replace(".", "__"): value}))


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(LoraExpError) as caught:
        spec_from(config)
    return str(caught.value)


def allowed(key: str) -> str:
    group, _, name = key.partition(".")
    return str(next(f.metadata["allowed"] for f in dataclasses.fields(SPECS[group]) if f.name == name))


def shown(value: Any) -> str:
    """A value in the notation of the config files."""
    return str(value) if isinstance(value, str | int | float) and value is not True else json.dumps(value)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_in_one_line_with_key_value_and_what_is_allowed(key: str, value: Any) -> None:
    line = refusal(config_with(**{key.replace(".", "__"): value}))
    assert line.partition("; did you mean ")[0] == f"{key}={shown(value)}: must be {allowed(key)}"


def test_every_key_of_a_spec_has_bad_values_above() -> None:
    fields = {f"{part.name}.{f.name}" for part in dataclasses.fields(RunSpec) for f in _fields(part.name)}
    assert set(BAD) == fields


def _fields(group: str) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(getattr(spec_with(), group))


def test_a_long_value_is_cut_in_the_line() -> None:
    assert len(refusal(config_with(finetune__target=[-1] * 1000))) < 200


def test_a_number_too_big_for_a_float_is_refused() -> None:
    assert refusal(config_with(base__learning_rate=10**400)).endswith(
        "...: must be a number above 0, from 1e-37 to 3e+38"
    )


def test_an_unknown_key_is_refused_and_the_known_ones_are_named() -> None:
    assert refusal(config_with(adapter__rang=3)) == (
        "adapter.rang: no such key; allowed: alpha, alpha_pattern, dropout, init, init_std, layers, "
        "learning_rate_ratio, method, rank, rank_pattern"
    )


def test_a_missing_key_without_default_is_named() -> None:
    config = config_with()
    del config["finetune"]["target"]
    assert refusal(config).startswith("finetune.target: missing; needs a class, by name or number, or a list of them")


@pytest.mark.parametrize(
    ("group", "values", "line"),
    [
        ("model", {"patch": 4}, "model.patch=4: must be left out with model.kind=stack"),
        ("model", {"kind": "vit"}, "model.hidden=[1000,2000]: must be left out with model.kind=vit"),
        ("model", {"kind": "vit", "hidden": [], "name": "a"}, "model.name=a: must be left out with model.kind=vit"),
        ("model", {"kind": "vit", "hidden": [], "heads": 3}, "model.heads=3: must divide model.width=64"),
        (
            "model",
            {"kind": "timm", "hidden": []},
            "model.name: missing; needs the name of a model, such as model=timm ",
        ),
        ("base", {"epochs": 0}, "base.epochs=0: needs weights, as base.weights=FILE.safetensors"),
        ("base", {"head": "new"}, "base.head=new: needs weights, as base.weights=FILE.safetensors"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(group: str, values: dict[str, Any], line: str) -> None:
    config = config_with()
    config[group] |= values
    assert refusal(config).startswith(line)


# Not [2, 2] for one of them, and not 3 for the other: a key of its own would have its own words.
@pytest.mark.parametrize(
    ("group", "key", "values"),
    [
        ("finetune", "digit", [10, 12, -1, 2.0, "2", True, math.nan, [], [2, 2], [1, 12], [[1]], [*range(10)]]),
        ("base", "digits", [[], 3, [10], [3, 3], [True], "odd", [*range(10)]]),
    ],
)
def test_a_bad_digit_is_refused_by_the_key_that_was_given(group: str, key: str, values: list[Any]) -> None:
    for value in values:
        line = refusal(config_with(**{f"{group}__{key}": value}))
        assert line.startswith(f"{group}.{key}={shown(value)}: must be ") and "digit" in line


def test_digits_are_classes_and_a_class_that_is_given_counts_before_them() -> None:
    config = config_with(finetune__digit=[7, 3], base__digits=[1, 3])
    config["finetune"].pop("target")
    spec = spec_from(config)
    assert spec.finetune.target == (3, 7) and spec.base.classes == (1, 3)
    assert spec_from(config_with(finetune__digit=7, finetune__target="shirt")).finetune.target == ("shirt",)
    assert spec_from(config_with(finetune__digit=7, finetune__target=None)).finetune.target == (7,)


def test_what_an_older_version_wrote_of_digits_is_read() -> None:
    values = dataclasses.asdict(spec_with())
    values["finetune"]["digit"], values["base"]["digits"] = (
        values["finetune"].pop("target"),
        values["base"].pop("classes"),
    )
    assert from_dict(json.loads(json.dumps(values))) == spec_with()


@pytest.mark.parametrize("group", list(CONFIG))
def test_a_group_that_is_no_group_is_refused(group: str) -> None:
    assert refusal({**config_with(), group: "tiny"}) == f"{group}=tiny: must be a config group"


@pytest.mark.parametrize(
    ("key", "one", "same"),
    [
        ("adapter.alpha", 1, 1.0),
        ("adapter.init_std", 1, 1.0),
        ("adapter.layers", ["linear1"], ("linear1",)),
        ("finetune.target", 2, [2]),
        ("finetune.target", [3, 1], (1, 3)),
        ("data.size", 28, [28, 28]),
        ("data.validation", 0, 0.0),
        ("data.prepared", "here", "there"),
        ("finetune.epochs", 1, 1.0),
        ("finetune.replay", 0, 0.0),
        ("base.learning_rate", 1, 1.0),
        ("model.hidden", [10, 20], (10, 20)),
        ("data.root", "here", "there"),
    ],
)
def test_equal_settings_in_another_notation_are_one_spec_with_one_key(key: str, one: Any, same: Any) -> None:
    assert spec_with(key, one) == spec_with(key, same)
    assert spec_with(key, one).key == spec_with(key, same).key


def test_different_settings_have_different_keys() -> None:
    specs = [spec_with(), *(spec_with(key, value) for key, value in OTHER)]
    assert len({spec.key for spec in specs}) == len(specs)


def test_jobs_share_a_base_unless_model_data_or_base_differ() -> None:
    for key, value in OTHER:
        shares = spec_with(key, value).base_spec_key == spec_with().base_spec_key
        assert shares == key.startswith(("adapter.", "finetune.")), key


def test_a_key_is_the_same_in_any_process() -> None:
    code = "import json, sys; from lora_exp.config.spec import from_dict; print(from_dict(json.load(sys.stdin)).key)"
    spec = spec_with("finetune.target", [3, 1, 4])
    package = Path(lora_exp.__file__).parents[1]
    for hash_seed in ("0", "1", "4242"):
        told = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(dataclasses.asdict(spec)),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=package,
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == spec.key


@pytest.mark.parametrize(("key", "value"), OTHER)
def test_a_spec_survives_json(key: str, value: Any) -> None:
    spec = spec_with(key, value)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert from_dict(dataclasses.asdict(spec)) == spec


def test_scaling_is_alpha_over_rank_or_1() -> None:
    scalings = [spec_with("adapter.alpha", alpha).adapter.scaling for alpha in (1, 4, 2.0, "rank")]
    assert scalings == [0.25, 1, 0.5, 1]


def test_keys_that_a_method_has_no_use_for_do_not_tell_runs_apart() -> None:
    full = [spec_from(config_with(adapter__method="full", adapter__rank=rank)) for rank in (1, 8)]
    assert full[0] == full[1] and full[0].key == full[1].key
    assert full[0].adapter.scaling is None
    assert full[0].name == "target-2_full_seed-0"
    ratios = [config_with(adapter__method=method, adapter__learning_rate_ratio=2.0) for method in ("lora", "lora_plus")]
    assert [spec_from(config).adapter.learning_rate_ratio for config in ratios] == [16.0, 2.0]


def test_patterns_survive_json() -> None:
    spec = spec_from(
        config_with(adapter__rank_pattern={"linear1": 8}, adapter__alpha_pattern={"conv*": "rank", "*": 2})
    )
    assert spec.adapter.rank_pattern == (("linear1", 8),)
    assert spec.adapter.alpha_pattern == (("conv*", "rank"), ("*", 2.0))
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_a_name_is_short_and_readable() -> None:
    assert spec_with().name == "target-2_lora_rank-4_alpha-1_seed-0"
    assert spec_with("finetune.target", [7, 3]).name == "target-3-7_lora_rank-4_alpha-1_seed-0"
    assert spec_with("adapter.alpha", "rank").name == "target-2_lora_rank-4_alpha-rank_seed-0"
