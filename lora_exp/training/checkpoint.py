"""The state of a job's training after some steps. Training that continues from it gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save


@dataclass(frozen=True)
class Checkpoint:
    """Trained values and Adam's two moments, per part; states of the dropout generators; losses [t] so far."""

    values: list[torch.Tensor]
    first: list[torch.Tensor]
    second: list[torch.Tensor]
    dropout: list[torch.Tensor]
    losses: torch.Tensor

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.losses)

    def encode(self) -> bytes:
        """Encode the checkpoint as safetensors."""
        lists = {"values": self.values, "first": self.first, "second": self.second, "dropout": self.dropout}
        tensors = {f"{name}.{at}": part.contiguous() for name, parts in lists.items() for at, part in enumerate(parts)}
        content: bytes = save(tensors | {"losses": self.losses})
        return content

    @staticmethod
    def decode(content: bytes) -> Checkpoint:
        """Decode what `encode` returned. Raises ValueError for anything else."""
        try:
            tensors = load(content)
            losses = tensors.pop("losses")
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"is not a checkpoint ({error})") from error

        def numbered(name: str) -> list[torch.Tensor]:
            count = sum(key.startswith(f"{name}.") for key in tensors)
            return [tensors[f"{name}.{at}"] for at in range(count)]

        return Checkpoint(numbered("values"), numbered("first"), numbered("second"), numbered("dropout"), losses)


def common_steps(checkpoints: Sequence[Checkpoint]) -> int:
    """Return the number of steps of all checkpoints, 0 without any. Raises ValueError when they differ."""
    steps = {checkpoint.steps for checkpoint in checkpoints} or {0}
    if len(steps) > 1:
        raise ValueError(f"checkpoints of a pack must be at the same step, are at {sorted(steps)}")
    return steps.pop()
