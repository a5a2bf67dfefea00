"""YOLOv5 as the paper prunes it: release 5 of the architecture, at the sizes m, l and x."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SIZES = {"s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
"""The multiples of depth and width."""


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after, 1e-3, 0.03), nn.SiLU()
        )


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, with or without a short cut."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(width, width), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return x + out if self.shortcut else out


class C3(nn.Module):
    """Two branches, one of them with bottlenecks, concatenated."""

    def __init__(self, before: int, after: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        inner = after // 2
        self.cv1, self.cv2, self.cv3 = Conv(before, inner), Conv(before, inner), Conv(2 * inner, after)
        self.m = nn.Sequential(*(Bottleneck(inner, shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))
        return out


class SPP(nn.Module):
    """Pooled at three scales, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        out: Tensor = self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return out


class YOLOv5(nn.Module):
    """``(N, 3, H, W)`` images, multiples of 32 -> three maps ``(N, 3 (classes + 5), H / s, W / s)``, ``s`` in 8, 16 and 32.

    Args:
        size: one of ``SIZES``.
        classes: 80 for COCO.
    """

    def __init__(self, size: str = "m", classes: int = 80) -> None:
        super().__init__()
        depth, width = SIZES[size]
        a, b, c, d, e = (8 * -(-int(channels * width) // 8) for channels in (64, 128, 256, 512, 1024))
        three, nine = (max(round(blocks * depth), 1) for blocks in (3, 9))
        self.p3 = nn.Sequential(Conv(12, a, 3), Conv(a, b, 3, 2), C3(b, b, three), Conv(b, c, 3, 2), C3(c, c, nine))
        self.p4 = nn.Sequential(Conv(c, d, 3, 2), C3(d, d, nine))
        self.p5 = nn.Sequential(Conv(d, e, 3, 2), SPP(e), C3(e, e, three, False))
        self.down5, self.up4 = Conv(e, d), C3(2 * d, d, three, False)
        self.down4, self.up3 = Conv(d, c), C3(2 * c, c, three, False)
        self.to4, self.out4 = Conv(c, c, 3, 2), C3(2 * c, d, three, False)
        self.to5, self.out5 = Conv(d, d, 3, 2), C3(2 * d, e, three, False)
        self.upsample = nn.Upsample(scale_factor=2)
        self.detect = nn.ModuleList(nn.Conv2d(channels, 3 * (classes + 5), 1) for channels in (c, d, e))

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        x = torch.cat([images[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)  # four pixels become channels
        p3 = self.p3(x)
        p4 = self.p4(p3)
        five = self.down5(self.p5(p4))
        four = self.down4(self.up4(torch.cat([self.upsample(five), p4], 1)))
        small = self.up3(torch.cat([self.upsample(four), p3], 1))
        middle = self.out4(torch.cat([self.to4(small), four], 1))
        large = self.out5(torch.cat([self.to5(middle), five], 1))
        return [detect(x) for detect, x in zip(self.detect, (small, middle, large), strict=True)]
