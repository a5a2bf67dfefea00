"""What the three experiments have in common: glyphs of 14 x 14 pixels, and the networks that they train."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.papers._experts.experts import Part
from polytask.papers._experts.glyphs import FILES, load

__all__ = ["FILES", "PIXELS", "Glyphs", "Part", "accuracy", "count", "perceptron"]

PIXELS = 14 * 14


class Glyphs:
    """The six tasks of a seed, in small.

    Args:
        folder: the folder of data sets, with `FILES`.
        seed: of the splits.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.data = load(folder, seed)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names: three collections, and a transformed copy of each."""
        return tuple(self.data)

    def part(self, task: str, part: Part, size: int) -> tuple[Tensor, Tensor]:
        """The first ``size`` images ``(size, 1, 14, 14)`` of a part of a task, and their labels."""
        images, targets = getattr(self.data[task], part)[:size]
        return F.avg_pool2d(images, 2), targets[task]


def perceptron(hidden: int = 64, classes: int = 10) -> nn.Module:
    """``(N, 1, 14, 14)`` -> ``(N, classes)``: one hidden layer with ReLU; 13,258 weights as it is by default."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def count(module: nn.Module) -> int:
    """How many trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@torch.no_grad()
def accuracy(scores: Tensor, labels: Tensor) -> float:
    """In percent, of logits or probabilities ``(..., classes)`` and labels that broadcast to ``(...)``."""
    return 100 * float((scores.argmax(-1) == labels).float().mean())
