"""The claims' experiment: five ways to prune one network of three tasks on overlaid digits to the same operations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.cost import count
from polytask.data import DataSet, Examples, multi_images
from polytask.model import Model
from polytask.papers._idx import MNIST
from polytask.papers.pagcp.at_once import at_once, by_ratio, to_the_last_unit
from polytask.shrink import find_structure, overall, prune_to, remove, uniform
from polytask.training import evaluate, fit
from polytask.training.evaluate import evaluate_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = MNIST
TASKS = {"left": "accuracy", "right": "accuracy", "ink": "r2"}
SIZE, CALIBRATION, TEST = 4000, 500, 2000
"""Composites to train on, of them held out of training for the choice of ratios; and to report on."""
EPOCHS, SHARE, SMALL = 4, 0.6, 0.38
"""Of training; fine-tuning is one more. The budgets of the arms and of PAGCP's second round, of the whole's operations."""
ARMS = {
    "pagcp": "each task's veto",
    "summed": "summed loss",
    "at once": "not sequential",
    "global": "L1 overall",
    "uniform": "L1 uniform",
}


class Residual(nn.Module):
    """``relu(x + body(x))``, the body two 3x3 convolutions with batch norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(width, width), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x + self.body(x)).relu()
        return out


def convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, a batch norm, ReLU."""
    return [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]


class Encoder(nn.Sequential):
    """``(N, 1, 36, 36)`` -> ``(N, 64)``: five convolutions, two of them in a residual pair, and a linear layer."""

    width = 64

    def __init__(self) -> None:
        super().__init__(
            *(*convolution(1, 16, 2), nn.MaxPool2d(2), *convolution(16, 32), Residual(32)),
            *(*convolution(32, 64, 2), nn.Flatten(), nn.Linear(64 * 25, self.width), nn.ReLU()),
        )


def load(data: Path, seed: int, size: int = SIZE, test: int = TEST) -> tuple[DataSet, Examples, Examples, Examples]:
    """The data set; what is trained on, what ratios are chosen on, and what is reported."""
    whole = multi_images(data / "mnist", tasks=tuple(TASKS), size=size, seed=seed)
    held_out = size * CALIBRATION // SIZE
    train, calibration = Examples(*whole.train[held_out:]), Examples(*whole.train[:held_out])
    return whole, train, calibration, Examples(*whole.test[:test])


def values(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Accuracy of the two digits and R2 of the ink, in percent."""
    assert isinstance(model, Model)
    found = evaluate(model, examples)
    return {task: 100 * found[task][metric] for task, metric in TASKS.items()}


