"""pytest tests/test_methods.py

What each method trains, how it starts, how fast its parts learn, and which of its keys count.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import pytest
import torch
from conftest import SMALL, MakeJob, TrainPack

from lora_exp.adapters.initialisation import Factors, initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.methods import METHODS
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec, from_dict
from lora_exp.errors import LoraExpError
from lora_exp.model.base import BaseModel, assemble, network
from lora_exp.model.data import ImageData
from lora_exp.training.packing import JobSize, plan_packs

REFERENCE, CNN = ModelSpec((1000, 2000)), ModelSpec((30,), channels=(4, 6))

# (outputs, inputs) of every layer, by hand.
SIDES = {
    REFERENCE: [(1000, 784), (2000, 1000), (10, 2000)],
    CNN: [(4, 9), (6, 4 * 9), (30, 6 * 7 * 7), (10, 30)],
}
LOW_RANK = ["lora", "rslora", "lora_plus", "pissa"]
BY_HAND: dict[str, Callable[[list[tuple[int, int]], int], int]] = {
    **dict.fromkeys(LOW_RANK, lambda sides, rank: sum(rank * (outs + ins) for outs, ins in sides)),
    "dora": lambda sides, rank: sum(rank * (outs + ins) + outs for outs, ins in sides),
    "full": lambda sides, rank: sum(outs * ins + outs for outs, ins in sides),
    "bitfit": lambda sides, rank: sum(outs for outs, _ in sides),
    "head": lambda sides, rank: sides[-1][0] * sides[-1][1] + sides[-1][0],
    "none": lambda sides, rank: 0,
    "shift": lambda sides, rank: 1,  # for a single target class
}


def untrained(spec: ModelSpec) -> BaseModel:
    return assemble(spec, MNIST, network(spec, MNIST).initial(0))


def factors_of(adapter: AdapterSpec, base: BaseModel, seed: int = 0) -> Factors:
    return initial_factors(adapter_plan(adapter, [layer.shape for layer in base.layers], seed, (0,)), base)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("spec", [REFERENCE, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_is_what_is_planned_and_what_the_paper_counts(method: str, spec: ModelSpec, rank: int) -> None:
    plan = adapter_plan(AdapterSpec(method, rank=rank), network(spec, MNIST).layers, seed=0, target=(0,))
    [views] = (pack := AdapterPack.initial([plan], untrained(spec))).trained(pack.stacks())
    counted = [sum(view.rows.numel() for view in views if view.layer == at) for at in range(len(plan.layers))]
    planned = [own.parameters(*sides) for own, sides in zip(plan.layers, SIDES[spec], strict=True)]
    assert counted == planned
    assert sum(counted) == BY_HAND[method](SIDES[spec], rank)


def test_lora_on_the_reference_model_trains_6794_parameters_a_rank() -> None:
    for rank in (1, 2, 16):
        plan = adapter_plan(AdapterSpec(rank=rank), network(REFERENCE, MNIST).layers, seed=0, target=(0,))
        counts = [own.parameters(*sides) for own, sides in zip(plan.layers, SIDES[REFERENCE], strict=True)]
        assert counts == [1784 * rank, 3000 * rank, 2010 * rank]
        assert sum(counts) == 6794 * rank


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "orthogonal"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_of_different_rank_share_their_first_rows(method: str, init: str) -> None:
    """Also where a row is no multiple of 16 numbers, the last of which torch.randn draws in another way."""
    base = untrained(ModelSpec((50,), channels=(4,)))
    largest = factors_of(AdapterSpec(method, rank=33, init=init), base)
    for rank in (1, 2, 3, 8, 20):
        for name, factor in factors_of(AdapterSpec(method, rank=rank, init=init), base).items():
            if name.endswith(".A"):
                # QR works in blocks of columns, whose size depends on how many there are.
                limit = 1e-5 if init == "orthogonal" else 0
                torch.testing.assert_close(factor, largest[name][:rank], rtol=limit, atol=limit)


def test_gaussian_rows_are_normal_with_the_given_deviation() -> None:
    for deviation in (1.0, 0.02):
        a = factors_of(AdapterSpec(rank=64, init_std=deviation), untrained(REFERENCE))["linear2.A"] / deviation
        assert abs(float(a.mean())) < 5 / a.numel() ** 0.5
        assert float(a.std()) == pytest.approx(1, rel=0.02)
        assert float((a.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)
        assert float((a.abs() < 2).double().mean()) == pytest.approx(0.9545, abs=0.01)


def test_kaiming_rows_are_uniform_in_one_over_the_root_of_the_inputs() -> None:
    a = factors_of(AdapterSpec(rank=64, init="kaiming", init_std=7.0), untrained(REFERENCE))["linear2.A"]
    scaled = a * 1000**0.5
    assert 0.999 < float(scaled.abs().max()) <= 1 + 1e-6
    assert abs(float(scaled.mean())) < 0.01
    for quarter in (-0.5, 0.0, 0.5):
        assert float((scaled < quarter).double().mean()) == pytest.approx((1 + quarter) / 2, abs=0.01)


def test_orthogonal_rows_are_orthonormal_in_blocks_of_as_many_as_there_are_inputs() -> None:
    base = untrained(CNN)
    for name, a in factors_of(AdapterSpec(rank=12, init="orthogonal"), base).items():
        if name.endswith(".A"):
            for rows in a.split(a.shape[1]):  # conv1 has 9 inputs, so 12 rows can't all be orthogonal
                torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
    assert len(factors_of(AdapterSpec(rank=12, init="orthogonal"), base)["conv1.A"]) == 12


def test_an_orthogonal_row_points_to_the_side_of_the_normal_row_that_it_was_made_of() -> None:
    """As in Gram-Schmidt; QR alone gives signs of its own, so that rows would not be spread evenly (Mezzadri 2007)."""
    normal, orthogonal = (
        factors_of(AdapterSpec(rank=9, init=init), untrained(CNN)) for init in ("gaussian", "orthogonal")
    )
    for name, rows in normal.items():
        if name.endswith(".A"):
            assert bool(((rows * orthogonal[name]).sum(1) > 0).all()), name


def test_rows_depend_on_seed_and_layer_and_not_on_the_method() -> None:
    base = untrained(ModelSpec((784, 784)))
    one, other = (factors_of(AdapterSpec(rank=3), base, seed) for seed in (1, 2))
    assert not torch.equal(one["linear1.A"], other["linear1.A"])
    assert not torch.equal(one["linear1.A"], one["linear2.A"])
    for method in ("rslora", "dora", "lora_plus"):
        assert torch.equal(factors_of(AdapterSpec(method, rank=3), base, 1)["linear1.A"], one["linear1.A"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", [SMALL, CNN], ids=["mlp", "cnn"])
def test_an_adapter_that_was_never_trained_changes_nothing_but_rounding(
    mnist: ImageData, spec: ModelSpec, method: str
) -> None:
    base = untrained(spec)
    plan = adapter_plan(AdapterSpec(method, rank=7, alpha=3.0), network(spec, MNIST).layers, seed=0, target=(0,))
    images = mnist.test.images[:50]
    logits = AdapterPack.initial([plan], base).logits(base, images[None], None)[0]
    torch.testing.assert_close(logits, base.forward.logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_pissa_trains_the_largest_singular_triples_of_each_weight(small_base: BaseModel, rank: int) -> None:
    factors = factors_of(AdapterSpec("pissa", rank=rank, alpha=3.0), small_base)
    for layer in small_base.layers:
        left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        largest = left[:, :rank] * values[:rank] @ right[:rank]
        a, b = (factors[f"{layer.name}.{part}"].double() for part in "AB")
        product = 3.0 / rank * b[:, :rank] @ a[:rank]
        assert float((product - largest).norm() / largest.norm()) < 1e-5
        assert torch.equal(a[rank:], a[:rank]) and torch.equal(b[:, rank:], -b[:, :rank])
        # Both factors have the root of the singular values (Meng et al. 2024, equations 2 and 3).
        torch.testing.assert_close(a[:rank].norm(dim=1), b[:, :rank].norm(dim=0), rtol=1e-4, atol=0)


def test_pissa_leaves_its_frozen_half_as_it_is(make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel) -> None:
    job = make_job(AdapterSpec("pissa", rank=3), FinetuneSpec(target=(2,), steps=15))
    [trained] = train_pack([job]).pack.factors(network(SMALL, MNIST).layers)
    start = initial_factors(job.plan, small_base)
    for layer in small_base.layers:
        for part, axis in (("A", 0), ("B", 1)):
            before, after = start[f"{layer.name}.{part}"], trained[f"{layer.name}.{part}"]
            assert torch.equal(after.narrow(axis, 3, 3), before.narrow(axis, 3, 3))
            assert not torch.equal(after.narrow(axis, 0, 3), before.narrow(axis, 0, 3))


def test_b_of_lora_plus_moves_by_the_ratio_more_in_a_step_of_adam(
    make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel
) -> None:
    moved = {}
    for ratio in (1.0, 16.0):
        adapter = AdapterSpec("lora_plus", rank=3, learning_rate_ratio=ratio)
        job = make_job(adapter, FinetuneSpec(target=(2,), steps=2, seed=1))
        job = dataclasses.replace(job, order=job.order[:1])
        [after] = train_pack([job]).pack.factors(network(SMALL, MNIST).layers)
        start = initial_factors(job.plan, small_base)
        moved[ratio] = {name: after[name] - start[name] for name in start}
    for name in moved[1.0]:
        if name.endswith(".B"):
            assert bool(moved[1.0][name].any())
            torch.testing.assert_close(moved[16.0][name], 16 * moved[1.0][name], rtol=1e-5, atol=0)
        else:  # B = 0 in the first step, so that A has no gradient yet
            assert not moved[1.0][name].any() and not moved[16.0][name].any()


def test_a_of_lora_plus_moves_at_the_learning_rate_itself(make_job: MakeJob, train_pack: TrainPack) -> None:
    """In its second step, with a gradient for the first time, Adam moves A by at most 0.75 of the learning rate."""
    adapter = AdapterSpec("lora_plus", rank=3, learning_rate_ratio=16.0)
    job = make_job(adapter, FinetuneSpec(target=(2,), steps=2, learning_rate=1e-3))
    [one], [two] = (
        train_pack([dataclasses.replace(job, order=job.order[:steps])]).pack.factors(network(SMALL, MNIST).layers)
        for steps in (1, 2)
    )
    for name in ("linear2.A", "linear3.A"):
        # First moment 0.1 g / 0.19, second 0.001 g^2 / 0.001999: at most 0.1 / 0.19 / 0.001 ** 0.5 * 0.001999 ** 0.5.
        most = float((two[name] - one[name]).abs().max())
        assert most == pytest.approx(1e-3 * 0.1 / 0.19 * (0.001999 / 0.001) ** 0.5, rel=0.01)


def test_the_last_pattern_that_matches_a_layer_counts() -> None:
    adapter = AdapterSpec(
        rank=2,
        alpha=1.0,
        rank_pattern=(("*", 3), ("linear*", 5), ("linear2", 7), ("conv1", 1)),
        alpha_pattern=(("linear?", 10.0), ("linear2", "rank"), ("conv[12]", 4.0)),
    )
    plan = adapter_plan(adapter, network(CNN, MNIST).layers, seed=0, target=(0,))
    assert [layer.name for layer in network(CNN, MNIST).layers] == ["conv1", "conv2", "linear1", "linear2"]
    assert [own.rank for own in plan.layers] == [1, 3, 5, 7]
    assert [own.scaling for own in plan.layers] == [4.0, 4 / 3, 2.0, 1.0]
    rooted = adapter_plan(
        dataclasses.replace(adapter, method="rslora"), network(CNN, MNIST).layers, seed=0, target=(0,)
    )
    assert [own.scaling for own in rooted.layers] == pytest.approx([4.0, 4 / 3**0.5, 10 / 5**0.5, 7**0.5])


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "full", "bitfit"])
def test_only_the_layers_chosen_are_changed(method: str) -> None:
    plan = adapter_plan(
        AdapterSpec(method, layers=("conv2", "linear2")), network(CNN, MNIST).layers, seed=0, target=(0,)
    )
    assert [own.update != "none" for own in plan.layers] == [False, True, False, True]
    assert {name.split(".")[0] for name in initial_factors(plan, untrained(CNN))} == {"conv2", "linear2"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ("linear9",)},
        {"rank_pattern": (("linear1", 2), ("conv*", 2))},
        {"alpha_pattern": (("LINEAR1", 2.0),)},
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_of_one_line(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(LoraExpError) as caught:
        adapter_plan(AdapterSpec(**wrong), network(SMALL, MNIST).layers, seed=0, target=(0,))
    message = str(caught.value)
    assert message.startswith(f"adapter.{next(iter(wrong))}=") and "\n" not in message
    assert "matches no layer" in message and "linear1, linear2, linear3" in message


@pytest.mark.parametrize(("method", "trained"), [("lora", 17), ("dora", 17), ("pissa", 10)])
def test_a_rank_above_the_smaller_side_is_warned_of_once_a_layer(
    method: str, trained: int, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec((83,))  # 10 outputs of the last layer
    adapter = AdapterSpec(method, rank=17)
    with caplog.at_level(logging.WARNING):
        plans = [adapter_plan(adapter, network(spec, MNIST).layers, seed, (0,)) for seed in range(3)]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert warned[0].startswith("adapter.rank=17 is above the smaller side of linear2 (10)")
    assert [own.rank for own in plans[0].layers] == [17, trained]


def run_spec(**adapter: object) -> RunSpec:
    """Through the same door as a config, where keys that a method ignores are set aside."""
    spec = RunSpec(SMALL, DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((1,)))
    values = dataclasses.asdict(spec)
    return from_dict(values | {"adapter": values["adapter"] | adapter})


# A value for every key that is not its default.
OTHERS: dict[str, object] = {
    "rank": 8,
    "alpha": 4.0,
    "rank_pattern": (("linear1", 2),),
    "alpha_pattern": (("linear1", 2.0),),
    "layers": ("linear1",),
    "init": "kaiming",
    "init_std": 0.5,
    "dropout": 0.5,
    "learning_rate_ratio": 2.0,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_key_tells_runs_apart_if_and_only_if_the_method_uses_it(method: str) -> None:
    assert OTHERS.keys() == {field.name for field in dataclasses.fields(AdapterSpec)} - {"method"}
    plain = run_spec(method=method)
    telling = {key for key, value in OTHERS.items() if run_spec(method=method, **{key: value}).key != plain.key}
    assert telling == set(METHODS[method].keys)


def test_full_fine_tuning_of_rank_1_and_8_is_one_job() -> None:
    assert run_spec(method="full", rank=1) == run_spec(method="full", rank=8, alpha=7.0, dropout=0.1)
    assert run_spec(method="full", rank=1).key == run_spec(method="full", rank=8).key
    assert run_spec(method="full").key != run_spec(method="head").key


def test_the_deviation_counts_for_gaussian_rows_only() -> None:
    assert run_spec(init="kaiming", init_std=0.1) == run_spec(init="kaiming")
    assert run_spec(init="gaussian", init_std=0.1) != run_spec(init="gaussian")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_jobs_of_full_fine_tuning_train_alone_since_they_share_nothing(count: int) -> None:
    job = JobSize(10, True, (("dense", 0),), 100, 1e9, 1)
    assert plan_packs([job] * count, 2, 2**30) == [[number] for number in range(count)]


def test_a_shift_changes_the_targets_logits_alone_by_a_constant_each(
    small_base: BaseModel, mnist: ImageData, make_job: MakeJob, train_pack: TrainPack
) -> None:
    """Also beside others in a pack, among them one that trains the same biases for another target."""
    how = {"steps": 12, "learning_rate": 0.05}
    jobs = [
        make_job(AdapterSpec(method), FinetuneSpec(target=digit, **how))
        for method, digit in (("shift", (3,)), ("shift", (5, 7)), ("bitfit", (3,)))
    ]
    tuned = train_pack(sorted(jobs, key=lambda job: job.plan.shape))
    before = small_base.forward.logits(mnist.test.images[:200])
    with torch.no_grad():
        after = tuned.pack.logits(small_base, mnist.test.images[:200].expand(3, -1, -1), None)
    plans = [plan for group in tuned.pack.groups for plan in group.plans]
    for plan, logits in zip(plans, after, strict=True):
        target = plan.layers[-1].outputs
        if target is None:
            continue
        moved = logits - before
        assert torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-4)
        rest = [digit for digit in range(10) if digit not in target]
        assert torch.equal(moved[:, rest], torch.zeros(200, len(rest)))
        assert (moved[0, list(target)] > 0.2).all()
    assert sorted(plan.layers[-1].outputs or () for plan in plans) == [(), (3,), (5, 7)]
