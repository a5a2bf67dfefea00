"""Networks on images: Impala's encoder, and stacks of small random ones that draw the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each convolution: Mnih et al., *Human-level control*, Nature 2015."""

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def same(x: Tensor, kernel: int, stride: int = 1, value: float = 0.0) -> Tensor:
    """``x`` ``(N, C, H, W)`` padded so that a window leaves ``ceil(H / stride)`` rows, more at the end than at the start."""
    sides: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value)


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``, convolutions 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x.relu()).relu())
        return out


class Stack(nn.Module):
    """A convolution, the maximum over 3x3 at every second place, two residual blocks: ``(N, C, H, W)`` to half the size."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv(before, channels)
        self.blocks = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(F.max_pool2d(same(self.conv(x), 3, 2, -torch.inf), 3, 2))
        return out


class ImpalaEncoder(nn.Module):
    """Impala's residual network (Espeholt et al., ICML 2018), ``width`` times as wide: images to features.

    ``(N, C, H, W)`` uint8 to ``(N, features)``: stacks of 16, 32 and 32 channels times ``width``, a linear layer, ReLU.

    Args:
        width: of the stacks; the paper's encoder has 8.
        features: the encoder's attribute ``width``; the paper's has 4,096.
        channels, size: ``C`` and ``H = W`` of the images.
        scale: what images are divided by.
    """

    def __init__(
        self, width: int = 8, features: int = 4096, channels: int = 4, size: int = 84, scale: float = 255.0
    ) -> None:
        super().__init__()
        self.width, self.scale = features, scale
        sizes = [channels, *(width * base for base in (16, 32, 32))]
        self.stacks = nn.Sequential(*(Stack(a, b) for a, b in pairwise(sizes)))
        for _ in range(3):
            size = math.ceil(size / 2)
        self.linear = _xavier(nn.Linear(sizes[-1] * size * size, features))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stacks(images.to(self.linear.weight.dtype) / self.scale).relu().flatten(1)
        features: Tensor = self.linear(x).relu()
        return features


class SmallEncoder(nn.Sequential):
    """``(N, C, H, W)`` images of few pixels to ``(N, features)``: one 3x3 convolution, a linear layer, ReLU after each."""

    def __init__(self, channels: int = 4, size: int = 10, features: int = 128, filters: int = 16) -> None:
        self.width = features
        super().__init__(
            *(_xavier(nn.Conv2d(channels, filters, 3)), nn.ReLU(), nn.Flatten()),
            *(_xavier(nn.Linear(filters * (size - 2) ** 2, features)), nn.ReLU()),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(next(self.parameters()).dtype)
        for layer in self:
            x = layer(x)
        return x


class RandomNetworks(nn.Module):
    """``tasks`` numbers of each image, by frozen random networks of ``each`` outputs: ``(N, C, H, W)`` to ``(N, tasks)``.

    Convolutions with ReLU, padded at the borders, and a linear layer. All networks run at once, as groups of one.

    Args:
        tasks: divisible by ``each``.
        each: outputs of a network.
        channels, size: ``C`` and ``H = W`` of the images.
        layers: channels, kernel and stride of each convolution of a network.
        scale: what images are divided by.
        final_relu: ReLU on the outputs too.
    """

    def __init__(
        self,
        tasks: int,
        each: int = 10,
        channels: int = 4,
        size: int = 84,
        layers: Sequence[tuple[int, int, int]] = NATURE,
        scale: float = 255.0,
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        if tasks < 1 or tasks % each:
            raise InputError(f"{tasks} tasks by networks of {each}, expected a multiple of {each}")
        self.tasks, self.scale, self.final_relu, self.layers = tasks, scale, final_relu, tuple(layers)
        count = tasks // each
        self.convs, groups = nn.ModuleList(), 1
        for filters, kernel, stride in layers:
            conv = nn.Conv2d(channels * groups, filters * count, kernel, stride, groups=groups)
            self.convs.append(_xavier(conv, count))
            channels, groups, size = filters, count, math.ceil(size / stride)
        flat = channels * size * size
        bound = math.sqrt(6 / (flat + each))
        self.weight = nn.Parameter(torch.empty(count, flat, each).uniform_(-bound, bound))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.weight.dtype) / self.scale
        for layer, (_, kernel, stride) in zip(self.convs, self.layers, strict=True):
            x = layer(same(x, kernel, stride)).relu()
        rows = x.reshape(len(x), len(self.weight), -1).transpose(0, 1)
        outputs = torch.bmm(rows, self.weight).transpose(0, 1).reshape(len(x), -1)
        return outputs.relu() if self.final_relu else outputs


def _conv(before: int, after: int) -> nn.Conv2d:
    return _xavier(nn.Conv2d(before, after, 3, padding=1))


def _xavier(layer: Layer, networks: int = 1) -> Layer:
    """Uniform weights as Glorot and Bengio's, no bias at first; of so many networks side by side each its own."""
    weight, bias = layer.weight, layer.get_parameter("bias")
    field = weight[0, 0].numel() if weight.ndim > 2 else 1
    bound = math.sqrt(6 / (field * (weight.shape[1] + weight.shape[0] // networks)))
    nn.init.uniform_(weight, -bound, bound)
    nn.init.zeros_(bias)
    return layer
