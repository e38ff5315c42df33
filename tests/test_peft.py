"""python -m pytest tests/test_peft.py

The files of a PEFT folder, without PEFT: what is written is read again, and what isn't understood is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_exp.adapters.peft import ADAPTER_CONFIG, ADAPTER_MODEL, peft_files, read_folder
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.model.architecture import LayerShape
from lora_exp.model.base import network

MLP = network(ModelSpec((32, 16)), MNIST).layers
CNN = network(ModelSpec((), channels=(4, 6)), MNIST).layers
KEY = "base_model.model.linear1.lora_A.weight"


def factors_of(layers: tuple[LayerShape, ...], ranks: dict[str, int], dora: bool) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    factors = {}
    for layer in layers:
        if rank := ranks.get(layer.name):
            factors[f"{layer.name}.A"] = torch.randn(rank, layer.inputs, generator=random)
            factors[f"{layer.name}.B"] = torch.randn(layer.outputs, rank, generator=random)
            if dora:
                factors[f"{layer.name}.magnitude"] = torch.rand(layer.outputs, generator=random)
    return factors


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder: rank 4 on all layers of the MLP."""
    ranks = {layer.name: 4 for layer in MLP}
    return written(tmp_path, peft_files(factors_of(MLP, ranks, False), dict.fromkeys(ranks, 0.5), MLP, 0.1))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("layers", "ranks"),
    [
        (MLP, {"linear1": 3, "linear2": 3, "linear3": 3}),
        (MLP, {"linear2": 7}),
        (CNN, {"conv1": 2, "conv2": 5, "linear1": 5}),
    ],
)
def test_what_is_written_is_read_again(
    tmp_path: Path, layers: tuple[LayerShape, ...], ranks: dict[str, int], dora: bool
) -> None:
    factors = factors_of(layers, ranks, dora)
    scaling = {name: 1 / (at + 3) for at, name in enumerate(ranks)}
    adapter = read_folder(written(tmp_path, peft_files(factors, scaling, layers, 0.0)), layers)
    assert adapter.factors.keys() == factors.keys()
    assert all(torch.equal(adapter.factors[name], factor) for name, factor in factors.items())
    assert adapter.scaling == pytest.approx(scaling, rel=1e-15)
    assert adapter.spec.method == ("dora" if dora else "lora")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(folder: Path, kind: torch.dtype) -> None:
    tensors = {name: tensor.to(kind) for name, tensor in load_file(folder / ADAPTER_MODEL).items()}
    save_file(tensors, folder / ADAPTER_MODEL)
    factors = read_folder(folder, MLP).factors
    assert torch.equal(factors["linear1.A"], tensors[KEY].float())


def test_the_rank_of_most_layers_is_that_of_the_folder_and_others_are_patterns(tmp_path: Path) -> None:
    ranks = {"conv1": 2, "conv2": 5, "linear1": 5}
    files = peft_files(factors_of(CNN, ranks, False), {"conv1": 0.5, "conv2": 0.2, "linear1": 2.0}, CNN, 0.25)
    config = json.loads(files[ADAPTER_CONFIG])
    assert (config["r"], config["rank_pattern"]) == (5, {"conv1": 2})
    assert (config["lora_alpha"], config["alpha_pattern"]) == (1.0, {"linear1": 10.0})
    spec = read_folder(written(tmp_path, files), CNN).spec
    assert (spec.rank, spec.rank_pattern, spec.alpha_pattern) == (5, (("conv1", 2),), (("linear1", 10.0),))
    assert (spec.layers, spec.dropout) == (("*",), 0.25)


def test_kernels_are_shaped_as_torch_has_them(tmp_path: Path) -> None:
    ranks = {"conv1": 2, "conv2": 2}
    factors = factors_of(CNN, ranks, True)
    tensors = load_file(written(tmp_path, peft_files(factors, dict.fromkeys(ranks, 1.0), CNN, 0.0)) / ADAPTER_MODEL)
    prefix = "base_model.model.conv2."
    assert tensors[prefix + "lora_A.weight"].shape == (2, 4, 3, 3)
    assert tensors[prefix + "lora_B.weight"].shape == (6, 2, 1, 1)
    assert tensors[prefix + "lora_magnitude_vector"].shape == (1, 6, 1, 1)
    assert torch.equal(tensors[prefix + "lora_A.weight"][1, 3], factors["conv2.A"].view(2, 4, 9)[1, 3].view(3, 3))


def change(folder: Path, **options: Any) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | options))


def retensor(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / ADAPTER_MODEL)
    edit(tensors)
    save_file(tensors, folder / ADAPTER_MODEL)


