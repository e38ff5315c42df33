"""pytest tests/test_updates.py

Every update, stacked in packs of different jobs: outputs and gradients against PEFT's own modules and against torch's
autograd through the equivalent weight.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

from lora_exp.adapters import updates
from lora_exp.adapters.initialisation import Factors, initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan, adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec
from lora_exp.model.architecture import Constants, Layer
from lora_exp.model.base import BaseModel, assemble, network
from lora_exp.numerics import generator

with warnings.catch_warnings():
    # PEFT's own imports emit DeprecationWarnings.
    warnings.simplefilter("ignore")
    from peft import LoraConfig, get_peft_model

MLP, CNN = ModelSpec((23, 17)), ModelSpec((19,), channels=(4, 6))
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=str)
BATCH = 7
# One layer each: low-rank products of every padding, one above the smaller side, and every other update between them.
UPDATES = [
    LayerPlan("low_rank", 1, scaling=2.0),
    LayerPlan("low_rank", 3),
    LayerPlan("dora", 2, scaling=0.5),
    LayerPlan("dora", 8, scaling=3.0),
    LayerPlan(),
    LayerPlan("low_rank", 9, scaling=0.25),
    LayerPlan("bias"),
    LayerPlan("low_rank", 5, kept=5, scaling=1.5),
    LayerPlan("dense"),
    LayerPlan("dense"),
    LayerPlan("dense_weight"),
    LayerPlan("dense_weight"),
    LayerPlan("low_rank", 40, scaling=0.1),
    LayerPlan("dora", 33, scaling=0.1),
    LayerPlan("bias"),
]
# Every method, with ranks and alphas by layer: `last` is the last layer of both models.
SPECS = [
    AdapterSpec("lora", rank=4, rank_pattern=(("*1", 2), ("linear*", 5)), alpha_pattern=(("*2", 3.0),)),
    AdapterSpec("rslora", rank=9, alpha=4.0, layers=("*2",)),
    AdapterSpec("lora_plus", rank=1, alpha="rank"),
    AdapterSpec("dora", rank=3, alpha_pattern=(("*", 2.0), ("*1", "rank"))),
    AdapterSpec("dora", rank=3, layers=("*1",)),
    AdapterSpec("pissa", rank=2, alpha=2.0),
    AdapterSpec("full"),
    AdapterSpec("full", layers=("*1",)),
    AdapterSpec("bitfit"),
    AdapterSpec("shift"),
    AdapterSpec("head"),
    AdapterSpec("none"),
]


def base_of(spec: ModelSpec, dtype: torch.dtype) -> BaseModel:
    base = assemble(spec, MNIST, network(spec, MNIST).initial(0))
    return BaseModel(base.network, {name: tensor.to(dtype) for name, tensor in base.state.items()})


def trained_factors(plans: Sequence[AdapterPlan], base: BaseModel) -> list[Factors]:
    """As if they had been trained: every part somewhere near its start."""
    random = torch.Generator().manual_seed(1)
    dtype = base.layers[0].weight.dtype

    def moved(start: torch.Tensor) -> torch.Tensor:
        return start.to(dtype) + 0.1 * torch.randn(start.shape, generator=random, dtype=torch.float64).to(dtype)

    return [{name: moved(value) for name, value in initial_factors(plan, base).items()} for plan in plans]


def noise(*shape: int, dtype: torch.dtype, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def double(tensor: torch.Tensor) -> torch.Tensor:
    """A leaf of its own for the reference, which is always float64."""
    return tensor.detach().double().requires_grad_()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    size = float(expected.norm())
    return float((found.detach().double() - expected).norm()) / (size or 1.0)


def adapted(layer: Layer, plan: LayerPlan, own: Factors, rows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """rows [B, I] through the layer: the update written out as a weight [O, I] and a bias [O], float64."""
    name = layer.name
    weight, bias = layer.weight.double(), layer.bias.double()
    if plan.update == "none":
        return functional.linear(rows, weight, bias)
    if plan.update == "bias":
        return functional.linear(rows, weight, own[f"{name}.bias"])
    if plan.update in ("dense", "dense_weight"):
        return functional.linear(rows, own[f"{name}.weight"], own.get(f"{name}.bias", bias))
    low_rank = plan.scaling * own[f"{name}.B"] @ own[f"{name}.A"]
    shown = rows if mask is None else rows * mask
    outputs = functional.linear(rows, weight) + functional.linear(shown, low_rank)
    if plan.update == "dora":
        outputs = outputs * (own[f"{name}.magnitude"] / (weight + low_rank).detach().norm(dim=1))
    return outputs + bias


def worst_gradient(
    pack: AdapterPack, grads: Sequence[torch.Tensor], factors: Sequence[Factors], base: BaseModel
) -> float:
    """Largest error of the gradient of any trained part, against `.grad` of the reference's factors."""
    worst = 0.0
    for views, own in zip(pack.trained(grads), factors, strict=True):
        for view in views:
            expected = own[f"{base.layers[view.layer].name}.{view.part}"].grad
            assert expected is not None
            expected = (expected.T if view.part == "B" else expected)[: len(view.rows)]
            worst = max(worst, error(view.rows, expected))
    return worst


