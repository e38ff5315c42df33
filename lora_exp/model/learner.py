"""A module whose own weights are being trained; see `architecture.Learner`."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

from lora_exp.errors import LoraExpError


class ModuleLearner:
    """Trains a module, or of it the parameters in `head` alone: then normalisations keep what they have counted."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        shaped: Callable[[torch.Tensor], torch.Tensor],
        head: Collection[str | None] | None,
    ) -> None:
        """`shaped` turns images [N, I] into those that the module takes; `name` stands for it in messages."""
        self._name, self._module, self._shaped = name, module.train(head is None), shaped
        self.parameters = {
            key: own.requires_grad_() for key, own in module.named_parameters() if head is None or key in head
        }

    def __call__(self, images_NI: torch.Tensor) -> torch.Tensor:
        """Compute logits [N, C]."""
        logits = self._module(self._shaped(images_NI))
        if not isinstance(logits, torch.Tensor):
            raise LoraExpError(
                f"model.name={self._name}: returns more than logits in training; take weights of your own with "
                "base.weights and base.epochs=0"
            )
        return logits

    def state(self) -> dict[str, torch.Tensor]:
        """All weights and buffers as they are now."""
        return {key: tensor.detach() for key, tensor in self._module.state_dict().items()}
