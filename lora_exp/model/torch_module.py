"""The base as an ordinary `torch.nn.Module`, for use with other libraries."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from lora_exp.model.architecture import STRIDE
from lora_exp.model.base import BaseModel, is_rectified
from lora_exp.model.data import SIDE

if TYPE_CHECKING:
    from torch import nn


def plain_module(base: BaseModel) -> nn.Sequential:
    """A module of the layers of `base`, under their names, with a copy of its weights; its state dict is `tensors()`.

    It takes normalised images [N, 784], or of any shape [N, ...] with as many values, and returns logits [N, 10].
    """
    from torch import nn

    modules: OrderedDict[str, nn.Module] = OrderedDict(rows=nn.Flatten())
    for position, layer in enumerate(base.layers):
        shape, convolution = layer.shape, layer.shape.convolution
        if convolution is None:
            if position > 0 and base.layers[position - 1].shape.convolution is not None:
                modules["flat"] = nn.Flatten()
            modules[layer.name] = nn.Linear(shape.inputs, shape.outputs)
        else:
            if position == 0:
                modules["square"] = nn.Unflatten(1, (convolution.channels, SIDE, SIDE))
            kernel, padding = convolution.kernel, convolution.padding
            modules[layer.name] = nn.Conv2d(convolution.channels, shape.outputs, kernel, STRIDE, padding)
        if is_rectified(base, position):
            modules[f"relu{position + 1}"] = nn.ReLU()
    module = nn.Sequential(modules)
    module.load_state_dict(base.tensors())
    return module