@DTYPES
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("known", [False, True], ids=["", "known product"])
def test_every_update_has_the_outputs_and_gradients_of_the_equivalent_weight(
    dtype: torch.dtype, rectify: bool, dropout: float, known: bool
) -> None:
    base = base_of(ModelSpec((23,)), dtype)
    layer = base.layers[1]  # 23 inputs, 10 outputs
    plans = [AdapterPlan((LayerPlan(), own), seed=n, dropout=dropout) for n, own in enumerate(UPDATES)]
    factors = trained_factors(plans, base)
    pack = AdapterPack.of(plans, factors, base)
    assert len(pack.groups) < len(plans)  # some are stacked, of different ranks
    hidden = noise(len(plans), BATCH, 23, dtype=dtype).requires_grad_()
    onwards = noise(len(plans), BATCH, 10, dtype=dtype, seed=3)
    frozen = functional.linear(hidden.detach(), layer.weight, layer.bias).clone() if known else None
    stacks = [stack.requires_grad_() for stack in pack.stacks()]
    found = pack.layer(1, layer, hidden, rectify, frozen, training=True)
    grad_hidden, *grads = torch.autograd.grad(found, [hidden, *stacks], onwards.clone())

    reference = [{name: double(value) for name, value in own.items()} for own in factors]
    inputs, expected = double(hidden), []
    for job, plan in enumerate(plans):
        drawn = torch.rand(BATCH, 23, generator=generator("dropout", plan.seed, 1))
        mask = (drawn >= dropout).double() / (1 - dropout) if dropout else None
        expected.append(adapted(layer, plan.layers[1], reference[job], inputs[job], mask))
    outputs = torch.stack(expected).relu() if rectify else torch.stack(expected)
    outputs.backward(onwards.double())
    assert inputs.grad is not None
    for job in range(len(plans)):
        assert error(found[job], outputs[job].detach()) < LIMITS[dtype], plans[job]
        assert error(grad_hidden[job], inputs.grad[job]) < LIMITS[dtype], plans[job]
    assert worst_gradient(pack, grads, reference, base) < LIMITS[dtype]


def test_merged_into_weight_and_bias_every_update_has_the_same_outputs() -> None:
    base = base_of(ModelSpec((23,)), torch.float64)
    layer, rows = base.layers[1], noise(BATCH, 23, dtype=torch.float64)
    changing = [plan for plan in UPDATES if plan.update != "none"]
    for plan in changing:
        [factors] = trained_factors([AdapterPlan((LayerPlan(), plan))], base)
        parts = {part: factors[f"{layer.name}.{part}"] for part in updates.UPDATES[plan.update].parts}
        weight, bias = updates.UPDATES[plan.update].merged(layer.weight, layer.bias, parts, plan.scaling)
        expected = adapted(layer, plan, factors, rows, None)
        assert error(functional.linear(rows, weight, bias), expected) < LIMITS[torch.float64], plan
    assert {plan.update for plan in changing} == set(updates.UPDATES)


