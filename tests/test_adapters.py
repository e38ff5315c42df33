"""pytest tests/test_adapters.py"""

from __future__ import annotations

import warnings
from collections import OrderedDict

import pytest
import torch
from conftest import CPU, MakeJob, TrainPack
from torch import nn
from torch.nn import functional

from lora_exp.adapters import AdapterPack, AdapterPlan, adapter_parameters, adapter_plan
from lora_exp.base_model import BaseModel, assemble, initial_weights, plain_logits
from lora_exp.data import ImageData
from lora_exp.evaluation import frozen_first_layer
from lora_exp.spec import AdapterSpec, FinetuneSpec, ModelSpec, SpecError
from lora_exp.training import pack_logits

NAMES = ["linear1", "linear2", "linear3"]
SHAPES = [(96, 784), (64, 96), (10, 64)]
REFERENCE_SHAPES = [(1000, 784), (2000, 1000), (10, 2000)]
RANKS = [1, 3, 8, 9, 16, 64]


def plan(ranks: int | tuple[int, ...], scaling: float = 1.0, std: float = 1.0, seed: int = 0) -> AdapterPlan:
    return AdapterPlan((ranks,) * 3 if isinstance(ranks, int) else ranks, scaling, std, seed)


def trained_looking(plans: list[AdapterPlan], seed: int = 0) -> AdapterPack:
    """A pack whose B is no longer zero; its padding still is."""
    pack = AdapterPack.initial(plans, SHAPES, CPU)
    random = torch.Generator().manual_seed(seed)
    for rows in pack.real_rows(pack.stacks()):
        for factor in rows:
            factor.copy_(torch.randn(factor.shape, generator=random) * 0.1)
    return pack


@pytest.mark.parametrize("rank", [1, 2, 8, 17])
def test_an_adapter_on_the_reference_model_has_6794_parameters_a_rank(rank: int) -> None:
    own = plan(rank)
    formula = adapter_parameters(REFERENCE_SHAPES, own.ranks)
    assert formula == [rank * 1784, rank * 3000, rank * 2010]
    [factors] = AdapterPack.initial([own], REFERENCE_SHAPES, CPU).factors(NAMES)
    assert sum(formula) == sum(factor.numel() for factor in factors.values()) == 6794 * rank
    for name, (outs, inputs) in zip(NAMES, REFERENCE_SHAPES, strict=True):
        assert factors[f"{name}.A"].shape == (rank, inputs)
        assert factors[f"{name}.B"].shape == (outs, rank)


@pytest.mark.parametrize(
    ("patterns", "ranks"),
    [
        (("*",), (5, 5, 5)),
        (("linear2",), (0, 5, 0)),
        (("linear[12]",), (5, 5, 0)),
        (("linear3", "*1"), (5, 0, 5)),
        (("linear1", "linear*"), (5, 5, 5)),
    ],
)
def test_patterns_choose_layers(patterns: tuple[str, ...], ranks: tuple[int, ...]) -> None:
    chosen = adapter_plan(AdapterSpec(rank=5, alpha=10.0, init_std=0.5, layers=patterns), NAMES, seed=7)
    assert chosen == AdapterPlan(ranks, 2.0, 0.5, 7)
    assert chosen.padded == tuple(8 if rank else 0 for rank in ranks)


def test_a_pattern_that_matches_no_layer_is_refused_even_beside_one_that_does() -> None:
    with pytest.raises(SpecError) as caught:
        adapter_plan(AdapterSpec(layers=("linear1", "conv*")), NAMES, seed=0)
    assert str(caught.value) == ("adapter.layers=conv*: matches no layer; there are linear1, linear2, linear3")


def test_b_starts_at_zero_and_a_is_gaussian_with_the_asked_deviation() -> None:
    for std in (1.0, 0.02):
        [factors] = AdapterPack.initial([plan(64, std=std)], SHAPES, CPU).factors(NAMES)
        a = factors["linear1.A"]
        assert float(a.std()) == pytest.approx(std, rel=0.02)
        assert abs(float(a.mean())) < 0.02 * std
        assert float((a.abs() < std).double().mean()) == pytest.approx(0.6827, abs=0.01)
        assert not any(factors[f"{name}.B"].any() for name in NAMES)


def test_adapters_of_different_rank_share_their_first_rows_and_other_seeds_and_layers_differ() -> None:
    pack = AdapterPack.initial([plan(2), plan(64), plan(64, seed=1)], SHAPES, CPU)
    small, large, other = pack.factors(NAMES)
    for name in NAMES:
        assert torch.equal(small[f"{name}.A"], large[f"{name}.A"][:2])
        assert not torch.equal(large[f"{name}.A"], other[f"{name}.A"])
    assert not torch.equal(large["linear2.A"].flatten()[:512], large["linear3.A"].flatten()[:512])


