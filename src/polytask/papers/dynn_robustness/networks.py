"""The paper's three networks for images of 32 x 32, each with internal classifiers where the authors have them, or none.

A network without any is the static one: one chain of blocks whose only exit is the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.route import EarlyExit, internal_classifier

MEAN = {10: (0.485, 0.456, 0.406), 100: (0.507, 0.487, 0.441)}
DEVIATION = {10: (0.229, 0.224, 0.225), 100: (0.267, 0.256, 0.276)}
"""Of the channels of CIFAR-10 and CIFAR-100, as the authors normalise them."""


class Normalise(nn.Module):
    """``(x - mean) / deviation`` by channel, inside the network: attacks then see pixels from 0 to 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(list(deviation)).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Residual(nn.Module):
    """ResNet's basic block, with a 1 x 1 convolution as short cut where the size changes, as in the authors' code."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(before, after, stride=stride), *_conv(after, after)[:-1])
        same = (before, stride) == (after, 1)
        self.short = nn.Sequential(*([] if same else _conv(before, after, 1, stride)[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.body(x) + self.short(x)).relu()
        return out


def vgg16(classes: int = 10, exits: bool = True) -> EarlyExit:
    """VGG-16 with batch norms; exits behind convolutions 2, 4, 6, 7, 9 and 10."""
    widths, pooled = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), (2, 4, 7, 10, 13)
    blocks: list[nn.Module] = []
    before = 3
    for place, width in enumerate(widths, start=1):
        pool = [nn.MaxPool2d(2)] if place in pooled else []
        blocks.append(nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), *pool))
        before = width
    blocks.append(nn.Sequential(nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5)))
    end = nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.5), nn.Linear(512, classes))
    return _assembled(blocks, end, (2, 4, 6, 7, 9, 10) if exits else (), classes)


def mobilenet(classes: int = 10, exits: bool = True) -> EarlyExit:
    """MobileNet v1; exits behind the separable blocks 3, 5, 7, 9 and 12, where the authors' code has them."""
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    blocks: list[nn.Module] = [nn.Sequential(*_conv(3, 32))]
    before = 32
    for width, stride in plan:
        blocks.append(nn.Sequential(*_conv(before, before, stride=stride, groups=before), *_conv(before, width, 1)))
        before = width
    end = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(before, classes))
    return _assembled(blocks, end, (4, 6, 8, 10, 13) if exits else (), classes)


def resnet56(classes: int = 10, exits: bool = True) -> EarlyExit:
    """ResNet-56, three stages of nine blocks; exits behind blocks 4 and 8, 3 and 7, 2 and 6 of the stages.

    The authors' exits read a block's sum before its ReLU; these read what the block gives.
    """
    blocks: list[nn.Module] = [nn.Sequential(*_conv(3, 16))]
    before = 16
    for stage, width in enumerate((16, 32, 64)):
        for place in range(9):
            blocks.append(Residual(before, width, 2 if stage and not place else 1))
            before = width
    end = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, classes))
    return _assembled(blocks, end, (5, 9, 13, 17, 21, 25) if exits else (), classes)


def digits_network(
    exits: Sequence[int] = (), size: int = 28, widths: Sequence[int] = (8, 8, 16, 16, 32), classes: int = 10
) -> EarlyExit:
    """The small check's: five convolutions on grey images, pooled behind the second and the fourth, and a linear layer.

    Args:
        exits: the convolutions behind which there is an internal classifier.
        size: of the images, a multiple of 4.
        widths: channels of each convolution.
        classes: of the label.
    """
    if size % 4 or len(widths) != 5:
        raise InputError(f"images of size {size}, {len(widths)} widths: expected a multiple of 4, and five")
    blocks: list[nn.Module] = []
    before = 1
    for place, width in enumerate(widths, start=1):
        first: list[nn.Module] = [Normalise([0.1307], [0.3081])] if place == 1 else []
        pool = [nn.MaxPool2d(2)] if place in (2, 4) else []
        blocks.append(nn.Sequential(*first, *_conv(before, width), *pool))
        before = width
    end = nn.Sequential(nn.Flatten(), nn.Linear(before * (size // 4) ** 2, classes))
    return EarlyExit(blocks, heads_for(blocks, exits, size, classes, channels=1) | {5: end}, answer="surest")


def heads_for(
    blocks: Sequence[nn.Module], depths: Sequence[int], size: int, classes: int, channels: int = 3
) -> dict[int, nn.Module]:
    """An internal classifier behind each of the depths of any chain of blocks on square images of ``size``."""
    with torch.device("meta"):
        x = torch.empty(2, channels, size, size)
    heads: dict[int, nn.Module] = {}
    for depth in range(1, max(depths, default=0) + 1):
        x = _shape_after(blocks[depth - 1], x)
        if depth in depths:
            heads[depth] = internal_classifier(x.shape[1], x.shape[2], classes)
    return heads


def _shape_after(block: nn.Module, x: Tensor) -> Tensor:
    tensors = {name: tensor.detach().to("meta") for name, tensor in [*block.named_parameters(), *block.named_buffers()]}
    with torch.no_grad():
        made: Tensor = torch.func.functional_call(block, tensors, (x,))
    return made


def _assembled(blocks: list[nn.Module], end: nn.Module, depths: Sequence[int], classes: int) -> EarlyExit:
    blocks[0] = nn.Sequential(Normalise(MEAN.get(classes, MEAN[10]), DEVIATION.get(classes, DEVIATION[10])), blocks[0])
    heads = heads_for(blocks, depths, 32, classes)
    return EarlyExit(blocks, heads | {len(blocks): end}, answer="surest")


def _conv(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]
