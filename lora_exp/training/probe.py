"""Try whether the bits of a job depend on the other jobs of its pack, with the real module of a base.

What holds for each kind of operation alone is known for a stack of linear layers (`numerics.promise`). A module may
hold any operation, so all of it is tried, forward and backward, at the batch size of the runs.

Shapes: P jobs, B images of a batch, I values of an image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

from lora_exp import numerics
from lora_exp.adapters.initialisation import initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.model.base import BaseModel
from lora_exp.model.module import ModuleForward
from lora_exp.model.swapped import Pass
from lora_exp.numerics import ANY_PACK, MIN_ROWS, SAME_PACK, generator, on_threads
from lora_exp.storage.provenance import code_version

JOBS, OWN = 3, 1  # of the pack, and the job whose bits are compared with those alone


def what_is_tried(base: BaseModel, spec: ModelSpec, facts: ImageFacts, batch_sizes: Sequence[int]) -> list[Any]:
    """What the answer of `promise_of` depends on besides machine and libraries, as JSON types."""
    if not isinstance(base.forward, ModuleForward):
        return [list(layer.torch_shape) for layer in base.network.layers]
    return [dataclasses.asdict(spec), dataclasses.asdict(facts), *batch_sizes, code_version("results")]


def promise_of(base: BaseModel, batch_sizes: Sequence[int], device: torch.device) -> str:
    """Return what runs with these batch sizes may promise about their bits; names the part of a module that fails."""
    if not isinstance(base.forward, ModuleForward):
        return numerics.promise([(layer.outputs, layer.inputs) for layer in base.network.layers], device)
    if device.type != "cpu":
        return SAME_PACK
    with on_threads(1):
        for count in dict.fromkeys((*batch_sizes, MIN_ROWS + 1)):
            if culprit := _differs(base, base.forward, count):
                return f"{SAME_PACK} ({culprit} depends on other rows)"
    return ANY_PACK


def _differs(base: BaseModel, forward: ModuleForward, count: int) -> str | None:
    """The first part of which a job with so many images has other bits in a pack than alone; None if there is none."""
    whole, alone = _pack(base, JOBS), _pack(base, 1)
    images = torch.randn(JOBS, count, forward.pixels, generator=generator("probe images"))
    in_pack, in_pack_grads = _traced(forward, whole, images)
    by_itself, own_grads = _traced(forward, alone, images[OWN : OWN + 1])
    for (name, output), (_, together) in zip(by_itself, in_pack, strict=True):
        if isinstance(output, torch.Tensor) and not torch.equal(_rows_of(together, JOBS), output):
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
    grads = torch.autograd.grad(loss, stacks)
    return [(name, one.detach() if isinstance(one, torch.Tensor) else one) for name, one in trace], list(grads)


def _rows_of(output: Any, jobs: int) -> torch.Tensor:
    """The part of an output that belongs to job OWN."""
    rows: torch.Tensor = output.reshape(jobs, len(output) // jobs, *output.shape[1:])[OWN]
    return rows
