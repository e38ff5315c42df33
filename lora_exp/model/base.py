"""The base classifier: its weights, its training, and its form as an ordinary `torch.nn.Module`.

Shapes: P jobs, N images, I inputs of a layer, O its outputs, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_exp.config.images import ImageFacts
from lora_exp.config.models import STACK, ModelSpec
from lora_exp.config.spec import BaseSpec
from lora_exp.model.architecture import Forward, Layer, Network, State, layer_of
from lora_exp.model.data import Split
from lora_exp.numerics import adam_step, generator, on_threads, portable_convolutions

log = logging.getLogger(__name__)

# Smaller bases train faster on one thread, where no thread waits for another.
MIN_WEIGHTS_FOR_TWO_THREADS = 500_000


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A trained classifier: a network and its weights, a state dict to which nothing writes."""

    network: Network
    state: State

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can be adapted, as views of the weights."""
        return tuple(layer_of(shape, self.state) for shape in self.network.layers)

    @functools.cached_property
    def forward(self) -> Forward:
        """The passes of the network with these weights."""
        return self.network.forward(self.state, self.layers)

    @property
    def parameters(self) -> int:
        """Number of all weights; what a BatchNorm has counted is none."""
        return sum(self.state[name].numel() for name, form in self.network.state.items() if form.is_parameter)

    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all weights and buffers."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            total.update(f"{name}{tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def with_layers(self, changed: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> BaseModel:
        """A copy in which some layers, by name, have another weight [O, I] and bias [O]."""
        state = {name: tensor.clone() for name, tensor in self.state.items()}
        for shape in self.network.layers:
            if shape.name in changed:
                own = layer_of(shape, state)
                for tensor, value in zip((own.weight, own.bias), changed[shape.name], strict=True):
                    tensor.copy_(value)
        return BaseModel(self.network, state)


@functools.cache
def network(spec: ModelSpec, facts: ImageFacts) -> Network:
    """The network of a spec, for images and classes like these. Raises LoraExpError where there is none."""
    if spec.kind == STACK:
        from lora_exp.model.stack import Stack

        return Stack(spec, facts)
    from lora_exp.model.builders import build
    from lora_exp.model.module import ModuleNetwork

    return ModuleNetwork(spec.label, functools.partial(build, spec, facts), facts)


def assemble(spec: ModelSpec, facts: ImageFacts, tensors: State) -> BaseModel:
    """Build the model of `spec`, for images and classes like these, from given weights.

    Raises ValueError when a tensor is absent, has the wrong shape or type, or is not finite.
    """
    form = network(spec, facts)
    for name, own in form.state.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != own.shape or tensor.dtype != own.dtype:
            kind = f"{own.dtype}".removeprefix("torch.")
            raise ValueError(f"{name} must be a {kind} tensor of shape {own.shape}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    return BaseModel(form, {name: tensors[name] for name in form.state})


def train(spec: ModelSpec, how: BaseSpec, data: Split, start: State | None = None) -> BaseModel:
    """Train a base classifier on the images of `how.classes` (None: all classes) in `data`, from `start` or from drawn
    weights on.

    Raises FloatingPointError when the loss stops being finite.
    """
    facts, device = data.images.facts, data.labels.device
    if how.classes is not None:
        data = data.where(data.of_classes(facts.positions("base.classes", how.classes)))
    form = network(spec, facts)
    state = form.initial(how.seed) if start is None else start
    learner = form.learner({name: tensor.to(device) for name, tensor in state.items()}, how.trained == "head")
    weights = sum(tensor.numel() for tensor in state.values())
    # The number of threads is fixed because the bits of narrow layers and small batches depend on it.
    threads = 2 if weights >= MIN_WEIGHTS_FOR_TWO_THREADS else 1
    trained = list(learner.parameters.values())
    values = [tensor.detach() for tensor in trained]
    first, second = ([torch.zeros_like(value) for value in values] for _ in range(2))
    order = generator("base order", how.seed)
    count = len(data.labels)
    loss, number = torch.zeros(()), 0
    with logging_redirect_tqdm(), on_threads(threads), _own_randomness(how.seed), portable_convolutions():
        steps = tqdm(total=-(-count // how.batch_size) * how.epochs, disable=None, desc="base", unit="step")
        for _ in range(how.epochs):
            shuffled = torch.randperm(count, generator=order).to(device)
            for batch in torch.split(shuffled, how.batch_size):
                loss = functional.cross_entropy(learner(data.images[batch]), data.labels[batch])
                grads = torch.autograd.grad(loss, trained)
                number += 1
                adam_step(values, list(grads), first, second, how.learning_rate, number)
                steps.update()
        steps.close()
    if not bool(loss.detach().isfinite()):
        raise FloatingPointError(f"the loss of the base became {loss.item()}; lower base.learning_rate")
    return BaseModel(form, learner.state())


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """A block whose dropout, which torch draws from its global generator, depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("base dropout", seed).initial_seed())
        yield


def plain_module(base: BaseModel) -> nn.Module:
    """Return the base as an ordinary module with the same names and a copy of its weights.

    It returns logits [N, C] of normalised images [N, channels, height, width]; that of an MLP or CNN of ours takes
    [N, I] too.
    """
    return base.network.module(base.state)


def layer_table(model: BaseModel, adapter_parameters: Sequence[int]) -> list[dict[str, object]]:
    """Return one row per layer: name, weight shape, parameters of base and adapter, overhead in percent."""
    rows = []
    for layer, added in zip(model.layers, adapter_parameters, strict=True):
        own = layer.weight.numel() + (layer.bias.numel() if layer.shape.has_bias else 0)
        named = {"layer": layer.name, "shape": list(layer.shape.torch_shape), "base": own, "adapter": added}
        rows.append(named | {"overhead_percent": 100 * added / own})
    return rows
