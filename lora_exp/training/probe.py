"""Try whether the bits of a job depend on the other jobs of its pack, with the real module of a base.

Of a stack of layers the kinds of products alone are tried. A module may hold any operation, so all of it is tried,
forward and backward, at the batch size of the runs.

Shapes: P jobs, B images of a batch, I values of an image or inputs of a layer, O outputs of a layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lora_exp.adapters.initialisation import initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.model.base import BaseModel
from lora_exp.model.module import ModuleForward
from lora_exp.model.swapped import Pass
from lora_exp.numerics import (
    ANY_PACK,
    MIN_ROWS,
    RANK_MULTIPLE,
    SAME_PACK,
    add_stacked_product,
    generator,
    least_rows,
    on_threads,
    rowwise_product,
    stacked_product,
)
from lora_exp.storage.provenance import code_version

# Rows to try: of products that are completed to whole rows (`numerics`), and of the chunks of an evaluation.
ANY_ROWS, CHUNKS = (MIN_ROWS, 20, 33, 70), (MIN_ROWS, 20, 52, 72)
JOBS, OWN = 3, 1  # of the pack, and the job whose bits are compared with those alone


def what_is_tried(base: BaseModel, spec: ModelSpec, facts: ImageFacts, batch_sizes: Sequence[int]) -> list[Any]:
    """What the answer of `promise_of` depends on besides machine and libraries, as JSON types."""
    if not isinstance(base.forward, ModuleForward):
        return [code_version("results"), *(list(layer.torch_shape) for layer in base.network.layers)]
    return [code_version("results"), dataclasses.asdict(spec), dataclasses.asdict(facts), *batch_sizes]


def promise_of(base: BaseModel, batch_sizes: Sequence[int], device: torch.device) -> str:
    """Return what runs with these batch sizes may promise about their bits; names the part of a module that fails."""
    if not isinstance(base.forward, ModuleForward):
        return promise_of_products([(layer.outputs, layer.inputs) for layer in base.network.layers], device)
    if device.type != "cpu":
        return SAME_PACK
    with on_threads(1):
        for count in dict.fromkeys((*batch_sizes, MIN_ROWS + 1)):
            if culprit := _differs(base, base.forward, count):
                return f"{SAME_PACK} ({culprit} depends on other rows)"
    return ANY_PACK


def promise_of_products(shapes: Sequence[tuple[int, int]], device: torch.device) -> str:
    """Test whether the bits of a row depend on the other rows, and return what a run may promise about its bits.

    The test computes, on one thread, the products of a model whose layer weights have these shapes [O, I], and those of
    low-rank updates, for few rows and for many.
    """
    if device.type != "cpu":
        return SAME_PACK
    random = torch.Generator().manual_seed(0)
    with on_threads(1):
        for position, (outputs, inputs) in enumerate(shapes):
            weight = torch.randn(outputs, inputs, generator=random)
            a, b = (torch.randn(RANK_MULTIPLE, side, generator=random) for side in (inputs, outputs))
            # The forward product of each layer, and the backward product of all but the first.
            shared = (weight.t(), weight) if position else (weight.t(),)
            frozen = (_depends_on_others(rowwise_product, factor, ANY_ROWS, random) for factor in shared)
            factors = (a.t(), b, b.t(), a)
            least = least_rows([(outputs, inputs)])
            chunks = [rows for rows in CHUNKS if rows >= least]
            low_rank = (
                _depends_on_others(way, factor, chunks, random) for factor in factors for way in (_stacked, _added)
            )
            if any(frozen) or any(low_rank) or any(_differs_alone(factor, random) for factor in factors):
                return SAME_PACK
    return ANY_PACK


def _depends_on_others(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    factor: torch.Tensor,
    numbers: Sequence[int],
    random: torch.Generator,
) -> bool:
    """Whether the bits of a row of `product` differ in products of so many rows."""
    rows = torch.randn(160, len(factor), generator=random)
    whole = product(rows, factor)
    cuts = ([part for part in torch.split(rows, number) if len(part) == number] for number in numbers)
    found = (torch.cat([product(part, factor) for part in parts]) for parts in cuts)
    return not all(torch.equal(own, whole[: len(own)]) for own in found)


def _stacked(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Compute the product for a stack of jobs, one for every ten rows, and return that of the last job."""
    jobs = len(rows) // 10
    return stacked_product(rows.expand(jobs, -1, -1), factor.expand(jobs, -1, -1))[-1]