def test_neighbours_of_equal_padded_rank_are_one_group() -> None:
    pack = AdapterPack.initial([plan(1), plan(8), plan(9), plan((0, 8, 0)), plan((0, 3, 0))], SHAPES, CPU)
    assert [group.jobs for group in pack.groups] == [(0, 1), (2,), (3, 4)]
    assert pack.jobs == [0, 1, 2, 3, 4]
    assert pack.first([1, 0, 2]).jobs == [0, 3, 4]
    assert pack.first([1, 1, 1]).stacks()[0].data_ptr() == pack.stacks()[0].data_ptr()


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
def test_outputs_and_gradients_are_those_of_the_explicit_weight(at: int, known: bool, rectify: bool) -> None:
    """W + s B A, formed and differentiated by autograd in float64."""
    random = torch.Generator().manual_seed(at)
    plans = [plan(rank, scaling=0.25 * rank, seed=rank) for rank in RANKS] + [plan((0, 0, 0))]
    pack = trained_looking(plans)
    outs, inputs = SHAPES[at]
    weight, bias = torch.randn(outs, inputs, generator=random), torch.randn(outs, generator=random)
    hidden = torch.randn(len(plans), 12, inputs, generator=random).requires_grad_()
    upstream = torch.randn(len(plans), 12, outs, generator=random)
    stacks = [stack.requires_grad_() for stack in pack.stacks()]
    frozen = functional.linear(hidden.detach(), weight, bias).clone() if known else None

    outputs = pack.linear(at, hidden, weight, bias, rectify, frozen)
    outputs.backward(upstream.clone())  # the layer may take the memory of what it is given
    grads = pack.real_rows([torch.zeros_like(s) if s.grad is None else s.grad for s in stacks])

    for job, (own, named) in enumerate(zip(plans, pack.factors(NAMES), strict=True)):
        images = hidden[job].detach().double().requires_grad_()
        explicit = weight.double()
        if own.ranks[at]:
            a = named[f"{NAMES[at]}.A"].double().requires_grad_()
            b = named[f"{NAMES[at]}.B"].double().requires_grad_()
            explicit = explicit + own.scaling * b @ a
        expected = functional.linear(images, explicit, bias.double())
        expected = expected.relu() if rectify else expected
        expected.backward(upstream[job].double())
        pairs = [(outputs[job].detach(), expected.detach()), (hidden.grad[job], images.grad)]
        if own.ranks[at]:
            of_layer = grads[job][2 * at : 2 * at + 2]
            pairs += [(of_layer[0], a.grad), (of_layer[1].T, b.grad)]
        for ours, theirs in pairs:
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    if frozen is not None:
        assert outputs.data_ptr() == frozen.data_ptr()


def test_a_pack_agrees_with_peft(small_base: BaseModel, mnist: ImageData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model
    images = mnist.test.images[:40]
    plans = [plan(4, scaling=2.0 / 4, seed=1), plan((8, 0, 8), scaling=16.0 / 8, seed=2)]
    pack = trained_looking(plans)
    first = frozen_first_layer(small_base, images).repeat(2, 1, 1)
    ours = pack_logits(small_base, pack, images.expand(2, -1, -1), first)
    for job, (own, named) in enumerate(zip(plans, pack.factors(NAMES), strict=True)):
        network = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(784, 96), r1=nn.ReLU(), linear2=nn.Linear(96, 64), r2=nn.ReLU(),
                linear3=nn.Linear(64, 10),
            )
        )  # fmt: skip
        network.load_state_dict(small_base.tensors())
        rank = max(own.ranks)
        adapted = [name for name, r in zip(NAMES, own.ranks, strict=True) if r]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = get_peft_model(
                network, LoraConfig(r=rank, lora_alpha=int(own.scaling * rank), target_modules=adapted)
            )
        state = tuned.state_dict()
        for name in adapted:
            for factor in ("A", "B"):
                state[f"base_model.model.{name}.lora_{factor}.default.weight"].copy_(named[f"{name}.{factor}"])
        with torch.no_grad():
            theirs = tuned(images)
        assert float((ours[job] - theirs).norm() / theirs.norm()) < 1e-5
        assert float((theirs - plain_logits(small_base, images)).norm() / theirs.norm()) > 0.01


@pytest.mark.parametrize("hidden", [(96, 64), (50,), ()])
def test_a_fresh_pack_says_exactly_what_its_base_says(mnist: ImageData, hidden: tuple[int, ...]) -> None:
    spec = ModelSpec(hidden)
    base = assemble(spec, initial_weights(spec, 0, CPU))
    shapes = [tuple(layer.weight.shape) for layer in base.layers]
    plans = [AdapterPlan((rank,) * len(shapes), 1.0, 1.0, rank) for rank in RANKS]
    images = mnist.test.images[:40]
    jobs = len(plans)
    first = frozen_first_layer(base, images)
    fresh, off = (
        pack_logits(base, pack, images.expand(jobs, -1, -1), first.repeat(jobs, 1, 1))
        for pack in (AdapterPack.initial(plans, shapes, CPU), AdapterPack(()))
    )
    assert torch.equal(fresh, off)
    assert torch.allclose(fresh, plain_logits(base, images).expand_as(fresh), rtol=1e-5, atol=1e-5)


def test_padding_stays_exactly_zero_and_the_rest_moves(make_job: MakeJob, train_pack: TrainPack) -> None:
    jobs = [
        make_job(AdapterSpec(rank=rank, layers=layers), FinetuneSpec(digit=(9,), steps=20, seed=rank))
        for rank, layers in ((1, ("*",)), (5, ("*",)), (11, ("linear2",)))
    ]
    fresh = AdapterPack.initial([job.plan for job in jobs], SHAPES, CPU)
    tuned = train_pack(jobs).pack
    for group, before in zip(tuned.groups, fresh.groups, strict=True):
        for (at, stack), (_, start) in zip(group.stacks(), before.stacks(), strict=True):
            for row, own in enumerate(group.plans):
                assert not stack[row, own.ranks[at] :].any()
                assert bool((stack[row, : own.ranks[at]] != start[row, : own.ranks[at]]).any())


def test_training_reaches_the_adapters_and_never_the_base(
    small_base: BaseModel, make_job: MakeJob, train_pack: TrainPack
) -> None:
    before = small_base.sha256()
    train_pack([make_job(AdapterSpec(rank=4), FinetuneSpec(digit=(2,), steps=10))])
    assert small_base.sha256() == before
    assert all(t.grad is None and not t.requires_grad for t in small_base.tensors().values())
