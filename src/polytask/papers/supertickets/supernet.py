"""The multi-branch supernet: high-resolution branches of blocks whose hidden channels are searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = "*.depthwise.1"
"""The batch norms whose factors decide on atoms, as a pattern of their names."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a supernet; the paper's by default.

    Args:
        inputs: the images' channels.
        stem: the channels of 3x3 convolutions of stride 2, one after the other.
        stages: of each stage the numbers of blocks and the channels of its branches, the highest resolution first; a stage
            has as many branches as the one before it, or one more.
        kernels: of the depthwise convolutions, side by side in each block.
        expansion: hidden channels of each kernel over the block's inputs.
        momentum, eps: of the batch norms.
    """

    inputs: int = 3
    stem: Sequence[int] = (24, 24)
    stages: Sequence[tuple[Sequence[int], Sequence[int]]] = (
        ((1,), (24,)),
        ((2, 2), (18, 36)),
        ((2, 2, 3), (18, 36, 72)),
        ((2, 2, 3, 4), (18, 36, 72, 144)),
        ((2, 2, 3, 4), (18, 36, 72, 144)),
    )
    kernels: Sequence[int] = (3, 5, 7)
    expansion: float = 4
    momentum: float = 0.01
    eps: float = 1e-3

    @property
    def channels(self) -> Sequence[int]:
        """Of the maps that the branches give."""
        return self.stages[-1][1]


def convolution(
    sizes: Architecture, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without a bias, a batch norm, ReLU."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after, sizes.eps, sizes.momentum), nn.ReLU())


class Branch(nn.Module):
    """Atoms of one kernel size: a 1x1 convolution, a depthwise one, and a 1x1 one, which has no norm of its own."""

    def __init__(self, sizes: Architecture, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = round(sizes.expansion * before)
        self.expand = convolution(sizes, before, hidden, 1)
        self.depthwise = convolution(sizes, hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out


class Block(nn.Module):
    """``(N, before, H, W)`` -> ``(N, after, H / stride, W / stride)``: branches, summed before one norm, and a short cut.

    The short cut is the identity, or where sizes differ a 1x1 convolution with as many groups as divide both channels.
    """

    def __init__(self, sizes: Architecture, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(sizes, before, after, kernel, stride) for kernel in sizes.kernels)
        self.norm = nn.BatchNorm2d(after, sizes.eps, sizes.momentum)
        same = stride == 1 and before == after
        groups = math.gcd(before, after)
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        out: Tensor = self.shortcut(x) + self.norm(sum(others, first))
        return out


class Fusion(nn.Module):
    """Each map becomes the sum of what comes from itself and its neighbours; a further one starts from the last of them."""

    def __init__(self, sizes: Architecture, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.ways = nn.ModuleDict(
            {
                f"{j}to{i}": Block(sizes, before[j], after[i], stride=2 if j < i else 1)
                for i in range(len(before))
                for j in range(max(i - 1, 0), min(i + 2, len(before)))
            }
        )
        self.further = Block(sizes, after[-2], after[-1], stride=2) if len(after) > len(before) else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fused = []
        for i in range(len(maps)):
            arriving = [self._moved(j, i, maps[j]) for j in (i - 1, i, i + 1) if f"{j}to{i}" in self.ways]
            first, *others = arriving
            fused.append(sum((_resized(other, first) for other in others), first).relu())
        return fused if self.further is None else [*fused, self.further(fused[-1])]

    def _moved(self, j: int, i: int, x: Tensor) -> Tensor:
        x = self.ways[f"{j}to{i}"](x)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if j > i else x


class Encoder(nn.Module):
    """``(N, inputs, H, W)`` images -> the branches' maps, the highest resolution first."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        stem = [sizes.inputs, *sizes.stem]
        self.stem = nn.Sequential(*(convolution(sizes, a, b, 3, stride=2) for a, b in pairwise(stem)))
        channels = [(stem[-1],), *(channels for _, channels in sizes.stages)]
        self.fusions = nn.ModuleList(Fusion(sizes, a, b) for a, b in pairwise(channels))
        self.parallels = nn.ModuleList(
            nn.ModuleList(nn.Sequential(*(Block(sizes, c, c) for _ in range(n))) for n, c in zip(*stage, strict=True))
            for stage in sizes.stages
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for fusion, parallel in zip(self.fusions, self.parallels, strict=True):
            assert isinstance(parallel, nn.ModuleList)
            maps = [blocks(x) for blocks, x in zip(parallel, fusion(maps), strict=True)]
        return maps


class Classifier(nn.Module):
    """Maps -> ``(N, classes)``: blocks raise the channels, blocks of stride 2 add each map to the next; pooled, and linear.

    Args:
        raised: the channels of each map that the first blocks give; without them maps stay as they are.
        last: the channels that are pooled.
    """

    def __init__(
        self,
        sizes: Architecture,
        classes: int = 1000,
        raised: Sequence[int] | None = (36, 72, 144, 320),
        last: int = 1600,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        pairs = [] if raised is None else list(zip(sizes.channels, raised, strict=True))
        channels = sizes.channels if raised is None else raised
        self.up = nn.ModuleList(Block(sizes, a, b) for a, b in pairs)
        self.down = nn.ModuleList(Block(sizes, a, b, stride=2) for a, b in pairwise(channels))
        self.last = convolution(sizes, channels[-1], last, 1)
        self.dropout, self.logits = nn.Dropout(dropout), nn.Linear(last, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = (block(x) for block, x in zip(self.up, maps, strict=True)) if len(self.up) else maps
        for down, other in zip(self.down, others, strict=True):
            first = other + down(first)
        out: Tensor = self.logits(self.dropout(self.last(first).mean((2, 3))))
        return out


class Dense(nn.Module):
    """Maps -> ``(N, classes, H, W)`` at the highest resolution: resized, concatenated, a block, and a 1x1 convolution.

    For segmentation, and for keypoints, whose classes are heat-maps.
    """

    def __init__(self, sizes: Architecture, classes: int, last: int = 90) -> None:
        super().__init__()
        self.transform = Block(sizes, sum(sizes.channels), last)
        self.logits = nn.Conv2d(last, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.logits(self.transform(torch.cat([_resized(x, maps[0]) for x in maps], 1)))
        return out


class HighResolutionNet(nn.Sequential):
    """An encoder and a head, with the initial weights of MnasNet.

    The authors' code has a further batch norm for each depthwise convolution, for distillation alone; here they are left
    out, and so are HR-NAS's transformers, which its blocks are built without.
    """

    def __init__(self, sizes: Architecture, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(sizes), head
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0, 0].numel() * (1 if module.groups == module.in_channels else module.out_channels)
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan))
            elif isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -1 / math.sqrt(len(module.weight)), 1 / math.sqrt(len(module.weight)))
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def imagenet(classes: int = 1000) -> HighResolutionNet:
    """The paper's supernet for classification."""
    return HighResolutionNet(Architecture(), Classifier(Architecture(), classes))


def segmentation(classes: int) -> HighResolutionNet:
    """The paper's supernet for maps: 19 classes for Cityscapes, 150 for ADE20K, 17 heat-maps for COCO's keypoints."""
    return HighResolutionNet(Architecture(), Dense(Architecture(), classes))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
