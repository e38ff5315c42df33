"""One generator for each purpose, derived from what it is for and never from a position in a pack or sweep.

Jobs that differ only in rank, alpha or learning rate draw the same images in the same order (common random
numbers), so that differences between them are differences of the setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp.spec import digest

if TYPE_CHECKING:
    import torch


def generator(purpose: str, *parts: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `purpose` and `parts`: the same in any process, on any device."""
    import torch

    seed = int(digest([purpose, *parts])[:15], 16)
    return torch.Generator().manual_seed(seed)
