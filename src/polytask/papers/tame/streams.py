"""Streams of MNIST's digits: split into pairs, permuted, and tasks that come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.digits import read_idx_images
from polytask.papers._idx import MNIST

FILES = MNIST
MEAN, DEVIATION = 0.1307, 0.3081


@dataclass(frozen=True)
class Data:
    """The examples of one task, with labels of its own."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 32, 32)``, padded and normalised, and the digits."""
    images, labels = read_idx_images(folder / "mnist", (part,))
    return ((F.pad(images, (2, 2, 2, 2)) - MEAN) / DEVIATION)[:, None], labels


def split(folder: Path, seed: int, classes: int = 2) -> list[Data]:
    """Tasks of ``classes`` digits each, in the order of digits; the label is the place within the task.

    The seed draws the order of the training images, which is the same in each epoch, as in the authors' code.
    """
    train, test = digits(folder, "train10k"), digits(folder, "t10k")
    order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(seed))
    shuffled = (train[0][order], train[1][order])
    return [Data(_within(shuffled, low, classes), _within(test, low, classes)) for low in range(0, 10, classes)]


def permuted(folder: Path, seed: int, tasks: int = 3, images: int = 4000) -> list[Data]:
    """Tasks of all digits whose pixels are in another order each, in the first as they are; other images for each."""
    train, test = digits(folder, "train10k"), digits(folder, "t10k")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for task in range(tasks):
        pixels = torch.randperm(32 * 32, generator=generator) if task else torch.arange(32 * 32)
        rows = torch.randperm(len(train[1]), generator=generator)[:images]
        found.append(Data((_moved(train[0][rows], pixels), train[1][rows]), (_moved(test[0], pixels), test[1])))
    return found


def stream(
    tasks: Sequence[Data], order: Sequence[int], epochs: int, batch: int = 128
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches, each with its task, which nobody who learns may look at: one task after the other, some epochs each."""
    for task in order:
        images, labels = tasks[task].train
        for _ in range(epochs):
            for start in range(0, len(labels), batch):
                yield task, images[start : start + batch], labels[start : start + batch]


def _within(examples: tuple[Tensor, Tensor], low: int, classes: int) -> tuple[Tensor, Tensor]:
    images, labels = examples
    rows = (labels >= low) & (labels < low + classes)
    return images[rows], labels[rows] - low


def _moved(images: Tensor, pixels: Tensor) -> Tensor:
    return images.flatten(1)[:, pixels].reshape(images.shape)