def measure(seed: int, data: Path, epochs: int = EPOCHS, size: int = SIZE) -> Measurements:
    """Of the whole network and each arm: tasks' values before and after fine-tuning, and the worst task's relative drop.

    Drops are in percent of the whole network's value; after fine-tuning of that of the whole network with the same further
    epoch, or with two for ``"small"``: PAGCP again, in a second round on what it left, fine-tuned too. ``"ARM macs"`` and
    ``"ARM parameters"`` are shares of the whole network's.
    """
    whole, train, calibration, test = load(data, seed, size)
    torch.manual_seed(seed)
    model = Model(Encoder(), whole.tasks)
    fit(model, train, epochs=epochs, batch_size=64, lr=2e-3, seed=seed)
    structure = find_structure(model, train[:2][0])
    image = train[:1][0]

    def cost(network: nn.Module) -> float:
        return float(count(network, image).total.macs)

    def losses(network: nn.Module) -> dict[str, float]:
        return evaluate_losses(network, calibration)

    def summed(network: nn.Module) -> dict[str, float]:
        return {"sum": sum(losses(network).values())}

    def finetune(network: nn.Module) -> None:
        assert isinstance(network, Model)
        fit(network, train, epochs=1, batch_size=64, lr=1e-3, seed=seed)

    target = SHARE * cost(model)
    chosen: dict[str, Mapping[str, list[int]]] = {
        "pagcp": prune_to(model, structure, losses, cost, target).removed,
        "summed": prune_to(model, structure, summed, cost, target).removed,
        "at once": at_once(model, structure, losses, cost, target),
        "global": by_ratio(lambda r: overall(model, structure, r), model, structure, cost, target),
        "uniform": by_ratio(lambda r: uniform(model, structure, r), model, structure, cost, target),
    }
    before = values(model, test)
    size_before = count(model, image).total
    measured = {f"whole {task}": value for task, value in before.items()}
    arms = {
        arm: remove(model, structure, to_the_last_unit(removed, model, structure, cost, target))
        for arm, removed in chosen.items()
    }
    early = {arm: values(network, test) for arm, network in arms.items()}
    for network in (model, *arms.values()):
        finetune(network)
    after = values(model, test)
    measured |= {f"whole tuned {task}": value for task, value in after.items()}
    for arm, network in arms.items():
        late, cost_now = values(network, test), count(network, image).total
        measured |= {f"{arm} {task}": value for task, value in early[arm].items()}
        measured |= {f"{arm} tuned {task}": value for task, value in late.items()}
        measured[f"{arm} drop"] = worst(early[arm], before)
        measured[f"{arm} tuned drop"] = worst(late, after)
        measured[f"{arm} macs"] = cost_now.macs / size_before.macs
        measured[f"{arm} parameters"] = cost_now.parameters / size_before.parameters
    again = arms["pagcp"]
    small = prune_to(again, find_structure(again, train[:2][0]), losses, cost, SMALL * size_before.macs).network
    finetune(model)
    finetune(small)
    late, final = values(small, test), values(model, test)
    measured |= {f"small {task}": value for task, value in late.items()}
    measured["small drop"], measured["small macs"] = worst(late, final), cost(small) / size_before.macs
    return {**measured, "no drop": 0.0}


def worst(values: Mapping[str, float], whole: Mapping[str, float]) -> float:
    """The largest relative drop of a task, in percent."""
    return max(100 * (whole[task] - value) / whole[task] for task, value in values.items())


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """The worst task's drop of each arm before and after fine-tuning, and each task's values before; dots are seeds."""
    from matplotlib.figure import Figure

    seeds = list(measurements.values())
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    before, after, tasks = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    for axes, name, title in (
        (before, "drop", "worst task's drop before fine-tuning, %"),
        (after, "tuned drop", "after one epoch, %"),
    ):
        for row, arm in enumerate(ARMS):
            found = [m[f"{arm} {name}"] for m in seeds]
            axes.plot(found, [row] * len(found), ".", color="0.65", markersize=5)
            mean = sum(found) / len(found)
            axes.plot(mean, row, "o", color="#0072b2" if arm == "pagcp" else "#d55e00", markersize=8)
        axes.set_yticks(range(len(ARMS)), list(ARMS.values()) if axes is before else [])
        axes.set_ylim(len(ARMS) - 0.5, -0.5)
        axes.axvline(0, color="0.85", linewidth=1, zorder=0)
        axes.set_title(title, loc="left", fontsize=10)
    for column, (task, colour) in enumerate(zip(TASKS, ("#0072b2", "#56b4e9", "#e69f00"), strict=True)):
        for row, arm in enumerate(ARMS):
            mean = sum(max(m[f"{arm} {task}"], 0.0) for m in seeds) / len(seeds)
            tasks.barh(row + 0.26 * (column - 1), mean, 0.24, color=colour, label=task if row == 0 else None)
    tasks.set_yticks(range(len(ARMS)), [])
    tasks.set_ylim(len(ARMS) - 0.5, -0.5)
    tasks.set_xlim(0, 100)
    tasks.set_title("values before fine-tuning, % (below 0 as 0)", loc="left", fontsize=10)
    figure.legend(*tasks.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    for axes in (before, after, tasks):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Pruned to {SHARE:.0%} of the operations, five ways", fontsize=11, x=0.02, ha="left")
    return figure
