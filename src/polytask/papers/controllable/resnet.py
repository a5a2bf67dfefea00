"""A network at the paper's scale: a slimmable ResNet, and a decoder for each task of NYUD-v2."""

from __future__ import annotations

from torch import nn

from polytask.papers._dense import nyud, outputs_of
from polytask.share.slimmable import Residual, Supernet

WIDTH = 256


def resnet18() -> nn.Sequential:
    """``(N, 3, H, W)`` -> ``(N, 256, H/32, W/32)``: ResNet-18 with a projection in place of its classifier, four stages.

    He, Zhang, Ren and Sun, *Deep residual learning for image recognition*, CVPR 2016. The first stage includes the stem.
    """
    stem = (*_layer(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    first = nn.Sequential(*stem, _block(64, 64, 1), _block(64, 64, 1))
    sizes = [(64, 128), (128, 256), (256, 512)]
    later = [nn.Sequential(_block(before, after, 2), _block(after, after, 1)) for before, after in sizes]
    return nn.Sequential(first, *later, nn.Conv2d(512, WIDTH, 1))


def decoder(outputs: int) -> nn.Sequential:
    """``(N, 256, h, w)`` -> ``(N, outputs, 4 h, 4 w)``: two convolutions of 128 channels, each after an enlargement."""
    layers: list[nn.Module] = []
    for before in (WIDTH, 128):
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Sequential(*_layer(before, 128, 3, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Conv2d(128, outputs, 1))


def at_scale() -> Supernet:
    """The supernet for NYUD-v2: segmentation, depth, surface normals and boundaries."""
    tasks = nyud()
    return Supernet(resnet18(), {task.name: decoder(outputs_of(task)) for task in tasks}, tasks, batch_norm="recalibrated")


def _block(before: int, after: int, stride: int) -> Residual:
    body = nn.Sequential(*_layer(before, after, 3, stride), nn.ReLU(), *_layer(after, after, 3, 1))
    short = None if (before, stride) == (after, 1) else nn.Sequential(*_layer(before, after, 1, stride))
    return Residual(body, short, nn.ReLU())


def _layer(before: int, after: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)
