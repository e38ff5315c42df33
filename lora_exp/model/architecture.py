"""The shape of a classifier, layer by layer. A convolution is a linear layer over patches of the image.

Shapes: P jobs, N images, I inputs and O outputs of a layer, L output positions of a convolution, C channels,
H, W height and width of an image, k side of a kernel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_exp.config.images import ImageFacts
from lora_exp.config.spec import ModelSpec

if TYPE_CHECKING:
    import torch


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
        from torch.nn import functional

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


@dataclass(frozen=True)
class LayerShape:
    """One layer. Its weight is a matrix [O, I]; that of a convolution is [O, C*k*k]."""

    name: str
    outputs: int
    inputs: int
    convolution: Convolution | None = None

    @property
    def positions(self) -> int:
        """Rows of the layer's matrix product for one image."""
        return 1 if self.convolution is None else self.convolution.positions

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of the weight in a state dict of torch."""
        if self.convolution is None:
            return (self.outputs, self.inputs)
        kernel = self.convolution.kernel
        return (self.outputs, self.convolution.channels, kernel, kernel)

    def rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn activations [P, N, features] into the rows [P, N*L, I] of the layer's matrix product."""
        return hidden if self.convolution is None else self.convolution.patches(hidden)

    def activations(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn the layer's outputs [P, N*L, O] into activations [P, N, features]."""
        return rows if self.convolution is None else self.convolution.image(rows)


@functools.cache
def layer_shapes(spec: ModelSpec, facts: ImageFacts) -> tuple[LayerShape, ...]:
    """List the layers from the image to the classes: `conv1`, `conv2`, ..., then `linear1`, `linear2`, ..."""
    layers = []
    channels, height, width = facts.shape
    for number, outputs in enumerate(spec.channels, 1):
        convolution = Convolution(channels, height, width, spec.kernel)
        layers.append(LayerShape(f"conv{number}", outputs, channels * spec.kernel**2, convolution))
        channels, (height, width) = outputs, convolution.size_out
    inputs = channels * height * width
    for number, outputs in enumerate((*spec.hidden, len(facts.classes)), 1):
        layers.append(LayerShape(f"linear{number}", outputs, inputs))
        inputs = outputs
    return tuple(layers)
