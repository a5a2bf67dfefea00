"""Plain chains that the tests slim, and a supernet of three dense tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polytask import Task
from polytask.share.slimmable import Residual, Supernet


def grouped() -> nn.Sequential:
    """Bare layers, group norms of 8 channels."""
    torch.manual_seed(0)
    return _random(
        nn.Sequential(
            *(nn.Conv2d(2, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.GroupNorm(8, 64), nn.GELU(), nn.MaxPool2d(2)),
            nn.Conv2d(64, 5, 1),
        )
    )


def batched() -> nn.Sequential:
    """Stages with batch norms, the first of which a depthwise convolution ends."""
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(2, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32))
    second = nn.Sequential(nn.BatchNorm2d(32), nn.Conv2d(32, 48, 3, dilation=2), nn.BatchNorm2d(48), nn.SiLU())
    return _random(nn.Sequential(first, second, nn.Conv2d(48, 24, 1), nn.BatchNorm2d(24)))


def residual() -> nn.Sequential:
    """Two stages of residual blocks."""
    torch.manual_seed(2)

    def block(before: int, after: int) -> Residual:
        body = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(after // 8, after))
        return Residual(body, None if before == after else nn.Conv2d(before, after, 1), nn.ReLU())

    stages = [nn.Sequential(block(2, 32), block(32, 32)), nn.Sequential(block(32, 64), block(64, 64))]
    return _random(nn.Sequential(*stages, nn.Conv2d(64, 4, 1)))


def flat() -> nn.Sequential:
    """A convolution, and linear layers behind ``nn.Flatten``."""
    torch.manual_seed(3)
    first = (nn.Conv2d(2, 16, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 36, 40), nn.LayerNorm(40), nn.ReLU())
    return _random(nn.Sequential(*first, nn.Linear(40, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)))


CHAINS: dict[str, Callable[[], nn.Sequential]] = {"grouped": grouped, "batched": batched, "residual": residual, "flat": flat}


def images() -> Tensor:
    return torch.randn(6, 2, 12, 12, generator=torch.Generator().manual_seed(4))


TASKS = [
    Task.segmentation("classes", classes=3),
    Task.pixel_binary("edge"),
    Task.pixel_regression("depth", outputs=2, robust="mae"),
]


def supernet(**settings: Any) -> Supernet:
    """Two stages and a projection; decoders of 32 channels with 3, 1 and 2 outputs."""
    torch.manual_seed(5)
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 1, 1), nn.GroupNorm(8, 64), nn.ReLU()),
        nn.Conv2d(64, 48, 1),
    )
    decoders = {
        task.name: nn.Sequential(nn.ReLU(), nn.Conv2d(48, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, outputs, 1))
        for task, outputs in zip(TASKS, (3, 1, 2), strict=True)
    }
    return Supernet(encoder, decoders, TASKS, **settings)


def batch(size: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames ``(N, 1, 8, 8)`` and labels that a network can learn from them."""
    x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    classes = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    return x, {"classes": classes, "edge": (x[:, 0] > 0.5).float(), "depth": torch.cat([x, -2 * x], 1)}


def _random(network: nn.Sequential) -> nn.Sequential:
    """``network`` with norms whose scales, offsets and statistics are not those of a new one."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.rand_like(value) + 0.5 * (name != "bias"))
    return network
