"""The shape of a classifier, layer by layer: a convolution is a linear layer over patches of the image.

Shapes: N images, I inputs and O outputs of a layer, L places of a convolution, C channels, S side of a square image.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_exp.config.fields import CLASSES
from lora_exp.config.spec import ModelSpec
from lora_exp.model.data import SIDE

if TYPE_CHECKING:
    import torch


STRIDE = 2


@dataclass(frozen=True)
class Convolution:
    """A square kernel over square images of `channels` and `side`, padded so that a stride of 2 halves the side."""

    channels: int
    side: int
    kernel: int

    @property
    def padding(self) -> int:
        """Zeros at each edge."""
        return self.kernel // 2

    @property
    def side_out(self) -> int:
        """Side of the output."""
        return (self.side - 1) // STRIDE + 1

    @property
    def places(self) -> int:
        """L: how many patches an image has, each of which gives one output a channel."""
        return self.side_out**2

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Images [P, N, C*S*S] as rows [P, N*L, C*k*k] (im2col): the convolution is then a plain product."""
        from torch.nn import functional

        jobs, count = images.shape[:2]
        square = images.reshape(jobs * count, self.channels, self.side, self.side)
        columns = functional.unfold(square, self.kernel, padding=self.padding, stride=STRIDE)
        # Of one image a job it would be a view, whose products take other kernels where the job is alone.
        return columns.transpose(1, 2).reshape(jobs, count * self.places, -1).contiguous()

    def image(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [P, N*L, O] as images [P, N, O*S*S], channel by channel as torch has them."""
        jobs, count, outputs = len(rows), rows.shape[1] // self.places, rows.shape[2]
        return rows.view(jobs, count, self.places, outputs).transpose(2, 3).reshape(jobs, count, outputs * self.places)


@dataclass(frozen=True)
class LayerShape:
    """One layer: its weight is a matrix [O, I]; that of a convolution is [O, C*k*k]."""

    name: str
    outputs: int
    inputs: int
    convolution: Convolution | None = None

    @property
    def places(self) -> int:
        """Rows of the layer's product that one image takes."""
        return 1 if self.convolution is None else self.convolution.places

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of the weight in a state dict of torch."""
        if self.convolution is None:
            return (self.outputs, self.inputs)
        kernel = self.convolution.kernel
        return (self.outputs, self.convolution.channels, kernel, kernel)

    def rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the layer's matrix is multiplied with: [P, N*places, I] of activations [P, N, features]."""
        return hidden if self.convolution is None else self.convolution.patches(hidden)

    def activations(self, rows: torch.Tensor) -> torch.Tensor:
        """Activations [P, N, features] of the layer's outputs [P, N*places, O]."""
        return rows if self.convolution is None else self.convolution.image(rows)


@functools.cache
def layer_shapes(spec: ModelSpec) -> tuple[LayerShape, ...]:
    """`conv1`, `conv2`, ..., then `linear1`, `linear2`, ..., from the image to the ten classes."""
    layers = []
    channels, side = 1, SIDE
    for number, outputs in enumerate(spec.channels, 1):
        convolution = Convolution(channels, side, spec.kernel)
        layers.append(LayerShape(f"conv{number}", outputs, channels * spec.kernel**2, convolution))
        channels, side = outputs, convolution.side_out
    inputs = channels * side**2
    for number, outputs in enumerate((*spec.hidden, CLASSES), 1):
        layers.append(LayerShape(f"linear{number}", outputs, inputs))
        inputs = outputs
    return tuple(layers)
