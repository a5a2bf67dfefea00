"""FBNetV3, whose blocks the search space is made of, and which is the network to beat: Dai et al., CVPR 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest

IMAGES = {"A": 224, "B": 248, "C": 248, "D": 248, "E": 264, "F": 272, "G": 320}
"""The side of the images of each size."""

FEATURES = 1984


def rounded(width: float) -> int:
    """To the nearest multiple of 8, the next one where that would lose more than a twentieth."""
    nearest = max(8, int(width / 8 + 0.5) * 8)
    return nearest + 8 if nearest < 0.95 * width else nearest


def conv(
    before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1, padding: int | None = None
) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    padding = kernel // 2 if padding is None else padding
    return [nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(after)]


class SqueezeExcite(nn.Module):
    """Channels scaled by what the mean of all of them says: hard swish, then hard sigmoid."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return x * F.hardsigmoid(self.expand(F.hardswish(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Wider, a depthwise convolution, narrower, and the input added where the shape stays; hard swish.

    Args:
        before, after: channels.
        kernel, stride: of the depthwise convolution.
        expansion: by how much it is wider inside; with 1 nothing is widened.
        squeezed: whether it squeezes and excites, to a quarter of ``before``.
        padding: of the depthwise convolution; by default half the kernel.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int = 3,
        stride: int = 1,
        expansion: int = 1,
        squeezed: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        mid = rounded(before * expansion)
        self.expand = nn.Sequential(*conv(before, mid), nn.Hardswish()) if mid != before else nn.Identity()
        self.depthwise = nn.Sequential(*conv(mid, mid, kernel, stride, mid, padding), nn.Hardswish())
        self.squeeze = SqueezeExcite(mid, rounded(int(mid * 0.25 / expansion))) if squeezed else nn.Identity()
        self.project = nn.Sequential(*conv(mid, after))
        self.residual = stride == 1 and before == after
        if self.residual:
            nn.init.zeros_(cast(nn.BatchNorm2d, self.project[1]).weight)  # an identity at first

    def forward(self, x: Tensor) -> Tensor:
        """``(N, before, H, W)`` to ``(N, after, H / stride, W / stride)``."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


@dataclass(frozen=True)
class Stage:
    """Blocks in a row, of which the first may have a stride."""

    width: int
    kernel: int
    stride: int
    repeats: int
    expansion: int
    squeezed: bool = False
    padding: int | None = None

    def blocks(self, before: int) -> list[nn.Module]:
        """The blocks, for an input of so many channels."""
        first = InvertedResidual(before, self.width, self.kernel, self.stride, self.expansion, self.squeezed, self.padding)
        more = (self.width, self.width, self.kernel, 1, self.expansion, self.squeezed, self.padding)
        return [first, *(InvertedResidual(*more) for _ in range(self.repeats - 1))]


_A = (
    16,
    Stage(16, 3, 1, 2, 1),
    Stage(24, 5, 2, 1, 4),
    Stage(24, 5, 1, 3, 2),
    Stage(40, 5, 2, 1, 5, True),
    Stage(40, 5, 1, 4, 3, True),
    Stage(72, 5, 2, 1, 5, padding=1),
    Stage(72, 3, 1, 4, 3),
    Stage(120, 3, 1, 1, 5, True),
    Stage(120, 5, 1, 5, 3, True),
    Stage(184, 3, 2, 1, 6, True, padding=0),
    Stage(184, 5, 1, 5, 4, True),
    Stage(224, 5, 1, 1, 6, True),
)
_C = (
    16,
    Stage(16, 3, 1, 2, 1),
    Stage(24, 5, 2, 1, 5),
    Stage(24, 3, 1, 4, 3),
    Stage(48, 5, 2, 1, 5, True),
    Stage(48, 5, 1, 4, 2, True),
    Stage(88, 5, 2, 1, 4, padding=1),
    Stage(88, 3, 1, 4, 3),
    Stage(120, 3, 1, 1, 4, True),
    Stage(120, 5, 1, 5, 3, True),
    Stage(216, 5, 2, 1, 5, True, padding=1),
    Stage(216, 5, 1, 5, 5, True),
    Stage(216, 5, 1, 1, 6, True),
)
_D = (
    24,
    Stage(16, 3, 1, 2, 1),
    Stage(24, 3, 2, 1, 5),
    Stage(24, 3, 1, 5, 2),
    Stage(40, 5, 2, 1, 4, True),
    Stage(40, 3, 1, 4, 3, True),
    Stage(72, 3, 2, 1, 5),
    Stage(72, 3, 1, 4, 3),
    Stage(128, 3, 1, 1, 5, True),
    Stage(128, 5, 1, 6, 3, True),
    Stage(208, 3, 2, 1, 6, True),
    Stage(208, 5, 1, 5, 5, True),
    Stage(240, 5, 1, 1, 6, True),
)
_E = (
    24,
    Stage(16, 3, 1, 3, 1),
    Stage(24, 5, 2, 1, 4),
    Stage(24, 5, 1, 4, 2),
    Stage(48, 5, 2, 1, 4, True),
    Stage(48, 5, 1, 4, 3, True),
    Stage(80, 5, 2, 1, 5, padding=1),
    Stage(80, 3, 1, 4, 3),
    Stage(128, 3, 1, 1, 5, True),
    Stage(128, 5, 1, 7, 3, True),
    Stage(216, 3, 2, 1, 6, True),
    Stage(216, 5, 1, 5, 5, True),
    Stage(240, 5, 1, 1, 6, True),
)
_F = (
    24,
    Stage(24, 3, 1, 3, 1),
    Stage(32, 5, 2, 1, 4),
    Stage(32, 5, 1, 4, 2),
    Stage(56, 5, 2, 1, 4, True),
    Stage(56, 5, 1, 4, 3, True),
    Stage(88, 5, 2, 1, 5),
    Stage(88, 3, 1, 4, 3),
    Stage(144, 3, 1, 1, 5, True),
    Stage(144, 5, 1, 8, 3, True),
    Stage(248, 3, 2, 1, 6, True, padding=0),
    Stage(248, 5, 1, 6, 5, True),
    Stage(272, 5, 1, 1, 6, True),
)
_G = (
    32,
    Stage(24, 3, 1, 3, 1),
    Stage(40, 5, 2, 1, 4),
    Stage(40, 5, 1, 4, 2),
    Stage(56, 5, 2, 1, 4, True),
    Stage(56, 5, 1, 4, 3, True),
    Stage(104, 5, 2, 1, 5),
    Stage(104, 3, 1, 4, 3),
    Stage(160, 3, 1, 1, 5, True),
    Stage(160, 5, 1, 8, 3, True),
    Stage(264, 3, 2, 1, 6, True, padding=0),
    Stage(264, 5, 1, 6, 5, True),
    Stage(288, 5, 1, 2, 6, True),
)
SIZES: dict[str, tuple[int, *tuple[Stage, ...]]] = {"A": _A, "B": _A, "C": _C, "D": _D, "E": _E, "F": _F, "G": _G}
"""The width of the first convolution, and the stages, of the authors' release; B is A on larger images. Its table counts the
weights of convolutions and linear layers alone, 8,542,224 for A, and among operations those of pooling too."""


class FBNetV3(nn.Module):
    """A size of FBNetV3, ``"A"`` to ``"G"``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     network = FBNetV3("A")
    >>> sum(weight.numel() for weight in network.parameters() if weight.ndim > 1)  # without batch norms and biases
    8542224
    """

    def __init__(self, size: str = "A", classes: int = 1000) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"unknown size {size!r} of FBNetV3: {suggest(size, SIZES)}")
        before, *stages = SIZES[size]
        self.first = nn.Sequential(*conv(3, before, 3, 2), nn.Hardswish())
        self.stages = nn.ModuleList()
        for stage in stages:
            self.stages.append(nn.Sequential(*stage.blocks(before)))
            before = stage.width
        mid = rounded(before * 6)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, FEATURES, 1, bias=False), nn.Hardswish(), nn.Flatten())
        self.last = nn.Sequential(*conv(before, mid), nn.Hardswish(), *pooled, nn.Linear(FEATURES, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)`` to logits ``(N, classes)``."""
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.last(x)
        return logits
