"""A plain Vision Transformer: every product that LoRA papers adapt is a linear layer of its own.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1: patches, a class token, learned positions,
pre-norm blocks. The file needs torch alone: exported adapters and registered models carry a copy of it.

Shapes: N images, T tokens, W width, C channels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

MLP_RATIO = 4  # width of the hidden layer of a block's MLP, by that of the block


class Block(nn.Module):
    """Attention and an MLP, each after a LayerNorm and beside a skip connection (equations 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.projection = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        self.gelu = nn.GELU()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute tokens [N, T, W] from tokens [N, T, W]."""
        normed = self.norm1(tokens)
        # [N, heads, T, W / heads]
        split = (*tokens.shape[:2], self.heads, -1)
        q, k, v = (own(normed).view(split).transpose(1, 2) for own in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.projection(mixed)
        changed: torch.Tensor = tokens + self.down(self.gelu(self.up(self.norm2(tokens))))
        return changed


class VisionTransformer(nn.Module):
    """Images [N, C, H, W] to logits; images are padded at the right and below to whole patches."""

    def __init__(self, *, shape: tuple[int, int, int], classes: int, patch: int, width: int, blocks: int, heads: int):
        """`shape` is that of the images, [C, H, W]; `patch` the side of a patch in pixels."""
        super().__init__()
        channels, high, wide = shape
        self.padding = (0, -wide % patch, 0, -high % patch)
        tokens = 1 + -(-high // patch) * -(-wide // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits [N, classes] of the class token (equation 4)."""
        patches = self.patches(functional.pad(images, self.padding)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        logits: torch.Tensor = self.head(self.norm(tokens[:, 0]))
        return logits
