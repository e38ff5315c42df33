"""Which adaptable layers a part of a module has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lora_exp.model.architecture import Layer, LayerShape, State, layer_of

ATTENTION = ("q", "k", "v", "out_proj")  # products of `nn.MultiheadAttention`


def is_plain(own: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a part computes what this kind of torch computes: no subclass with a way of its own to do it."""
    return isinstance(own, kind) and type(own).forward is kind.forward and not hasattr(own, "parametrizations")


def shapes_of(name: str, own: nn.Module, given: Any, made: Any, images: int) -> list[LayerShape]:
    """The layers of a part that was called once, with so many images, if it is one of those that are adapted."""
    weight, bias = f"{name}.weight", f"{name}.bias" if getattr(own, "bias", None) is not None else None
    if isinstance(own, nn.Linear) and is_plain(own, nn.Linear):
        rows = made.numel() // own.out_features // images
        return [LayerShape(name, (own.out_features, own.in_features), rows, weight, bias)]
    if isinstance(own, nn.Conv2d) and is_plain(own, nn.Conv2d) and own.groups == 1:
        return [LayerShape(name, tuple(own.weight.shape), made[0, 0].numel(), weight, bias)]
    if isinstance(own, nn.MultiheadAttention) and is_plain(own, nn.MultiheadAttention):
        tokens = [one.numel() // one.shape[-1] // images for one in given[:3]]
        return attention_shapes(name, own, tokens)
    return []


def attention_shapes(name: str, own: nn.MultiheadAttention, tokens: Sequence[int]) -> list[LayerShape]:
    """The products q, k, v and out_proj of an attention."""
    width, shapes = own.embed_dim, []
    bias = None if own.in_proj_bias is None else f"{name}.in_proj_bias"
    for number, (short, inputs) in enumerate(zip("qkv", (width, own.kdim, own.vdim), strict=True)):
        whole = f"{name}.in_proj_weight" if own._qkv_same_embed_dim else f"{name}.{short}_proj_weight"
        rows = (number * width, (number + 1) * width)
        shapes.append(LayerShape(f"{name}.{short}", (width, inputs), tokens[number], whole, bias, rows, True))
    out = f"{name}.out_proj"
    bias = None if own.out_proj.bias is None else f"{out}.bias"
    return [*shapes, LayerShape(out, (width, width), tokens[0], f"{out}.weight", bias, None, True)]


def frozen_layer(name: str, own: nn.Linear | nn.Conv2d, state: State) -> Layer:
    """A layer that is used several times in a pass, or never: it is not adapted."""
    bias = None if own.bias is None else f"{name}.bias"
    return layer_of(LayerShape(name, tuple(own.weight.shape), 1, f"{name}.weight", bias), state)
