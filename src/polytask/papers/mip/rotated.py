"""The claims on turned digits: one network for every angle from 0 to 90 degrees, told which.

MNIST digits, averaged to 14 x 14 pixels, are turned by ``90 gamma`` degrees with one ``gamma ~ U(0, 1)`` for each batch of
32. The primary network is two strided convolutions (8 and 16 channels, 3x3) and a linear layer, 3,818 weights, all
predicted; the generator has hidden layers of 16 and 64. Each method trains for `STEPS` steps with each optimizer and
learning rate of `RATES`, on the same batches, angles and, where it has one, ``theta_0``. 3,000 digits train, 300 validate
and 1,000 test.

What is compared is the mean of the loss over a run, at 11 even points of it and 6 angles: on validation digits it chooses
the learning rate, for each method and optimizer; test digits are reported. A loss above ``log 10``, that of guessing,
counts as ``log 10``, and so does one that is infinite or no number. A run that ends within 1 % of guessing has failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.errors import TrainingError
from polytask.papers._experts.glyphs import FILES, load
from polytask.papers.mip.continuum import Continuum
from polytask.papers.mip.parametrisation import PARAMETRISATIONS, kaiming, parametrised
from polytask.share.hypernetwork import Hyperfan, HyperNetwork, Values
from polytask.training import fit

__all__ = ["FILES", "METHODS", "measure", "train"]

STEPS, POINTS, BATCH = 250, 10, 32
SIZES = {"train": 3000, "validation": 300, "test": 1000}
RATES = {"sgd": (0.01, 0.03, 0.1, 0.3), "adam": (1e-3, 3e-3, 1e-2)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}
METHODS: dict[str, dict[str, Any]] = {name: {"parametrisation": name} for name in PARAMETRISATIONS} | {
    "hyperfan": {"parametrisation": "default", "start": Hyperfan()}
}
"""The paper's four parametrisations, and the default one with a start that gives the primary network Kaiming's variance."""

GUESSING = math.log(10)
ANGLES = [i / 5 for i in range(6)]
FINAL_ANGLES = [i / 10 for i in range(11)]


class Primary(nn.Sequential):
    """``(N, 1, 14, 14)`` -> ``(N, 10)``."""

    def __init__(self) -> None:
        convolutions = [nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.LeakyReLU()]
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(256, 10))


def turned(images: Tensor, gamma: float | Tensor) -> Tensor:
    """Images ``(N, 1, H, W)`` turned by ``90 gamma`` degrees, bilinearly, dark outside."""
    angle = torch.as_tensor(gamma, dtype=torch.float32).reshape(()) * math.pi / 2
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(())
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero]).view(1, 2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def digits(data: Path, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Images of 14 x 14 pixels and labels, for each part of `SIZES`."""
    split = load(data, seed)["mnist"]
    parts = {part: getattr(split, part)[:size] for part, size in SIZES.items()}
    return {part: (F.avg_pool2d(images, 2), targets["mnist"]) for part, (images, targets) in parts.items()}


