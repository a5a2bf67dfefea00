"""Networks whose channels hang together in different ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.nn.vit import ViT


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(F.relu(self.a(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Dense(nn.Module):
    """Concatenations, as in DenseNet and U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(5, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(13)
        self.head = nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        x = torch.cat([a, self.up(self.b(a).relu()), x], 1)
        out: Tensor = self.head(self.norm(x))
        return out


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, squeeze-and-excitation, a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm = nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.groups = nn.GroupNorm(6, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depth(self.expand(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.groups(self.grouped(self.project(x)))
        out: Tensor = self.head(F.adaptive_avg_pool2d(F.silu(x), 1).flatten(1))
        return out


class Attended(nn.Module):
    """Grouped queries, a gated MLP whose halves come from one layer, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 6
        self.inner = nn.Linear(5, 16)
        self.again = nn.Linear(16, 16)
        self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 12), nn.Linear(16, 12)
        self.output = nn.Linear(24, 7)
        self.gate, self.down = nn.Linear(7, 20), nn.Linear(10, 3)
        self.positions = nn.Parameter(torch.randn(1, 4, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.tanh(self.again(self.inner(x).sigmoid())))
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        x = self.output(x) + self.positions
        a, b = self.gate(x).chunk(2, -1)
        out: Tensor = self.down(a * b.sigmoid())
        return out


def chain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 3, padding=1), nn.InstanceNorm1d(6, affine=True), nn.PReLU(6), nn.MaxPool1d(2)),
        *(nn.Conv1d(6, 4, 3), nn.AvgPool1d(2), nn.Flatten(), nn.Dropout(), nn.Linear(12, 10), nn.Sigmoid()),
        *(nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3)),
    )


def model() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU())
    return pt.Model(encoder, [pt.Task.binary("churn"), pt.Task.regression("spend")], width=9)


def vit() -> nn.Module:
    return nn.Sequential(ViT((8, 8), 4, 12, 2, 3, channels=1), nn.Conv2d(12, 2, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "residual": (Residual, (2, 3, 6, 6), {"stem": 8, "a": 6}),
    "dense": (Dense, (2, 3, 6, 6), {"a": 6, "b": 5, "up": 4}),
    "mobile": (Mobile, (2, 3, 6, 6), {"expand": 12, "squeeze": 4, "project": 2}),
    "attended": (Attended, (2, 4, 5), {"inner": 16, "q": 3, "output": 7, "gate": 10}),
    "chain": (chain, (2, 2, 16), {"0": 6, "4": 4, "8": 10, "10": 8}),
    "model": (model, (2, 5), {"encoder.0": 12, "encoder.2": 9}),
    "vit": (
        vit,
        (2, 1, 8, 8),
        {f"0.blocks.{i}.{part}": n for i in (0, 1) for part, n in (("attention.qkv", 3), ("mlp.hidden", 48))},
    ),
}
"""By name: how it is built, the shape of its inputs, and the units of its groups."""


def built(name: str) -> tuple[nn.Module, Tensor, dict[str, int]]:
    """A network with random weights and statistics, inputs, and the units of its groups."""
    make, shape, units = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and tensor.ndim < 2:
            tensor.data = torch.rand_like(tensor) + 0.5
    return network.eval(), torch.randn(shape), units


def outputs(found: Any) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]