@DTYPES
@pytest.mark.parametrize("rectify_logits", [False, True])
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_mixed_pack_has_the_logits_and_gradients_of_plain_torch_models(
    spec: ModelSpec, rectify_logits: bool, dtype: torch.dtype
) -> None:
    base = base_of(dataclasses.replace(spec, rectify_logits=rectify_logits), dtype)
    plans = sorted(
        (adapter_plan(own, network(spec, MNIST).layers, seed=n, target=(0,)) for n, own in enumerate(SPECS)),
        key=lambda p: p.shape,
    )
    factors = trained_factors(plans, base)
    pack = AdapterPack.of(plans, factors, base)
    images = noise(len(plans), BATCH, 784, dtype=dtype)
    onwards = noise(len(plans), BATCH, 10, dtype=dtype, seed=3)
    stacks = [stack.requires_grad_() for stack in pack.stacks()]
    constants = None
    if (cut := base.forward.cut([True] * len(base.layers))) is not None:
        of_all = Constants(cut, base.forward.constants(images.flatten(0, 1), cut))
        constants = of_all.of(torch.arange(len(plans) * BATCH).view(len(plans), BATCH))
    found = pack.logits(base, images, constants, training=True)
    grads = torch.autograd.grad(found, stacks, onwards.clone())

    reference = [{name: double(value) for name, value in own.items()} for own in factors]
    expected = torch.stack([plain(base, *each) for each in zip(plans, reference, images.double(), strict=True)])
    expected.backward(onwards.double())
    for job, plan in enumerate(plans):
        assert error(found[job], expected[job].detach()) < LIMITS[dtype], plan
    assert worst_gradient(pack, grads, reference, base) < LIMITS[dtype]


def plain(base: BaseModel, plan: AdapterPlan, own: Factors, images_BI: torch.Tensor) -> torch.Tensor:
    """Logits [B, C] by conv2d and linear; low rank in a convolution is one to r channels, then one of 1 x 1."""
    convolutions = base.network.convolutions
    hidden = images_BI.view(-1, 1, 28, 28) if convolutions[0] else images_BI
    for at, (layer, done) in enumerate(zip(base.layers, plan.layers, strict=True)):
        convolution = convolutions[at]
        if convolution is None:
            hidden = adapted(layer, done, own, hidden.flatten(1), None)
        else:
            shape, how = layer.shape.torch_shape, {"stride": 2, "padding": convolution.padding}
            weight = own.get(f"{layer.name}.weight", layer.weight.double()).view(shape)
            bias = own.get(f"{layer.name}.bias", layer.bias.double())
            outputs = functional.conv2d(hidden, weight, **how)
            if done.rank:
                a, b = own[f"{layer.name}.A"], own[f"{layer.name}.B"]
                inner = functional.conv2d(hidden, a.view(-1, *shape[1:]), **how)
                outputs = outputs + done.scaling * functional.conv2d(inner, b[:, :, None, None])
            if done.update == "dora":
                norm = (layer.weight.double() + done.scaling * b @ a).detach().norm(dim=1)
                outputs = outputs * (own[f"{layer.name}.magnitude"] / norm)[:, None, None]
            hidden = outputs + bias[:, None, None]
        hidden = hidden.relu() if base.network.is_rectified(at) else hidden
    return hidden