def _added(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The same, added to what is there already."""
    jobs = len(rows) // 10
    sums = (rows[:, :1] * 3).expand(jobs, -1, factor.shape[1]).clone()
    add_stacked_product(sums, rows.expand(jobs, -1, -1), factor.expand(jobs, -1, -1))
    return sums[-1]


def _differs_alone(factor: torch.Tensor, random: torch.Generator) -> bool:
    """Whether a job with a batch size of 1 or 10 has other bits alone than in a stack of jobs."""
    for batch_size in (1, 10):
        batch, found = torch.randn(1, batch_size, len(factor), generator=random), []
        for jobs in (1, 7):
            rows, factors = batch.expand(jobs, -1, -1), factor.expand(jobs, -1, -1)
            product = stacked_product(rows, factors)
            total = product.clone()
            add_stacked_product(total, rows, factors)
            found.append(torch.cat([product[-1], total[-1]]))
        if not torch.equal(*found):
            return True
    return False


def _differs(base: BaseModel, forward: ModuleForward, count: int) -> str | None:
    """The first part of which a job with so many images has other bits in a pack than alone; None if there is none."""
    whole, alone = _pack(base, JOBS), _pack(base, 1)
    images = torch.randn(JOBS, count, forward.pixels, generator=generator("probe images"))
    in_pack, in_pack_grads = _traced(forward, whole, images)
    by_itself, own_grads = _traced(forward, alone, images[OWN : OWN + 1])
    for (name, output), (_, together) in zip(by_itself, in_pack, strict=True):
        is_of_images = isinstance(output, torch.Tensor) and len(together) == JOBS * len(output)
        if is_of_images and not torch.equal(_rows_of(together, JOBS), output):
            return name
    at_end = [(layer.name, own) for layer, own in zip(base.network.layers, own_grads, strict=True)]
    for (name, own), together in reversed(list(zip(at_end, in_pack_grads, strict=True))):
        if not torch.equal(together[OWN : OWN + 1], own):
            return f"the gradient of {name}"
    return None


def _pack(base: BaseModel, jobs: int) -> AdapterPack:
    """Jobs with a low-rank update, none of them zero, in every layer; the adapter of each job is the same alone."""
    plan = AdapterPlan(tuple(LayerPlan("low_rank", 1) for _ in base.layers))
    factors = initial_factors(plan, base)
    for layer in base.layers:
        b = factors[f"{layer.name}.B"]
        b.copy_(torch.randn(b.shape, generator=generator("probe factors", layer.name)) * 0.01)
        factors[f"{layer.name}.A"] *= layer.shape.inputs**-0.5
    return AdapterPack.of([plan] * jobs, [factors] * jobs, base)


def _traced(
    forward: ModuleForward, pack: AdapterPack, images_PBI: torch.Tensor
) -> tuple[list[tuple[str, Any]], list[torch.Tensor]]:
    """The outputs of all parts of a pass, by name, and the gradient of A of each layer [P, R, I]."""
    stacks = [parts["A"].requires_grad_() for parts in pack.groups[0].parts]
    trace: list[tuple[str, Any]] = []
    apply = functools.partial(pack.layer, training=False)
    run = Pass(len(images_PBI), apply, trace=trace)
    logits = forward.run(run, forward.shaped(images_PBI))
    loss = logits.logsumexp(1).sum()
    grads = torch.autograd.grad(loss, stacks, materialize_grads=True)
    return [(name, one.detach() if isinstance(one, torch.Tensor) else one) for name, one in trace], list(grads)


def _rows_of(output: Any, jobs: int) -> torch.Tensor:
    """The part of an output that belongs to job OWN."""
    rows: torch.Tensor = output.reshape(jobs, len(output) // jobs, *output.shape[1:])[OWN]
    return rows
