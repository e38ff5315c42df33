"""The by-hand network: convolutions and linear layers with ReLU between them, without a bound on speed by autograd.

Its frozen first product is a constant of data and base, and its ReLU is part of each layer's function.

Shapes: P jobs, N images, I inputs and O outputs of a layer, L output positions of a convolution, C channels,
H, W height and width of an image, k side of a kernel.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from lora_exp.config.images import ImageFacts
from lora_exp.config.models import ModelSpec
from lora_exp.model.architecture import Apply, Constants, Cut, Layer, LayerShape, State, StateShape, layer_of
from lora_exp.numerics import frozen_product, generator

STRIDE = 2


@dataclass(frozen=True)
class Convolution:
    """A square kernel over images [`channels`, `height`, `width`], padded so that a stride of 2 halves both."""

    channels: int
    height: int
    width: int
    kernel: int

    @property
    def padding(self) -> int:
        """Zeros at each edge."""
        return self.kernel // 2

    @property
    def size_out(self) -> tuple[int, int]:
        """Height and width of the output."""
        return (self.height - 1) // STRIDE + 1, (self.width - 1) // STRIDE + 1

    @property
    def positions(self) -> int:
        """L: output positions of an image, which is also its number of patches."""
        return self.size_out[0] * self.size_out[1]

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images [P, N, C*H*W] into rows [P, N*L, C*k*k] (im2col), so that the convolution is a matrix product."""
        jobs, count = images.shape[:2]
        whole = images.reshape(jobs * count, self.channels, self.height, self.width)
        columns = functional.unfold(whole, self.kernel, padding=self.padding, stride=STRIDE)
        # With one image a job this would be a view, and products of a view use other kernels in a pack of one.
        return columns.transpose(1, 2).reshape(jobs, count * self.positions, -1).contiguous()

    def image(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn rows [P, N*L, O] into images [P, N, O*L], channel by channel as in torch."""
        jobs, outputs, positions = len(rows), rows.shape[2], self.positions
        count = rows.shape[1] // positions
        return rows.view(jobs, count, positions, outputs).transpose(2, 3).reshape(jobs, count, outputs * positions)


class Stack:
    """The network of a `ModelSpec` of this kind: `conv1`, `conv2`, ..., then `linear1`, `linear2`, ..."""

    def __init__(self, spec: ModelSpec, facts: ImageFacts) -> None:
        self.rectify_logits = spec.rectify_logits
        layers: list[LayerShape] = []
        self.convolutions: list[Convolution | None] = []
        channels, height, width = facts.shape
        for number, outputs in enumerate(spec.channels, 1):
            convolution = Convolution(channels, height, width, spec.kernel)
            kernel = (outputs, channels, spec.kernel, spec.kernel)
            layers.append(_layer(f"conv{number}", kernel, convolution.positions))
            self.convolutions.append(convolution)
            channels, (height, width) = outputs, convolution.size_out
        inputs = channels * height * width
        for number, outputs in enumerate((*spec.hidden, len(facts.classes)), 1):
            layers.append(_layer(f"linear{number}", (outputs, inputs), 1))
            self.convolutions.append(None)
            inputs = outputs
        self.layers = tuple(layers)
        self.state: dict[str, StateShape] = {}
        for layer in layers:
            self.state[layer.weight] = StateShape(layer.torch_shape, torch.float32)
            self.state[f"{layer.name}.bias"] = StateShape((layer.outputs,), torch.float32)
        self.activations = 0  # all are rows of a layer

    def is_rectified(self, at: int) -> bool:
        """Whether a ReLU follows layer `at`: every layer but the last, and the last if `rectify_logits`."""
        return at < len(self.layers) - 1 or self.rectify_logits

    def constant(self, first: int) -> int:
        """The first layer, also where it is adapted; none where it is a convolution."""
        return 1 if self.convolutions[0] is None else 0

    def rows(self, at: int, hidden: torch.Tensor) -> torch.Tensor:
        """Turn activations [P, N, features] into the rows [P, N*L, I] of layer `at`."""
        convolution = self.convolutions[at]
        return hidden if convolution is None else convolution.patches(hidden)

    def activated(self, at: int, rows: torch.Tensor) -> torch.Tensor:
        """Turn outputs [P, N*L, O] of layer `at` into activations [P, N, features]."""
        convolution = self.convolutions[at]
        return rows if convolution is None else convolution.image(rows)

    def initial(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw all weights and biases uniformly in +-1/sqrt(I), torch's default, from a generator of their own."""
        random = generator("base initialisation", seed)
        tensors = {}
        for layer in self.layers:
            bound = layer.inputs**-0.5
            for name in (layer.weight, f"{layer.name}.bias"):
                tensors[name] = torch.rand(self.state[name].shape, generator=random).mul_(2 * bound).sub_(bound)
        return tensors

    def forward(self, state: State, layers: Sequence[Layer]) -> StackForward:
        """The passes with these weights."""
        return StackForward(self, layers)

    def learner(self, state: State, only_head: bool) -> StackLearner:
        """What trains a copy of these weights."""
        return StackLearner(self, state, only_head)

    def plain_logits(self, layers: Sequence[Layer], images_NI: torch.Tensor) -> torch.Tensor:
        """Compute the logits [N, C] with torch's own products, under its autograd."""
        hidden = images_NI[None]
        for at, layer in enumerate(layers):
            rows = functional.linear(self.rows(at, hidden), layer.weight, layer.bias)
            if self.is_rectified(at):
                rows = functional.relu(rows, inplace=True)
            hidden = self.activated(at, rows)
        return hidden[0]

    def module(self, state: State) -> nn.Sequential:
        """A sequence of torch's layers; takes normalised images [N, I], or [N, ...] with as many values."""
        modules: OrderedDict[str, nn.Module] = OrderedDict(rows=nn.Flatten())
        for at, (layer, convolution) in enumerate(zip(self.layers, self.convolutions, strict=True)):
            if convolution is None:
                if at > 0 and self.convolutions[at - 1] is not None:
                    modules["flat"] = nn.Flatten()
                modules[layer.name] = nn.Linear(layer.inputs, layer.outputs)
            else:
                if at == 0:
                    size = (convolution.channels, convolution.height, convolution.width)
                    modules["square"] = nn.Unflatten(1, size)
                kernel, padding = convolution.kernel, convolution.padding
                modules[layer.name] = nn.Conv2d(convolution.channels, layer.outputs, kernel, STRIDE, padding)
            if self.is_rectified(at):
                modules[f"relu{at + 1}"] = nn.ReLU()
        module = nn.Sequential(modules)
        module.load_state_dict(dict(state))
        return module


@dataclass(frozen=True)
class StackForward:
    """The passes of a stack with frozen weights; see `architecture.Forward`."""

    network: Stack
    layers: Sequence[Layer]

    def __call__(self, images_PBI: torch.Tensor, apply: Apply, constants: Constants | None = None) -> torch.Tensor:
        """`constants` hold the frozen product of the first layer, whose memory is overwritten."""
        hidden = images_PBI
        for at, layer in enumerate(self.layers):
            frozen = constants.tensors[0] if constants is not None and at == 0 else None
            rows = self.network.rows(at, hidden)
            hidden = self.network.activated(at, apply(at, layer, rows, self.network.is_rectified(at), frozen))
        return hidden

    def cut(self, adapted: Sequence[bool]) -> Cut | None:
        """The first layer's product, whichever layers are adapted.

        None for a convolution: on one-channel images its product is cheaper than the memory to store it.
        """
        first = self.layers[0].shape
        return Cut(((first.name, (first.outputs,)),)) if self.network.convolutions[0] is None else None

    def constants(self, images_NI: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, ...]:
        """The frozen product of the first layer [N, O]."""
        return (frozen_product(images_NI, self.layers[0].weight, self.layers[0].bias),)

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """The logits [N, C] without adapters."""
        return self.network.plain_logits(self.layers, images_NI)


class StackLearner:
    """A stack whose weights are being trained; see `architecture.Learner`."""

    def __init__(self, network: Stack, state: State, only_head: bool) -> None:
        self._network, self._state = network, {name: tensor.clone() for name, tensor in state.items()}
        head = network.layers[-1].name
        trained = [name for name in self._state if not only_head or name.startswith(f"{head}.")]
        self.parameters = {name: self._state[name].requires_grad_() for name in trained}
        self._layers = [layer_of(layer, self._state) for layer in network.layers]

    def __call__(self, images_NI: torch.Tensor) -> torch.Tensor:
        return self._network.plain_logits(self._layers, images_NI)

    def state(self) -> dict[str, torch.Tensor]:
        """All weights as they are now."""
        return {name: tensor.detach() for name, tensor in self._state.items()}


def _layer(name: str, torch_shape: tuple[int, ...], positions: int) -> LayerShape:
    return LayerShape(name, torch_shape, positions, f"{name}.weight", f"{name}.bias")
