"""Heads out of data: five classes that were never seen, five examples of each.

The twenty classes of MNIST digits and printed letters are divided anew for each seed: ten train, five validate, five test.
Turned by quarters and mirrored, the ten are eighty classes to train with. A perceptron, 196-128-64 with layer normalisation,
makes features of images of 14 x 14 pixels. Three ways to classify five new classes by five examples of each:

- ``hypernetwork``: a generator turns the mean feature of each class into that class's row of a linear head. Encoder and
  generator are trained together, by episodes of five training classes, of 25 examples and 50 queries.
- ``linear``: the encoder is trained to classify the eighty classes; a linear head is fitted to each episode's examples by
  `HEAD_STEPS` steps of Adam.
- ``nearest``: the same encoder; the class with the nearest mean feature.

Encoders train for `STEPS` steps of 75 images by Adam. Four trials each, of which episodes of the validation classes choose:
of generators and learning rates, and of learning rates of the encoder and of the head; two of ``nearest``, which has no more
to choose. The measure is the mean accuracy in `EPISODES` episodes of the test classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.claim import Measurements
from polytask.papers.hypernets.glyphs import PIXELS, Glyphs, accuracy
from polytask.share.hypernetwork import MLP, Example, Hyperfan, HyperNetwork

WAYS, SHOTS, QUERIES, WIDTH = 5, 5, 10, 64
STEPS, EPISODES, HEAD_STEPS = 600, 100, 50
GENERATORS, GENERATOR_RATES = (MLP((128,)), MLP((256,), "tanh")), (1e-3, 3e-3)
RATES, HEAD_RATES = (1e-3, 3e-3), (0.03, 0.1)

Classes: TypeAlias = list[Tensor]
"""For each class its images, ``(n, 1, 14, 14)``."""

Way: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Examples ``(E, 5, 5, 1, 14, 14)`` and queries ``(E, 5, 10, 1, 14, 14)`` of ``E`` episodes to logits ``(E, 50, 5)``."""

LABELS = torch.arange(WAYS).repeat_interleave(QUERIES)


