"""The two encoders of the experiments on overlaid digits: a small LeNet, and a ResNet-18 for images of one channel."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Sequential):
    """``(N, 1, 36, 36)`` -> ``(N, 50)``: two convolutions with pooling, one linear layer."""

    width = 50

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 10, 9), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(500, self.width), nn.ReLU()),
        )


class ResNet18(nn.Sequential):
    """``(N, 1, H, W)`` -> ``(N, 100)``: with a stem for one channel, and a linear layer of 100 in place of the classifier.

    He, Zhang, Ren and Sun, *Deep residual learning for image recognition*, CVPR 2016.
    """

    width = 100

    def __init__(self) -> None:
        stem = [nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        sizes = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [Block(*pair) for before, after, stride in sizes for pair in ((before, after, stride), (after, after, 1))]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, self.width), nn.ReLU()]
        super().__init__(*stem, *blocks, *pool)


class Block(nn.Module):
    """Two 3x3 convolutions beside a short cut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.long = nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.short = nn.Sequential()
        if (before, stride) != (after, 1):
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.long(x) + self.short(x)).relu()
        return out