def test_patterns_count_as_peft_has_them_the_first_that_matches(folder: Path) -> None:
    change(folder, target_modules=r"linear\d", lora_alpha=4, alpha_pattern={"linear[12]": 2.0, "linear1": 8})
    adapter = read_folder(folder, MLP)
    assert adapter.scaling == {"linear1": 0.5, "linear2": 0.5, "linear3": 1.0}


def test_rslora_is_scaled_by_the_root_of_the_rank_and_with_dora_too(folder: Path, tmp_path: Path) -> None:
    change(folder, use_rslora=True, lora_alpha=6)
    adapter = read_folder(folder, MLP)
    assert (adapter.spec.method, adapter.scaling["linear1"]) == ("rslora", 3.0)
    both = tmp_path / "both"
    both.mkdir()
    files = peft_files(factors_of(MLP, {"linear1": 4}, True), {"linear1": 1.0}, MLP, 0.0)
    change(written(both, files), use_rslora=True, lora_alpha=6)
    adapter = read_folder(both, MLP)
    assert (adapter.spec.method, adapter.scaling["linear1"]) == ("dora", 3.0)
    assert adapter.spec.scaling == 3.0


def test_options_that_are_off_or_say_nothing_do_not_matter(folder: Path) -> None:
    before = read_folder(folder, MLP)
    change(
        folder, auto_mapping={"base_model_class": "Sequential"}, peft_version="9.9", some_new_option=None, eva_config={}
    )
    change(folder, qalora_group_size=16, megatron_core="megatron.core", use_qalora=False, init_lora_weights="gaussian")
    assert read_folder(folder, MLP).spec == before.spec


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["linear3"]),
        ("layer_replication", [[0, 1]]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("lora_bias", True),
        ("layers_to_transform", [0]),
        ("exclude_modules", ["linear1"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["linear1.weight"]),
        ("arrow_config", {"top_k": 1}),
        ("task_type", "SEQ_CLS"),
        ("some_new_option", 0),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", 1),
        ("use_dora", 1),
        ("use_rslora", "yes"),
        ("lora_dropout", 1.0),
        ("r", 0),
        ("r", 2.0),
        ("r", True),
        ("lora_alpha", 0),
        ("lora_alpha", math.nan),
        ("lora_alpha", "16"),
        ("rank_pattern", None),
        ("rank_pattern", {"linear1": -1}),
        ("rank_pattern", {"linear(": 4}),
        ("rank_pattern", {"(" * 80: 4}),
        ("alpha_pattern", [4]),
        ("alpha_pattern", {".*": None}),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", ["linear1", "linear9"]),
        ("target_modules", ["linear1", 3]),
        ("target_modules", "conv.*"),
        ("target_modules", "*"),
        ("target_modules", r"((((((\w*)*)*)*)*)*)*!"),
        ("target_modules", ".*" * 20 + "!"),
    ],
)
def test_an_option_that_is_not_understood_is_refused_by_name(folder: Path, option: str, value: Any) -> None:
    change(folder, **{option: value})
    with pytest.raises(ValueError, match=option) as caught:
        read_folder(folder, MLP)
    assert str(caught.value).startswith(str(folder / ADAPTER_CONFIG)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(KEY), f"{KEY} is missing"),
        (lambda t: t.update({"base_model.model.linear1.bias": torch.zeros(32)}), "linear1.bias is not expected"),
        (
            lambda t: t.update({KEY: t[KEY][:, 1:].contiguous()}),
            r"float16 or bfloat16 of shape \(4, 784\)",
        ),
        (lambda t: t.update({KEY: t[KEY][:3].contiguous()}), r"is float32 of \(3, 784\)"),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), "shape"),
        (lambda t: t.update({KEY: t[KEY].double()}), "is float64"),
        (lambda t: t.update({KEY: t[KEY].double()}), "is float64"),
        (lambda t: t[KEY].__setitem__((0, 0), math.nan), f"{KEY}: holds values that are not finite"),
        (lambda t: t[KEY].__setitem__((0, 0), math.inf), f"{KEY}: holds values that are not finite"),
        (lambda t: t.clear(), "is missing"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_refused(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    retensor(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        read_folder(folder, MLP)
    assert str(caught.value).startswith(str(folder / ADAPTER_MODEL)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_MODEL])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_files_that_are_absent_or_damaged_are_refused(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_folder(folder, MLP)
    assert "\n" not in str(caught.value)


def test_a_dora_adapter_needs_its_magnitudes_and_a_plain_one_has_none(folder: Path) -> None:
    change(folder, use_dora=True)
    with pytest.raises(ValueError, match="lora_magnitude_vector is missing"):
        read_folder(folder, MLP)
    change(folder, use_dora=False)
    retensor(folder, lambda t: t.update({"base_model.model.linear1.lora_magnitude_vector": torch.ones(32)}))
    with pytest.raises(ValueError, match="lora_magnitude_vector is not expected"):
        read_folder(folder, MLP)