def classes(data: Path, seed: int) -> dict[str, Classes]:
    """The classes of each part; which these are is drawn."""
    glyphs = Glyphs(data, seed)
    every: Classes = []
    for task in ("mnist", "notmnist"):
        images, labels = glyphs.part(task, "train", 3000)
        every += [images[labels == label] for label in range(10)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    train, validation, test = ([every[i] for i in order[a:b]] for a, b in ((0, 10), (10, 15), (15, 20)))
    turned = [side.rot90(k, (-2, -1)) for images in train for side in (images, images.flip(-1)) for k in range(4)]
    return {"train": turned, "validation": validation, "test": test}


def episode(some: Classes, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Examples ``(5, 5, 1, 14, 14)`` and queries ``(5, 10, 1, 14, 14)`` of five classes."""
    chosen = torch.randperm(len(some), generator=random)[:WAYS].tolist()
    rows = [torch.randperm(len(some[i]), generator=random)[: SHOTS + QUERIES] for i in chosen]
    images = torch.stack([some[i][r] for i, r in zip(chosen, rows, strict=True)])
    return images[:, :SHOTS], images[:, SHOTS:]


def encoder() -> nn.Module:
    """``(N, 1, 14, 14)`` -> ``(N, 64)``."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, WIDTH), nn.LayerNorm(WIDTH))


class HeadFromData(nn.Module):
    """An encoder, and a generator that makes each class's row of a linear head out of its mean feature."""

    def __init__(self, generator: MLP) -> None:
        super().__init__()
        self.encoder = encoder()
        row = Example(nn.Identity(), WIDTH)
        self.head = HyperNetwork(nn.Linear(WIDTH, 1), row, generator, residual=False, start=Hyperfan(relu=False))

    def forward(self, support: Tensor, queries: Tensor) -> Tensor:
        """The logits of one episode's queries, ``(50, 5)``."""
        means = self.encoder(support.flatten(0, 1)).view(WAYS, SHOTS, WIDTH).mean(1)
        return self.head.each(self.encoder(queries.flatten(0, 1)), means).squeeze(-1).T


@torch.enable_grad()
def descend(loss: Callable[[], Tensor], parameters: Iterable[Tensor], lr: float, steps: int) -> None:
    """Steps of Adam, each on the loss as it is then."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def by_episodes(some: Classes, generator: MLP, lr: float, seed: int) -> Way:
    """Encoder and generator, trained together."""
    torch.manual_seed(seed)
    model, random = HeadFromData(generator), torch.Generator().manual_seed(seed)
    descend(lambda: F.cross_entropy(model(*episode(some, random)), LABELS), model.parameters(), lr, STEPS)
    return lambda support, queries: torch.stack([model(*each) for each in zip(support, queries, strict=True)])


def by_classes(some: Classes, lr: float, seed: int) -> nn.Module:
    """The encoder, trained to classify the training classes."""
    torch.manual_seed(seed)
    features, random = encoder(), torch.Generator().manual_seed(seed)
    model = nn.Sequential(features, nn.Linear(WIDTH, len(some)))
    images, labels = torch.cat(some), torch.arange(len(some)).repeat_interleave(torch.tensor([len(c) for c in some]))

    def loss() -> Tensor:
        rows = torch.randint(len(images), (WAYS * (SHOTS + QUERIES),), generator=random)
        return F.cross_entropy(model(images[rows]), labels[rows])

    descend(loss, model.parameters(), lr, STEPS)
    return features


def fitted(features: nn.Module, lr: float) -> Way:
    """A linear head for each episode, fitted to its examples from 0: Adam treats each number by itself, so all at once."""

    def logits(support: Tensor, queries: Tensor) -> Tensor:
        known, asked = (features(images.flatten(0, 2)).unflatten(0, (len(images), -1)) for images in (support, queries))
        labels = torch.arange(WAYS).repeat_interleave(SHOTS).repeat(len(support))
        weight = torch.zeros(len(support), WIDTH, WAYS, requires_grad=True)
        bias = torch.zeros(len(support), 1, WAYS, requires_grad=True)

        def loss() -> Tensor:
            return F.cross_entropy((known @ weight + bias).flatten(0, 1), labels, reduction="sum")

        descend(loss, [weight, bias], lr, HEAD_STEPS)
        return torch.baddbmm(bias, asked, weight)

    return logits


def nearest(features: nn.Module) -> Way:
    """The nearest mean feature."""

    def logits(support: Tensor, queries: Tensor) -> Tensor:
        known, asked = (features(images.flatten(0, 2)).unflatten(0, (len(images), -1)) for images in (support, queries))
        return -torch.cdist(asked, known.unflatten(1, (WAYS, SHOTS)).mean(2))

    return logits


@torch.no_grad()
def mean_accuracy(way: Way, some: Classes, seed: int) -> float:
    """Over `EPISODES` episodes, in percent."""
    random = torch.Generator().manual_seed(seed)
    support, queries = map(torch.stack, zip(*(episode(some, random) for _ in range(EPISODES)), strict=True))
    return accuracy(way(support, queries), LABELS)


def measure_few_shot(seed: int, data: Path) -> Measurements:
    """``METHOD accuracy`` of the three ways."""
    parts = classes(data, seed)
    plain = {lr: by_classes(parts["train"], lr, seed) for lr in RATES}
    ways: dict[str, list[Way]] = {
        "hypernetwork": [by_episodes(parts["train"], *pair, seed) for pair in product(GENERATORS, GENERATOR_RATES)],
        "linear": [fitted(plain[lr], head) for lr, head in product(RATES, HEAD_RATES)],
        "nearest": [nearest(plain[lr]) for lr in RATES],
    }
    best = {name: max(tried, key=lambda way: mean_accuracy(way, parts["validation"], seed)) for name, tried in ways.items()}
    return {f"{name} accuracy": mean_accuracy(way, parts["test"], seed) for name, way in best.items()}
