"""The base classifier: its weights, its training, and its form as an ordinary `torch.nn.Module`.

Shapes: N images, I inputs of a layer, O its outputs, C classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_exp.config.images import ImageFacts
from lora_exp.config.spec import BaseSpec, ModelSpec
from lora_exp.model.architecture import STRIDE, LayerShape, layer_shapes
from lora_exp.model.data import Split
from lora_exp.numerics import adam_step, generator, on_threads

log = logging.getLogger(__name__)

# Smaller bases train faster on one thread, where no thread waits for another.
MIN_WEIGHTS_FOR_TWO_THREADS = 500_000


@dataclass(frozen=True)
class Layer:
    """One layer: its shape, weight as a matrix [O, I] and bias [O], both float32."""

    shape: LayerShape
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def name(self) -> str:
        """`conv1`, `linear1`, ..."""
        return self.shape.name


@dataclass(frozen=True)
class BaseModel:
    """A trained classifier with frozen weights."""

    layers: tuple[Layer, ...]
    rectify_logits: bool

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(layer.weight.numel() + layer.bias.numel() for layer in self.layers)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and biases by name (`linear1.weight`), as in a state dict."""
        named = {}
        for layer in self.layers:
            named[f"{layer.name}.weight"] = layer.weight.view(layer.shape.torch_shape)
            named[f"{layer.name}.bias"] = layer.bias
        return named

    def is_rectified(self, position: int) -> bool:
        """Whether a ReLU follows layer `position`: every layer but the last, and the last if `rectify_logits`."""
        return position < len(self.layers) - 1 or self.rectify_logits

    def sha256(self) -> str:
        """Hash of names, shapes and bytes of all weights and biases."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            total.update(f"{name}{tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()


def assemble(spec: ModelSpec, facts: ImageFacts, tensors: dict[str, torch.Tensor]) -> BaseModel:
    """Build the model of `spec`, for images and classes like these, from given weights.

    Raises ValueError when a tensor is absent, has the wrong shape or type, or is not finite.
    """
    layers = []
    for layer in layer_shapes(spec, facts):
        for part, shape in ((f"{layer.name}.weight", layer.torch_shape), (f"{layer.name}.bias", (layer.outputs,))):
            tensor = tensors.get(part)
            if tensor is None or tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(f"{part} must be a float32 tensor of shape {shape}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{part} holds values that are not finite")
        weight = tensors[f"{layer.name}.weight"].view(layer.outputs, layer.inputs)
        layers.append(Layer(layer, weight, tensors[f"{layer.name}.bias"]))
    return BaseModel(tuple(layers), spec.rectify_logits)


def initial_weights(spec: ModelSpec, facts: ImageFacts, seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Draw weights and biases uniformly from +-1/sqrt(I), like `torch.nn.Linear`, with a generator of their own."""
    random = generator("base initialisation", seed)
    tensors = {}
    for layer in layer_shapes(spec, facts):
        bound = layer.inputs**-0.5
        for part, shape in (("weight", layer.torch_shape), ("bias", (layer.outputs,))):
            drawn = torch.rand(shape, generator=random).mul_(2 * bound).sub_(bound)
            tensors[f"{layer.name}.{part}"] = drawn.to(device)
    return tensors


def train(spec: ModelSpec, how: BaseSpec, data: Split) -> BaseModel:
    """Train a base classifier on the images of `how.classes` (None: all classes) in `data`.

    Raises FloatingPointError when the loss stops being finite.
    """
    facts, device = data.images.facts, data.labels.device
    if how.classes is not None:
        data = data.where(data.of_classes(facts.positions("base.classes", how.classes)))
    tensors = {k: v.requires_grad_() for k, v in initial_weights(spec, facts, how.seed, device).items()}
    model = assemble(spec, facts, tensors)
    # The number of threads is fixed because the bits of narrow layers and small batches depend on it.
    threads = 2 if model.parameters >= MIN_WEIGHTS_FOR_TWO_THREADS else 1
    values = [tensor.detach() for tensor in tensors.values()]
    first, second = ([torch.zeros_like(value) for value in values] for _ in range(2))
    order = generator("base order", how.seed)
    count = len(data.labels)
    loss, number = torch.zeros(()), 0
    with logging_redirect_tqdm(), on_threads(threads):
        steps = tqdm(total=-(-count // how.batch_size) * how.epochs, disable=None, desc="base", unit="step")
        for _ in range(how.epochs):
            shuffled = torch.randperm(count, generator=order).to(device)
            for batch in torch.split(shuffled, how.batch_size):
                loss = functional.cross_entropy(plain_logits(model, data.images[batch]), data.labels[batch])
                grads = torch.autograd.grad(loss, list(tensors.values()))
                number += 1
                adam_step(values, list(grads), first, second, how.learning_rate, number)
                steps.update()
        steps.close()
    if not bool(loss.detach().isfinite()):
        raise FloatingPointError(f"the loss of the base became {loss.item()}; lower base.learning_rate")
    return assemble(spec, facts, {name: tensor.detach() for name, tensor in tensors.items()})


def plain_logits(model: BaseModel, images_NI: torch.Tensor) -> torch.Tensor:
    """Compute the logits [N, C] of the base, without adapters."""
    hidden = images_NI[None]
    for position, layer in enumerate(model.layers):
        rows = functional.linear(layer.shape.rows(hidden), layer.weight, layer.bias)
        if model.is_rectified(position):
            rows = functional.relu(rows, inplace=True)
        hidden = layer.shape.activations(rows)
    return hidden[0]


def plain_module(base: BaseModel) -> nn.Sequential:
    """Return the base as a module with the same layer names and a copy of its weights; its state dict is `tensors()`.

    The module takes normalised images [N, I], or any shape [N, ...] with as many values, and returns logits [N, C].
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(rows=nn.Flatten())
    for position, layer in enumerate(base.layers):
        shape, convolution = layer.shape, layer.shape.convolution
        if convolution is None:
            if position > 0 and base.layers[position - 1].shape.convolution is not None:
                modules["flat"] = nn.Flatten()
            modules[layer.name] = nn.Linear(shape.inputs, shape.outputs)
        else:
            if position == 0:
                size = (convolution.channels, convolution.height, convolution.width)
                modules["square"] = nn.Unflatten(1, size)
            kernel, padding = convolution.kernel, convolution.padding
            modules[layer.name] = nn.Conv2d(convolution.channels, shape.outputs, kernel, STRIDE, padding)
        if base.is_rectified(position):
            modules[f"relu{position + 1}"] = nn.ReLU()
    module = nn.Sequential(modules)
    module.load_state_dict(base.tensors())
    return module


def layer_table(model: BaseModel, adapter_parameters: Sequence[int]) -> list[dict[str, object]]:
    """Return one row per layer: name, weight shape, parameters of base and adapter, overhead in percent."""
    rows = []
    for layer, added in zip(model.layers, adapter_parameters, strict=True):
        own = layer.weight.numel() + layer.bias.numel()
        named = {"layer": layer.name, "shape": list(layer.shape.torch_shape), "base": own, "adapter": added}
        rows.append(named | {"overhead_percent": 100 * added / own})
    return rows
