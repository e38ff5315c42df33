"""What takes the place of torch's layers in a module: the same function, computed row by row for a whole pack.

The products of linear layers, convolutions and attention go to the callback of the pass (`architecture.Apply`).
Activations whose last numbers torch computes with another routine are padded to whole vectors. All else stays torch's.

Shapes: P jobs, B images of a batch, N = P*B images, ordered job by job, T tokens, C channels, L output positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lora_exp.model.architecture import Apply, Layer
from lora_exp.numerics import frozen_product

VECTOR = 64  # numbers: a multiple of the vectors of all processors
# Their vector routines have other bits than the routine for the numbers that are left at the end of a tensor.
UNEVEN = (
    *(nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink),
)


@dataclass
class Pass:
    """One pass of a module: for how many jobs, what computes its layers, and what of it is known already.

    `known` are outputs of parts, by name. Where `trace` is a list, name and output of every part that ends are added to
    it; with `only`, those of these parts, and the pass ends when it has them.
    """

    jobs: int
    apply: Apply
    known: Mapping[str, torch.Tensor] = field(default_factory=dict)
    trace: list[tuple[str, Any]] | None = None
    only: frozenset[str] | None = None


class Ended(Exception):
    """A pass has all that was wanted of it."""


# Packs may train in threads, so each thread has a pass of its own.
RUNNING: ContextVar[Pass] = ContextVar("RUNNING")


def frozen_only(
    at: int | None, layer: Layer, rows: torch.Tensor, rectify: bool = False, frozen: torch.Tensor | None = None
) -> torch.Tensor:
    """The callback of a pass without adapters and gradients."""
    return frozen_product(rows, layer.weight, layer.bias)


def part(name: str, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """The output of a part of a module: what is known of it, or what `forward` computes."""
    run = RUNNING.get()
    if name in run.known:
        return run.known[name]
    output = forward(*inputs, **options)
    if run.trace is not None and (run.only is None or name in run.only):
        # A copy, since what follows may change the output in place.
        run.trace.append((name, output.clone() if isinstance(output, torch.Tensor) else output))
        if run.only is not None and len(run.trace) == len(run.only):
            raise Ended
    return output


def linear(at: int | None, layer: Layer, input: torch.Tensor) -> torch.Tensor:
    """`nn.Linear`: input [N, ..., I] to [N, ..., O]."""
    run = RUNNING.get()
    rows = input.reshape(run.jobs, -1, input.shape[-1]).contiguous()
    return run.apply(at, layer, rows).view(*input.shape[:-1], -1)


def convolution(at: int | None, layer: Layer, input: torch.Tensor, *, own: nn.Conv2d) -> torch.Tensor:
    """`nn.Conv2d` without groups: input [N, C, H, W] to [N, O, H', W'], as products of patches."""
    run = RUNNING.get()
    padded, padding = _padded(own, InOrder.apply(input))
    rows = _patches(padded, own, padding)
    size = _size_out(padded, own, padding)
    outputs = run.apply(at, layer, rows.view(run.jobs, -1, rows.shape[2]))
    made: torch.Tensor = InOrder.apply(outputs.view(*rows.shape[:2], -1).transpose(1, 2))
    return made.view(len(input), -1, *size)


class InOrder(torch.autograd.Function):
    """The identity, whose value and gradient lie in memory as torch lays out images: channel by channel.

    Other layouts take other routines, with other bits for one image than for many.
    """

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        """Lay out images [N, C, H, W]."""
        return images.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Lay out their gradient."""
        return grad.contiguous()


