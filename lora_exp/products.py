"""Matrix products whose rows have the same bits whatever the other rows are, and however many there are."""

from __future__ import annotations

import torch

from lora_exp.numerics import LEAST_ROWS


def frozen_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """hidden [..., I] times weight' plus bias: [..., O], one matrix product over the rows of all jobs."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    outputs = hidden.new_empty(max(len(rows), LEAST_ROWS), len(weight))
    torch.addmm(bias, _enough(rows), weight.t(), out=outputs)
    return outputs[: len(rows)].view(*hidden.shape[:-1], -1)


def rowwise_product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows [..., O] times matrix [O, I]: the gradient [..., I] of what went into a frozen layer, for one."""
    flat = rows.reshape(-1, rows.shape[-1])
    return (_enough(flat) @ matrix)[: len(flat)].view(*rows.shape[:-1], -1)


def _enough(rows: torch.Tensor) -> torch.Tensor:
    """Few rows would take other kernels, whose bits differ: repeat the first until there are LEAST_ROWS."""
    missing = LEAST_ROWS - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, -1)]) if missing > 0 else rows
