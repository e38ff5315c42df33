"""pytest tests/test_adapter_pack.py

The adapters of a pack: how they are stacked, padded and taken apart. What they compute: test_updates.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import MakeJob, TrainPack, constants_of

from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, FinetuneSpec
from lora_exp.model.architecture import Constants
from lora_exp.model.base import BaseModel, assemble, network
from lora_exp.model.data import ImageData

RANKS = [1, 3, 8, 9, 16, 64]
MODELS = [ModelSpec((96, 64)), ModelSpec((50,)), ModelSpec(()), ModelSpec((20,), channels=(4, 8))]


def plan(*ranks: int, seed: int = 0) -> AdapterPlan:
    return AdapterPlan(tuple(LayerPlan("low_rank", rank) if rank else LayerPlan() for rank in ranks), seed=seed)


def test_neighbours_of_equal_shape_are_one_group(small_base: BaseModel) -> None:
    plans = [plan(1, 1, 1), plan(8, 8, 8), plan(9, 9, 9), plan(0, 8, 0), plan(0, 3, 0)]
    pack = AdapterPack.initial(plans, small_base)
    assert [group.jobs for group in pack.groups] == [(0, 1), (2,), (3, 4)]
    assert pack.jobs == [0, 1, 2, 3, 4]
    assert pack.first([1, 0, 2]).jobs == [0, 3, 4]
    assert pack.first([1, 1, 1]).stacks()[0].data_ptr() == pack.stacks()[0].data_ptr()


def test_factors_come_out_of_a_pack_as_they_went_in(small_base: BaseModel) -> None:
    plans = [plan(1, 2, 3, seed=1), plan(8, 7, 6, seed=2), plan(0, 11, 0, seed=3)]
    random = torch.Generator().manual_seed(0)
    given = []
    for own in plans:
        factors = {}
        for layer, planned in zip(small_base.layers, own.layers, strict=True):
            outputs, inputs = layer.weight.shape
            if planned.rank:
                factors[f"{layer.name}.A"] = torch.randn(planned.rank, inputs, generator=random)
                factors[f"{layer.name}.B"] = torch.randn(outputs, planned.rank, generator=random)
        given.append(factors)
    pack = AdapterPack.of(plans, given, small_base)
    for before, after in zip(given, pack.factors([layer.shape for layer in small_base.layers]), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.label or "one layer")
def test_an_untrained_pack_has_exactly_the_logits_of_its_base(mnist: ImageData, spec: ModelSpec) -> None:
    base = assemble(spec, MNIST, network(spec, MNIST).initial(0))
    layers = len(base.layers)
    plans = [plan(*(rank,) * layers, seed=rank) for rank in RANKS]
    plans += [AdapterPlan((LayerPlan(update, rank),) * layers) for update, rank in (("dora", 3), ("bias", 0))]
    some = mnist.test.where(slice(40)).images
    images = some[:]
    jobs = len(plans)
    fresh, off = (
        pack.logits(base, images.expand(jobs, -1, -1), shared(constants_of(base, some), jobs))
        for pack in (AdapterPack.initial(plans, base), AdapterPack(()))
    )
    # DoRA's |W| is summed in another order where it starts and where it is used.
    assert torch.equal(fresh[: len(RANKS)], off[: len(RANKS)])
    assert torch.equal(fresh[-1], off[-1])
    torch.testing.assert_close(fresh, off, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fresh, base.forward.logits(images).expand_as(fresh), rtol=1e-5, atol=1e-5)


def shared(constants: Constants | None, jobs: int) -> Constants | None:
    """For every job memory of its own, which a pack overwrites."""
    return None if constants is None else constants.shared(slice(None), jobs)


def test_padding_stays_exactly_zero_and_the_rest_moves(
    make_job: MakeJob, train_pack: TrainPack, small_base: BaseModel
) -> None:
    jobs = [
        make_job(AdapterSpec(rank=rank, layers=layers), FinetuneSpec(target=(9,), steps=20, seed=rank))
        for rank, layers in ((1, ("*",)), (5, ("*",)), (11, ("linear2",)))
    ]
    fresh = AdapterPack.initial([job.plan for job in jobs], small_base)
    tuned = train_pack(jobs).pack
    for group, before in zip(tuned.groups, fresh.groups, strict=True):
        for at, parts in enumerate(group.parts):
            for part, stack in parts.items():
                for row, own in enumerate(group.plans):
                    rank = own.layers[at].rank
                    assert not stack[row, rank:].any()
                    assert bool((stack[row, :rank] != before.parts[at][part][row, :rank]).any())


def test_training_reaches_the_adapters_and_never_the_base(
    small_base: BaseModel, make_job: MakeJob, train_pack: TrainPack
) -> None:
    before = small_base.sha256()
    train_pack([make_job(AdapterSpec(rank=4), FinetuneSpec(target=(2,), steps=10))])
    assert small_base.sha256() == before
    assert all(t.grad is None and not t.requires_grad for t in small_base.state.values())