def losses(run: Callable[[Tensor], Tensor], batch: Any, gamma: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of a batch, turned."""
    images, targets = batch
    return {"digit": F.cross_entropy(run(turned(images, gamma)), targets["digit"])}


class Curve:
    """Listens to a run: the mean loss over `ANGLES` of some parts, at the start and `POINTS` even points after it."""

    def __init__(self, network: HyperNetwork, parts: Mapping[str, Sequence[tuple[float, Tensor, Tensor]]]) -> None:
        self.network, self.parts = network, parts
        self.points: dict[str, list[float]] = {part: [] for part in parts}
        self.note()

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        if step % (STEPS // POINTS) == 0:
            self.note()

    @torch.no_grad()
    def note(self) -> None:
        for part, turns in self.parts.items():
            each = [F.cross_entropy(self.network(images, gamma), labels) for gamma, images, labels in turns]
            mean = float(torch.stack(each).mean())
            self.points[part].append(min(mean, GUESSING) if math.isfinite(mean) else GUESSING)

    def record(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...

    def mean(self, part: str) -> float:
        """The mean over the run; points that were not reached, since the loss was no number, count as guessing."""
        missing = POINTS + 1 - len(self.points[part])
        return (sum(self.points[part]) + missing * GUESSING) / (POINTS + 1)


def build(method: str, seed: int) -> HyperNetwork:
    """A method's hypernetwork at its start."""
    torch.manual_seed(seed)
    primary = kaiming(Primary())
    return parametrised(primary, Values(1), hidden=(16, 64), **METHODS[method])


def train(
    method: str, optimizer: str, lr: float, parts: Mapping[str, tuple[Tensor, Tensor]], seed: int
) -> tuple[HyperNetwork, Curve]:
    """One run: the trained hypernetwork and its learning curves."""
    network = build(method, seed)
    held_out = {
        part: [(g, turned(parts[part][0][:300], g), parts[part][1][:300]) for g in ANGLES] for part in list(parts)[1:]
    }
    curve = Curve(network, held_out)
    images, labels = parts["train"]
    with suppress(TrainingError):  # a loss that is no number
        fit(
            Continuum(network, losses, lambda: torch.rand(1)),
            Examples(images, {"digit": labels}),
            steps=STEPS,
            batch_size=BATCH,
            optimizer=lambda groups: OPTIMIZERS[optimizer](groups, lr=lr),
            schedule="constant",
            seed=seed,
            listeners=[curve],
        )
    return network, curve


def measure(seed: int, data: Path) -> Measurements:
    """For each method what `RATES` and validation make of it.

    ``METHOD OPTIMIZER area``, ``accuracy`` (over 11 angles), ``lr``, and ``at I``, the curve's point I, all on test digits
    with the learning rate that validation chose; ``METHOD area at LR``, of SGD with each learning rate, and ``METHOD any
    area``, their mean; ``METHOD failed``, of all runs; ``METHOD norm at GAMMA``, that of all weights at the start, in parts
    of the mean over gamma, and ``METHOD variation``, its standard deviation over gamma.
    """
    parts = digits(data, seed)
    measured: dict[str, float] = {}
    for method in METHODS:
        failed, areas = 0, {}
        for optimizer, rates in RATES.items():
            runs = {lr: train(method, optimizer, lr, parts, seed) for lr in rates}
            best = min(runs, key=lambda lr: runs[lr][1].mean("validation"))
            network, curve = runs[best]
            found = {"area": curve.mean("test"), "accuracy": accuracy(network, *parts["test"]), "lr": best}
            found |= {f"at {i}": value for i, value in enumerate(padded(curve.points["test"]))}
            measured |= {f"{method} {optimizer} {what}": value for what, value in found.items()}
            failed += sum(padded(run.points["test"])[-1] > 0.99 * GUESSING for _, run in runs.values())
            if optimizer == "sgd":
                areas = {lr: run.mean("test") for lr, (_, run) in runs.items()}
        measured |= {f"{method} area at {lr}": area for lr, area in areas.items()}
        measured |= {f"{method} any area": sum(areas.values()) / len(areas), f"{method} failed": float(failed)}
        measured |= {f"{method} {what}": value for what, value in magnitudes(build(method, seed)).items()}
    return measured


@torch.no_grad()
def magnitudes(network: HyperNetwork) -> dict[str, float]:
    """How the norm of all predicted weights varies with gamma, in parts of its mean."""
    gammas = torch.tensor(FINAL_ANGLES)[:, None]
    norms = network.layout.flatten(network.weights(gammas)).norm(dim=1)
    relative = norms / norms.mean()
    return {f"norm at {g}": float(n) for g, n in zip(FINAL_ANGLES, relative, strict=True)} | {
        "variation": float(relative.std(correction=0))
    }


@torch.no_grad()
def accuracy(network: HyperNetwork, images: Tensor, labels: Tensor) -> float:
    """In percent, the mean over 11 angles."""
    right = [(network(turned(images, g), g).argmax(1) == labels).float().mean() for g in FINAL_ANGLES]
    return 100 * float(torch.stack(right).mean())


def padded(points: Sequence[float]) -> list[float]:
    """A curve to its end, where guessing stands for what was not reached."""
    return [*points, *[GUESSING] * (POINTS + 1 - len(points))]
