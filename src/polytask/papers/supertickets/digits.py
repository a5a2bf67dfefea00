"""The claims' data, networks and training.

A supernet of two branches (strides 4 and 8, 16 and 32 channels, kernels 3 and 5, expansion 2: maps of 7x7 and 4x4 have no
room for the paper's 7x7 kernels) learns 4,000 of MNIST's digits; 2,000 test digits are reported. All arms take the same
number of steps with the same optimizer. All but the plain network have the same operations, 60 % of the supernet's, and the
same share of weights left, counted over all convolutions and linear layers. The paper's 350 epochs with an interval of 25
are 14 intervals here: the sparsity 0.9 is reached after nine of them. The search is over after seven. Batch norms are
recalibrated on ten batches before each evaluation. The network and the time are small beside the paper's, and so are the
sparsities. Settings are fixed, not tuned for any arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from polytask.cost import macs
from polytask.data import read_idx_images
from polytask.nn.modes import evaluating
from polytask.nn.recalibration import recalibrate
from polytask.papers.supertickets.supernet import NORMS, Architecture, Classifier, HighResolutionNet
from polytask.papers.supertickets.training import Drawn, Schedule, two_in_one
from polytask.shrink import Masks

INTERVALS, SEARCH, SHARE = 14, 7, 0.6
"""Intervals of training, of them of the search, and the operations that it leaves, of the supernet's."""
STEPS, BATCH, LR, RHO, DECAY = 12, 32, 0.2, 0.02, 1e-4
"""Steps of an interval, examples of a step; SGD with momentum 0.9, whose rate falls to 0 as a cosine; the same for all."""
SIZES = Architecture(
    inputs=1, stem=(16, 16), stages=(((0, 0), (16, 32)),), kernels=(3, 5), expansion=2, momentum=0.1, eps=1e-5
)


@dataclass(frozen=True)
class Split:
    """Images ``(N, 1, 28, 28)`` from 0 to 1, and their classes."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Any) -> Split:
        return Split(self.images[index], self.labels[index])


def load(data: Path, folder: str, part: str) -> Split:
    """The images of a file and their labels."""
    images, labels = read_idx_images(data / folder, (part,))
    return Split(images[:, None], labels)


def supernet() -> HighResolutionNet:
    """The network that every arm but the dense one begins with."""
    return HighResolutionNet(SIZES, Classifier(SIZES, 10, raised=None, last=64, dropout=0.0))


def dense(parameters: int) -> nn.Sequential:
    """The widest plain network of three convolutions with at most so many parameters."""

    def built(width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after, stride in ((1, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))

    width = 1
    while size(built(width + 1)) <= parameters:
        width += 1
    return built(width)


def size(network: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def losses(network: nn.Module, batch: Split) -> dict[str, Tensor]:
    """The loss of the one task."""
    return {"class": F.cross_entropy(network(batch.images), batch.labels)}


def fitted(
    network: nn.Module, train: Split, intervals: int, seed: int, masks: Masks | None = None, **schedule: Any
) -> list[Drawn]:
    """Train a network in place, with ``masks`` held at zero where they are given; the tickets."""
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=0.9)
    total = intervals * STEPS
    scheduler = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))

    def batches(interval: int) -> list[Split]:
        generator = torch.Generator().manual_seed(1000 * seed + interval)
        order = torch.randint(len(train.labels), (STEPS, BATCH), generator=generator)
        return [train[rows] for rows in order]

    plain = {"rho": 0.0, "final": 0.0, "interval": intervals, "average": 0.0}
    times = Schedule(**{"epochs": intervals, "decay": DECAY, **plain, **schedule})
    inputs = (train.images[:1],)
    with (masks or Masks({})).held(network):
        return two_in_one(network, losses, batches, optimizer, times, inputs=inputs, norms=NORMS, scheduler=scheduler)


def searched(intervals: int) -> dict[str, Any]:
    """What a search takes, as settings of a schedule."""
    budget = SHARE * macs(supernet(), torch.empty(1, 1, 28, 28))
    return {"rho": RHO, "warm": 1, "look": 1, "least": 0.0, "budget": budget, "search": min(SEARCH, intervals)}


def accuracy(network: nn.Module, train: Split, test: Split) -> float:
    """In percent; batch norms are recalibrated first."""
    recalibrate(network, [train.images[i * BATCH : (i + 1) * BATCH] for i in range(10)])
    with evaluating(network), torch.no_grad():
        return 100 * float((network(test.images).argmax(1) == test.labels).float().mean())
