"""Vision transformers as encoders of dense tasks: patches in, maps of features out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError


class ViT(nn.Module):
    """``(N, channels, H, W)`` images -> ``(N, width, H / patch, W / patch)``: the features of one block, or of several.

    Dosovitskiy et al., *An image is worth 16x16 words*, ICLR 2021: pre-norm blocks on patches and a class token, with
    learned positions, and no normalisation at the end. Images may have other sizes than ``size``, if patches divide them:
    the positions are then interpolated (bilinear). Weights begin as a truncated normal of standard deviation 0.02, biases at
    0.

    Args:
        size: the height and width of the images that the positions are for.
        patch: the side of a patch, in pixels.
        embedding: the features of a token.
        depth: the number of blocks.
        heads: of attention; a divisor of ``embedding``.
        channels: of the images.
        mlp: makes the MLP of the block with a number from 0; by default `MLP`, four times as wide as a token.
        levels: after which blocks, counted from 1, features are taken; the last by default. Those of several levels stand
            one after the other: ``width`` is ``embedding * len(levels)``.
        drop_path: how likely the last block's branches are left out of an example while training (Huang et al., *Deep
            networks with stochastic depth*, ECCV 2016); it rises from 0 at the first block. 0 by default.

    >>> encoder = ViT((32, 48), patch=8, embedding=12, depth=2, heads=3)
    >>> encoder(torch.randn(2, 3, 32, 48)).shape
    torch.Size([2, 12, 4, 6])
    """

    def __init__(
        self,
        size: tuple[int, int],
        patch: int,
        embedding: int,
        depth: int,
        heads: int,
        *,
        channels: int = 3,
        mlp: Callable[[int], nn.Module] | None = None,
        levels: Sequence[int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.levels = patch, tuple(levels or (depth,))
        if embedding % heads:
            raise InputError(f"vit: {heads} heads, expected a divisor of the embedding, {embedding}")
        if not all(1 <= level <= depth for level in self.levels) or list(self.levels) != sorted(set(self.levels)):
            raise InputError(f"vit: levels {list(self.levels)}, expected rising numbers from 1 to {depth}")
        self.width = embedding * len(self.levels)
        self.grid = self._grid(*size)
        self.patches = nn.Conv2d(channels, embedding, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, embedding))
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1] + 1, embedding))
        make = mlp or (lambda number: MLP(embedding, 4 * embedding))
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(embedding, heads, make(number), rate) for number, rate in enumerate(rates))
        for parameter in (self.token, self.positions, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, *context: Tensor) -> Tensor:
        """The features; ``context`` is handed to the MLPs, for those that read more than their tokens."""
        grid = self._grid(*images.shape[-2:])
        patches = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(images), -1, -1).to(patches.dtype), patches], 1) + self._positions(grid)
        found = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x, *context)
            if number in self.levels:
                found.append(x[:, 1:])
        return torch.cat(found, -1).mT.reshape(len(x), self.width, *grid)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch or width % self.patch or not height or not width:
            raise InputError(f"images of {height} x {width} pixels, expected multiples of {self.patch}, the side of a patch")
        return height // self.patch, width // self.patch

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.positions
        own = self.positions[:, 1:].mT.reshape(1, -1, *self.grid)
        resized = F.interpolate(own, grid, mode="bilinear", align_corners=False)
        return torch.cat([self.positions[:, :1], resized.flatten(2).mT], 1)


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x), *context)``, on tokens ``(N, tokens, width)``."""

    def __init__(self, width: int, heads: int, mlp: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp
        self.drop_path = drop_path

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        x = x + self._kept(self.attention(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x), *context))

    def _kept(self, branch: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return branch
        keep = 1 - self.drop_path
        return branch * (torch.rand(len(branch), 1, 1, device=branch.device) < keep).to(branch.dtype) / keep


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        output: Tensor = self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return output


class MLP(nn.Module):
    """Two linear layers with GELU between; it reads nothing but its tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        output: Tensor = self.output(F.gelu(self.hidden(x)))
        return output
