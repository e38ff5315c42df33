"""What a network is: a function that takes images and a callback for its adaptable layers.

The callback computes the rows of one layer for all jobs of a pack. A network knows nothing of adapters, and adapters
know nothing of the architecture. `stack.py` and `module.py` hold the two kinds of networks.

Shapes: P jobs, N images, B images of a batch, I inputs and O outputs of a layer, L rows of a layer's matrix product for
one image (tokens, or output positions of a convolution), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]  # a state dict


@dataclass(frozen=True)
class LayerShape:
    """One layer whose product is a matrix product of rows: linear, or a convolution over patches of its input.

    `weight` and `bias` name tensors of the state dict; with `rows` the layer has only those rows of them, as the three
    products of `nn.MultiheadAttention`, which are stored as one.
    """

    name: str
    torch_shape: tuple[int, ...]  # [O, I], or [O, C, k, k] of a convolution
    positions: int = 1  # L
    weight: str = ""
    bias: str | None = ""
    rows: tuple[int, int] | None = None
    in_attention: bool = False  # of `nn.MultiheadAttention`

    @property
    def outputs(self) -> int:
        """O."""
        return self.torch_shape[0]

    @property
    def inputs(self) -> int:
        """I; C*k*k of a convolution."""
        return math.prod(self.torch_shape[1:])

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias that can be trained."""
        return self.bias is not None


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its shape, weight as a matrix [O, I] and bias [O], zeros where the layer has none; float32."""

    shape: LayerShape
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def name(self) -> str:
        """`linear1`, `blocks.0.q`, ..."""
        return self.shape.name


def layer_of(shape: LayerShape, state: State) -> Layer:
    """The layer of a state dict, as views of its tensors."""

    def own(name: str) -> torch.Tensor:
        is_part = shape.rows is not None and len(state[name]) > shape.outputs
        return state[name][slice(*shape.rows or ())] if is_part else state[name]

    weight = own(shape.weight).flatten(1)
    return Layer(shape, weight, weight.new_zeros(shape.outputs) if shape.bias is None else own(shape.bias))


class Apply(Protocol):
    """Computes the outputs [P, B*L, O] of a layer from rows [P, B*L, I], ordered job by job.

    `at` is the number of the layer among those to adapt; None for a layer that stays frozen. With `rectify` a ReLU
    follows. `frozen` is the frozen product, if known; its memory is overwritten.
    """

    def __call__(
        self,
        at: int | None,
        layer: Layer,
        rows: torch.Tensor,
        rectify: bool = False,
        frozen: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Cut:
    """Where the part of a network ends that no adapter of some packs changes.

    `kept` are the outputs, by name, that the rest needs, each [N, ...], `dropped` those that only other frozen parts
    need; both with their shapes for one image.
    """

    kept: tuple[tuple[str, tuple[int, ...]], ...]
    dropped: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def bytes(self) -> int:
        """Memory of what is kept of one image."""
        return 4 * sum(math.prod(shape) for _, shape in self.kept)


@dataclass(frozen=True)
class Constants:
    """What the frozen part of a network computes of N images: for each kept output of the cut a tensor [N, ...]."""

    cut: Cut
    tensors: tuple[torch.Tensor, ...]

    def of(self, at: torch.Tensor) -> Constants:
        """Those of each job's own images: an index [P, B] gives tensors [P, B, ...]."""
        return Constants(self.cut, tuple(tensor[at] for tensor in self.tensors))

    def shared(self, at: slice, jobs: int) -> Constants:
        """Those of the same images for every job: [P, B, ...], in memory of their own."""
        return Constants(self.cut, tuple(t[at][None].repeat(jobs, *[1] * t.dim()) for t in self.tensors))


class Forward(Protocol):
    """The passes of a network with certain weights, which stay frozen."""

    def __call__(self, images_PBI: torch.Tensor, apply: Apply, constants: Constants | None = None) -> torch.Tensor:
        """Compute logits [P, B, C] of normalised images [P, B, I]."""
        ...

    def cut(self, adapted: Sequence[bool]) -> Cut | None:
        """Where the frozen part ends if only these layers are adapted; None where nothing is worth keeping."""
        ...

    def constants(self, images_NI: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, ...]:
        """Compute what is kept of some images."""
        ...

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """Compute the logits [N, C] of the network alone."""
        ...


class Learner(Protocol):
    """A network whose own weights are being trained; calling it gives logits [N, C] of images [N, I]."""

    parameters: dict[str, torch.Tensor]  # leaves of autograd

    def __call__(self, images_NI: torch.Tensor) -> torch.Tensor: ...

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict, with the values of now."""
        ...


@dataclass(frozen=True)
class StateShape:
    """The form of a tensor of a state dict; one that is no parameter is a buffer, such as a BatchNorm's mean."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_parameter: bool = True


class Network(Protocol):
    """An architecture: its adaptable layers in the order of their use, and how images pass through them."""

    layers: tuple[LayerShape, ...]
    state: dict[str, StateShape]  # what its state dict holds, by name
    activations: int  # numbers that a pass computes between its layers for one image

    def constant(self, first: int) -> int:
        """How many layers, from the start, have a frozen product that is computed once for all jobs.

        `first` is the number of the first layer that is adapted.
        """
        ...

    def initial(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw a state dict on the CPU."""
        ...

    def forward(self, state: State, layers: Sequence[Layer]) -> Forward:
        """The passes with these weights, of which `layers` are views."""
        ...

    def learner(self, state: State, only_head: bool) -> Learner:
        """What trains a copy of these weights, all of them or those of the last layer."""
        ...

    def module(self, state: State) -> nn.Module:
        """An ordinary module with the same names, and a copy of these weights."""
        ...
