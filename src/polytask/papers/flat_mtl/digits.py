"""The claims on overlaid handwritten digits, at a size that a processor trains in minutes.

The paper trains a ResNet-18 on 120,000 composites for 200 epochs. Here a LeNet gets 500 composites of 36x36 pixels (of 8,333
MNIST digits; those of the other 1,667 training digits validate) for 40 epochs of Adam, lr 1e-3, batches of 64, until it fits
nearly all of them: over-fitting is what flat regions are about. The test is 4,000 composites of MNIST's own test digits.

Each seed draws composites, initial weights and batches, the same for all methods. Three rules (mean, PCGrad, CAGrad) run
with and without flat regions. Both sides choose one thing on validation accuracy: with flat regions the radius, among three
and with the mean rule, for all rules; without them each rule's length of training, 40 epochs or 80, where 80 take as many
gradients as 40 with flat regions. Nobody's best epoch is chosen: the weights are those of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytask.balance import CAGrad, GramianWeighting, PCGrad
from polytask.balance.flat import FlatRegions
from polytask.claim import Measurements
from polytask.data import DataSet, Examples, multi_images
from polytask.model import Model
from polytask.papers._idx import MNIST
from polytask.papers.flat_mtl.networks import LeNet
from polytask.papers.flat_mtl.sharpness import sharpness
from polytask.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = MNIST
SIZES = {"train": 500, "validation": 800, "test": 4000}
EPOCHS = 40
RADII = {"0.05": (0.05, False), "adaptive 0.5": (0.5, True), "adaptive 2": (2.0, True)}


class Mean(GramianWeighting):
    """The mean of the task gradients, as a balancer of gradients: what the others are compared with at one learning rate."""

    scale = "mean"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return torch.full((len(losses),), 1 / len(losses), dtype=torch.float64)


class Watched(GramianWeighting):
    """A rule that counts the steps in which the first two tasks' gradients conflict."""

    def __init__(self, rule: GramianWeighting) -> None:
        super().__init__()
        self.rule, self.steps, self.conflicts = rule, 0, 0
        self.scale = rule.scale

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        self.steps += 1
        self.conflicts += int(gramian[0, 1] < 0)
        return self.rule.weigh(gramian, losses)


RULES: dict[str, Callable[[], GramianWeighting]] = {
    "mean": Mean,
    "pcgrad": lambda: PCGrad(reduction="mean"),
    "cagrad": CAGrad,
}


def load(data: Path, seed: int) -> DataSet:
    """MultiMNIST with the numbers of composites in ``SIZES``; a composite draws its two digits with replacement."""
    whole = multi_images(data / "mnist", size=4200, seed=seed)
    train, validation, test = (Examples(*getattr(whole, part)[:size]) for part, size in SIZES.items())
    return replace(whole, train=train, validation=validation, test=test)


def train(data: DataSet, rule: GramianWeighting, seed: int, epochs: int, **flat: Any) -> dict[str, float]:
    """One model; with ``flat`` regions of these settings, or without."""
    watched = Watched(rule)
    torch.manual_seed(seed)
    model = Model(LeNet(), data.tasks)
    balance = FlatRegions(watched, **flat) if flat else watched
    fit(model, data.train, epochs=epochs, batch_size=64, lr=1e-3, schedule="constant", balance=balance, seed=seed)
    model.eval()
    right = {part: accuracy(model, getattr(data, part)) for part in SIZES}
    sharp = sharpness(model, data.test[:1000])
    return {
        **right,
        "gap": right["train"] - right["test"],
        "sharpness": sum(sharp.values()) / len(sharp),
        "ece": calibration_error(model, data.test),
        "conflicts": 100 * watched.conflicts / watched.steps,
    }


def accuracy(model: Model, examples: Examples) -> float:
    """The mean over tasks, in percent."""
    inputs, targets = examples[:]
    predictions = model.predict(inputs)
    each = [(predictions[name].argmax(1) == target).float().mean() for name, target in targets.items()]
    return 100 * float(torch.stack(each).mean())


def calibration_error(model: Model, examples: Examples) -> float:
    """The expected calibration error in 15 equal bins, the mean over tasks, in percent."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    inputs, targets = examples[:]
    predictions = model.predict(inputs)
    each = [multiclass_calibration_error(predictions[name], target, 10, n_bins=15) for name, target in targets.items()]
    return 100 * float(torch.stack(each).mean())


def measure(seed: int, data: Path) -> Measurements:
    """For each rule, and for the mean over the rules, what `train` measures ``without`` and ``with`` flat regions.

    ``"with"`` has the radius, and ``"without"`` the length of training, that did best in validation; ``"short"`` is without
    them for as many steps, ``"long"`` for as many gradients; ``"cagrad naive"`` does not split. ``"radius"`` is the number
    of the radius in ``RADII``.
    """
    digits = load(data, seed)

    def run(rule: str, epochs: int = EPOCHS, **flat: Any) -> dict[str, float]:
        return train(digits, RULES[rule](), seed, epochs, **flat)

    tried = {name: run("mean", rho=rho, adaptive=adaptive) for name, (rho, adaptive) in RADII.items()}
    chosen = max(tried, key=lambda name: tried[name]["validation"])
    rho, adaptive = RADII[chosen]
    measured: dict[str, float] = {"radius": float(list(RADII).index(chosen))}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in ("short", "long", "without", "with")}
    for rule in RULES:
        short, long = run(rule), run(rule, 2 * EPOCHS)
        best = max(short, long, key=lambda values: values["validation"])
        flat = tried[chosen] if rule == "mean" else run(rule, rho=rho, adaptive=adaptive)
        for side, values in zip(found, (short, long, best, flat), strict=True):
            found[side].append(values)
            measured |= {f"{rule} {side} {what}": value for what, value in values.items()}
    naive = run("cagrad", rho=rho, adaptive=adaptive, split=False)
    measured |= {f"cagrad naive {what}": value for what, value in naive.items()}
    for side, several in found.items():
        measured |= {f"{side} {what}": sum(values[what] for values in several) / len(several) for what in several[0]}
    return measured


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test accuracy, sharpness and generalisation gap of each rule, from without to with; a thin line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    panels = {"test": "test accuracy (%)", "sharpness": "sharpness (held out)", "gap": "train - test accuracy (%)"}
    for axes, (what, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for row, (rule, colour) in enumerate(zip(RULES, ("#0072b2", "#d55e00", "#009e73"), strict=True)):
            ends = [[m[f"{rule} {side} {what}"] for side in ("without", "with")] for m in measurements.values()]
            for pair in ends:
                axes.plot([0, 1], pair, color=colour, alpha=0.25, linewidth=1)
            mean = [sum(end) / len(ends) for end in zip(*ends, strict=True)]
            axes.plot([0, 1], mean, color=colour, marker="os^"[row], linewidth=2.5, label=rule)
        axes.set_xticks([0, 1], ["without", "with"])
        axes.set_xlim(-0.2, 1.2)
        axes.set_title(label, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Overlaid digits: each rule without and with flat regions", fontsize=11, x=0.02, ha="left")
    return figure