@DTYPES
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("lora", "linear"),
        ("rslora", "linear"),
        ("dora", "linear"),
        ("pissa", "linear"),
        ("lora", "conv"),
        ("dora", "conv"),
    ],
)
def test_a_layer_is_that_of_peft(method: str, kind: str, rank: int, dtype: torch.dtype) -> None:
    base = base_of(CNN, dtype)
    at = 1 if kind == "conv" else 2
    layer, shape = base.layers[at], base.layers[at].shape
    outputs, inputs = layer.weight.shape
    channels = 4 if kind == "conv" else inputs
    own = nn.Conv2d(channels, outputs, 3, 2, 1) if kind == "conv" else nn.Linear(inputs, outputs)
    own.load_state_dict({"weight": layer.weight.view(shape.torch_shape), "bias": layer.bias})
    how = {"use_rslora": method == "rslora", "use_dora": method == "dora"}
    start = {"init_lora_weights": "pissa"} if method == "pissa" else {}
    config = LoraConfig(r=rank, lora_alpha=2.5, target_modules=["layer"], **how, **start)
    peft = get_peft_model(nn.ModuleDict({"layer": own}), config).double().base_model.model["layer"]
    a, b = peft.lora_A["default"].weight, peft.lora_B["default"].weight
    magnitude = peft.lora_magnitude_vector["default"].weight if method == "dora" else None

    plan = adapter_plan(
        AdapterSpec(method, rank=rank, alpha=2.5), network(CNN, MNIST).layers, seed=0, target=(0,)
    ).layers[at]
    assert plan.scaling == pytest.approx(peft.scaling["default"], rel=1e-12)
    kept_a, kept_b = a.detach().flatten(1).clone(), b.detach().flatten(1).clone()
    with torch.no_grad():
        for number, part in enumerate(part for part in (a, b, magnitude) if part is not None):
            part += 0.1 * noise(*part.shape, dtype=torch.float64, seed=number)
    factors = {"A": a.flatten(1), "B": b.flatten(1)}
    if magnitude is not None:
        factors["magnitude"] = magnitude.flatten()
    if method == "pissa":
        # PEFT took the first product out of its base; ours keeps it, beside a frozen negative copy.
        weight = (peft.weight.detach() + plan.scaling * kept_b @ kept_a).to(dtype)
        layer = dataclasses.replace(layer, weight=weight)
        factors = {"A": torch.cat([factors["A"], kept_a]), "B": torch.cat([factors["B"], -kept_b], 1)}
    named = {f"{layer.name}.{part}": value.detach().to(dtype) for part, value in factors.items()}
    only = AdapterPlan(tuple(plan if layer_at == at else LayerPlan() for layer_at in range(len(base.layers))))
    pack = AdapterPack.of([only], [named], base)

    convolution = base.network.convolutions[at]
    side = (channels, convolution.height, convolution.width) if convolution else (channels,)
    hidden = noise(1, BATCH, *side, dtype=dtype).requires_grad_()
    stacks = [stack.requires_grad_() for stack in pack.stacks()]
    rows = base.network.rows(at, hidden.flatten(2))
    found = base.network.activated(at, pack.layer(at, layer, rows))
    onwards = noise(*found.shape, dtype=dtype, seed=3)
    grad_hidden, *grads = torch.autograd.grad(found, [hidden, *stacks], onwards.clone())

    theirs = double(hidden)
    expected = peft(theirs[0])
    expected.backward(onwards.double().view_as(expected))
    assert theirs.grad is not None
    assert error(found.flatten(), expected.detach().flatten()) < LIMITS[dtype]
    assert error(grad_hidden, theirs.grad) < LIMITS[dtype]
    compared = {view.part: view.rows for view in pack.trained(grads)[0]}
    assert compared.keys() == factors.keys()
    assert error(compared["A"], a.grad.flatten(1)) < LIMITS[dtype]
    assert error(compared["B"].T, b.grad.flatten(1)) < LIMITS[dtype]
    if magnitude is not None:
        assert error(compared["magnitude"], magnitude.grad.flatten()) < LIMITS[dtype]
