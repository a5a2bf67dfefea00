"""A small convolutional encoder for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask.errors import InputError


class ConvEncoder(nn.Module):
    """``(N, C, H, W)`` images -> ``(N, width)`` features: 3x3 convolutions with batch normalisation, each
    halving the image, then one linear layer.

    Args:
        channels: of the image, then of each convolution.
        width: the number of features.
        size: the height and width of the (square) images.
    """

    pretrained: ClassVar[None] = None
    """Nothing was trained before: ways of sharing that adapt a trained network have no place here."""

    def __init__(self, channels: Sequence[int] = (1, 16, 32), width: int = 64, size: int = 28) -> None:
        super().__init__()
        if size < 2 ** (len(channels) - 1):
            raise InputError(f"images of {size}x{size} pixels are too small for {len(channels) - 1} halvings")
        self.channels, self.width, self.size = tuple(channels), width, size
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
            size //= 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * size * size, width), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that build this encoder again."""
        return {"channels": list(self.channels), "width": self.width, "size": self.size}
