"""Experts on six tasks of handwritten digits and printed letters: MNIST, USPS, notMNIST, and a transformed copy of each.

MNIST is one of the tasks of the papers on merging. An MLP learns all six from 60 images a task, which stands in for a model
that can do a little of everything before it is fine-tuned; then the heads are frozen, and the encoder is fine-tuned on 3,000
images of each task. An image is in the same split in both of its tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytask.data.examples import Examples
from polytask.data.mixture import Mixture
from polytask.data.npz import read_npz
from polytask.model import Model
from polytask.papers._experts.experts import Experts, Split, train
from polytask.task import Task
from polytask.training import fit

FILES = tuple(f"glyph_tasks/{name}.npz" for name in ("mnist_t10k", "usps", "notmnist_t10k_first7000"))
SIZES = {"train": 3000, "validation": 1000, "test": 2000}
BASE_IMAGES = 60
BASE: dict[str, Any] = {"epochs": 12, "lr": 1e-3, "schedule": "constant"}
TUNING: dict[str, Any] = {"epochs": 6, "batch_size": 64, "lr": 1e-3, "schedule": "constant"}

TRANSFORMED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "mnist turned": ("mnist", lambda images: images.rot90(1, (-2, -1))),
    "usps inverted": ("usps", lambda images: (1 - images).flip(-1)),
    "notmnist flipped": ("notmnist", lambda images: images.flip(-2)),
}
"""By name: of which task a transformed copy is, and the transform of ``(N, 1, 28, 28)``."""


class Encoder(nn.Sequential):
    """784-512-256-128 with ReLU, the features normalised (layer normalisation); images ``(N, 1, 28, 28)`` in [0, 1]."""

    def __init__(self, widths: tuple[int, ...] = (784, 512, 256, 128)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1], nn.LayerNorm(widths[-1]))
        self.width = widths[-1]


def glyph_experts(folder: Path, seed: int) -> Experts:
    """Six experts of a seed: seconds when they are made, none when they are in the cache.

    Args:
        folder: the folder of data sets, with `FILES`.
        seed: of the splits, the initial weights and the batches.
    """
    return train("glyphs", seed, load(folder, seed), [folder / name for name in FILES], pretrained, TUNING)


def load(folder: Path, seed: int) -> dict[str, Split]:
    """The six tasks, split anew for each seed; USPS keeps its own test set apart."""
    mnist, usps, notmnist = (read_npz(folder / name) for name in FILES)
    sources = {
        "mnist": _split(_shuffled(mnist["x"], mnist["y"], seed)),
        "usps": _split(_shuffled(usps["x_train"], usps["y_train"], seed), _labelled(usps["x_test"], usps["y_test"])),
        "notmnist": _split(_shuffled(notmnist["x"], notmnist["y"], seed)),
    }
    tasks = {name: _task(name, parts, lambda images: images) for name, parts in sources.items()}
    return tasks | {name: _task(name, sources[of], change) for name, (of, change) in TRANSFORMED.items()}


def pretrained(data: Mapping[str, Split], seed: int) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The base: an encoder and all heads, trained together on the first `BASE_IMAGES` training images of each task."""
    torch.manual_seed(seed)
    model = Model(Encoder(), [Task.classification(name, classes=split.classes) for name, split in data.items()])
    few = {name: split.train.subset(torch.arange(BASE_IMAGES)) for name, split in data.items()}
    fit(model, Mixture(few, tasks_per_step="all", batch_size=BASE_IMAGES // 3, seed=seed), seed=seed, **BASE)
    return model.encoder, {name: model.heads[name] for name in data}


Labelled = tuple[Tensor, Tensor]


def _task(name: str, parts: Mapping[str, Labelled], change: Callable[[Tensor], Tensor]) -> Split:
    changed = {part: Examples(change(images).contiguous(), {name: labels}) for part, (images, labels) in parts.items()}
    return Split(classes=10, **changed)


def _split(examples: Labelled, test: Labelled | None = None) -> dict[str, Labelled]:
    """Consecutive parts of ``examples`` in the sizes of `SIZES`, and ``test`` or what comes after them as the test part."""
    parts, start = {}, 0
    for part, size in SIZES.items():
        chosen, begin = (test, 0) if part == "test" and test is not None else (examples, start)
        parts[part] = (chosen[0][begin : begin + size], chosen[1][begin : begin + size])
        start += size
    return parts


def _shuffled(images: np.ndarray, labels: np.ndarray, seed: int) -> Labelled:
    order = np.random.default_rng(seed).permutation(len(labels))
    return _labelled(images[order], labels[order])


def _labelled(pixels: np.ndarray, labels: np.ndarray) -> Labelled:
    """Bytes as numbers in [0, 1], ``(N, 1, 28, 28)``, smaller images enlarged, bilinearly; and labels as integers."""
    images = torch.from_numpy(pixels).float()[:, None] / 255
    if images.shape[-1] != 28:
        images = nn.functional.interpolate(images, (28, 28), mode="bilinear")
    return images, torch.from_numpy(labels.astype(np.int64))
