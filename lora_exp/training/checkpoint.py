"""Where a job's training stands after some steps: enough to go on as if it had never paused, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save


@dataclass(frozen=True)
class Checkpoint:
    """Trained values and Adam's two moments, part by part; the states of the generators of dropout; the losses [t]."""

    values: list[torch.Tensor]
    first: list[torch.Tensor]
    second: list[torch.Tensor]
    dropout: list[torch.Tensor]
    losses: torch.Tensor

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return len(self.losses)

    def encoded(self) -> bytes:
        """The checkpoint as safetensors."""
        lists = {"values": self.values, "first": self.first, "second": self.second, "dropout": self.dropout}
        tensors = {f"{name}.{at}": part.contiguous() for name, parts in lists.items() for at, part in enumerate(parts)}
        content: bytes = save(tensors | {"losses": self.losses})
        return content


def decoded(content: bytes) -> Checkpoint:
    """The checkpoint that `encoded` wrote. Raises ValueError when it is none."""
    try:
        tensors = load(content)
        losses = tensors.pop("losses")
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"holds no checkpoint ({error})") from error

    def numbered(name: str) -> list[torch.Tensor]:
        own = [key for key in tensors if key.startswith(f"{name}.")]
        return [tensors[f"{name}.{at}"] for at in range(len(own))]

    return Checkpoint(numbered("values"), numbered("first"), numbered("second"), numbered("dropout"), losses)


def common_steps(checkpoints: Sequence[Checkpoint]) -> int:
    """The steps that all have made; 0 without any. Raises ValueError when they differ."""
    steps = {checkpoint.steps for checkpoint in checkpoints} or {0}
    if len(steps) > 1:
        raise ValueError(f"the jobs of a pack stand at different steps: {sorted(steps)}")
    return steps.pop()