def grouped_convolution(own: nn.Conv2d, input: torch.Tensor) -> torch.Tensor:
    """`nn.Conv2d` with groups, which stays frozen: a sum over the kernel of products number by number.

    A multiplication and an addition have the same bits in a vector and alone, which no product of few columns has.
    """
    padded, padding = _padded(own, InOrder.apply(input))
    height, width = _size_out(padded, own, padding)
    padded = functional.pad(padded, (padding[1], padding[1], padding[0], padding[0]))
    groups, inside = own.groups, own.in_channels // own.groups
    # [N, groups, 1, C / groups, H, W] times [groups, O / groups, C / groups, k, k]
    parts = padded.view(len(input), groups, 1, inside, *padded.shape[2:])
    weight = own.weight.view(groups, -1, inside, *own.weight.shape[2:])
    (down, right), (by_row, by_column) = own.stride, own.dilation
    total = None if own.bias is None else own.bias.view(groups, -1, 1, 1)
    for channel in range(inside):
        for row in range(weight.shape[3]):
            for column in range(weight.shape[4]):
                top, left = row * by_row, column * by_column
                rows = slice(top, top + down * (height - 1) + 1, down)
                columns = slice(left, left + right * (width - 1) + 1, right)
                term = parts[..., channel, rows, columns] * weight[:, :, channel, row, column][..., None, None]
                total = term if total is None else total + term
    assert total is not None, "a kernel has at least one number"
    return total.reshape(len(input), own.out_channels, height, width)


def attention(
    ats: tuple[int | None, ...],
    layers: tuple[Layer, ...],
    own: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, None]:
    """`nn.MultiheadAttention`, whose four products are `layers`; it returns no weights."""
    inputs = (query, key, value) if own.batch_first else (one.transpose(0, 1) for one in (query, key, value))
    # [N, heads, T, width / heads]
    q, k, v = (
        linear(at, layer, one).view(*one.shape[:2], own.num_heads, -1).transpose(1, 2)
        for at, layer, one in zip(ats, layers, inputs, strict=False)
    )
    mask = functional._canonical_mask(attn_mask, "attn_mask", None, "", q.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(len(q), own.num_heads, *mask.shape[1:])
    if key_padding_mask is not None:
        padding = functional._canonical_mask(key_padding_mask, "key_padding_mask", None, "", q.dtype)
        assert padding is not None
        mask = padding[:, None, None] if mask is None else mask + padding[:, None, None]
    is_causal = is_causal and mask is None
    mixed = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal).transpose(1, 2).flatten(2)
    outputs = linear(ats[3], layers[3], mixed)
    return outputs if own.batch_first else outputs.transpose(0, 1), None


def whole_vectors(forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """A function of single numbers, computed on whole vectors."""
    flat = inputs.reshape(-1).contiguous()
    missing = -len(flat) % VECTOR
    return forward(functional.pad(flat, (0, missing)))[: len(flat)].view(inputs.shape)


def swap_activations(module: nn.Module) -> None:
    """Let the activations of a module compute on whole vectors."""
    for own in module.modules():
        if isinstance(own, UNEVEN):
            own.__dict__["forward"] = functools.partial(whole_vectors, own.forward)


def _padded(own: nn.Conv2d, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Images with the padding that `unfold` does not know, and the padding that is left."""
    if own.padding_mode == "zeros" and not isinstance(own.padding, str):
        return images, (own.padding[0], own.padding[1])
    mode = "constant" if own.padding_mode == "zeros" else own.padding_mode
    return functional.pad(images, own._reversed_padding_repeated_twice, mode=mode), (0, 0)


def _size_out(images: torch.Tensor, own: nn.Conv2d, padding: tuple[int, int]) -> tuple[int, int]:
    """H' and W'."""
    inside = (images.shape[2 + at] + 2 * padding[at] - own.dilation[at] * (own.kernel_size[at] - 1) for at in (0, 1))
    height, width = ((side - 1) // step + 1 for side, step in zip(inside, own.stride, strict=True))
    return height, width


def _patches(images: torch.Tensor, own: nn.Conv2d, padding: tuple[int, int]) -> torch.Tensor:
    """Rows [N, L, C*k*k] of images [N, C, H, W] (im2col)."""
    if own.kernel_size == (1, 1) and padding == (0, 0):
        down, right = own.stride
        return images[:, :, ::down, ::right].flatten(2).transpose(1, 2).contiguous()
    columns = functional.unfold(images, own.kernel_size, own.dilation, padding, own.stride)
    return columns.transpose(1, 2).contiguous()
