"""Six tasks with little data: separate networks, hard sharing, and networks out of one generator, by its strategy.

Each task has 150 training images of 14 x 14 pixels. A network is a perceptron, 196-64-10: one for each task by itself; with
a hidden layer that all tasks share; or generated whole, out of an embedding of 16 by hidden layers of [100, 100], in the
review's four ways. All train for `EPOCHS` epochs by Adam. Each has three trials, of which 500 validation images of each task
choose: learning rates, `RATES`, and for generators, which need lower ones, an activation too, `TRIALS`; with ReLU, the
review's default, chunk-wise generation does not train at rates at which the others do. (On one seed a fourth was tried, of
``0.1``, and of tanh with ``3e-3``, and was chosen for none.) 1,000 test images of each task are reported. The budgets of
epochs and trials are equal, those of parameters are not: they are reported, as ``METHOD parameters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.data.mixture import Mixture
from polytask.papers.hypernets.glyphs import PIXELS, Glyphs, Part, accuracy, count, perceptron
from polytask.papers.hypernets.reviewed import STRATEGIES, reviewed
from polytask.scope import current, task_scope
from polytask.share.hypernetwork import Tasks
from polytask.training import fit

SIZES: dict[Part, int] = {"train": 150, "validation": 500, "test": 1000}
EPOCHS, BATCH = 25, 25
RATES = (3e-3, 1e-2, 3e-2)
TRIALS = (("relu", 3e-4), ("tanh", 3e-4), ("tanh", 1e-3))


def generated(tasks: tuple[str, ...], strategy: str, activation: str) -> nn.Module:
    """One network for each task out of a generator."""
    _, body = STRATEGIES[strategy]
    return reviewed(perceptron(), Tasks(tasks), strategy, replace(body, activation=activation))


class ByTask(nn.Module):
    """Features that all tasks share (or nothing), and a module for each task, as the task scope says.

    Args:
        shared: from images to features.
        own: for each task, from features to ``(N, 10)``.
    """

    def __init__(self, shared: nn.Module, own: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.shared, self.tasks, self.own = shared, tuple(own), nn.ModuleList(own.values())

    def forward(self, images: Tensor) -> Tensor:
        scope = current()
        assert scope is not None and scope.index is not None
        features, index = self.shared(images), scope.index
        each = [self.own[self.tasks.index(name)](features[index == i]) for i, name in enumerate(scope.names)]
        return torch.cat(each)  # the examples of a batch are in the order of its tasks


def separate(tasks: tuple[str, ...]) -> nn.Module:
    """A network for each task."""
    return ByTask(nn.Identity(), {task: perceptron() for task in tasks})


def hard(tasks: tuple[str, ...]) -> nn.Module:
    """One hidden layer, and a linear classifier for each task."""
    shared = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 64), nn.ReLU())
    return ByTask(shared, {task: nn.Linear(64, 10) for task in tasks})


def trials(tasks: tuple[str, ...]) -> dict[str, list[tuple[Callable[[], nn.Module], float]]]:
    """By a method's name its trials: what builds the network, and the learning rate."""
    every: dict[str, list[tuple[Callable[[], nn.Module], float]]] = {}
    for build in (separate, hard):
        every[build.__name__] = [(partial(build, tasks), lr) for lr in RATES]
    for strategy in STRATEGIES:
        every[strategy] = [(partial(generated, tasks, strategy, activation), lr) for activation, lr in TRIALS]
    return every


class Mixed(nn.Module):
    """Trains a network of all tasks in one pass for each batch, in which the tasks are mixed (`polytask.model.Losses`)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def outputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits by task of each task's images."""
        sizes = [len(images) for images in batch.values()]
        index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        with task_scope(list(batch), index):
            logits = self.network(torch.cat(list(batch.values())))
        return dict(zip(batch, torch.split(logits, sizes), strict=True))

    def losses(self, batch: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """The cross-entropy of each task."""
        outputs = self.outputs({task: images for task, (images, _) in batch.items()})
        return {task: F.cross_entropy(outputs[task], labels) for task, (_, labels) in batch.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.parameters()

    @torch.no_grad()
    def accuracy(self, data: Mapping[str, tuple[Tensor, Tensor]]) -> float:
        """The mean over tasks, in percent."""
        outputs = self.outputs({task: images for task, (images, _) in data.items()})
        each = [accuracy(outputs[task], labels) for task, (_, labels) in data.items()]
        return sum(each) / len(each)


def measure_sharing(seed: int, data: Path) -> Measurements:
    """``METHOD accuracy``, the mean over tasks on test data, with the rate ``METHOD lr``; and ``METHOD parameters``."""
    glyphs = Glyphs(data, seed)
    parts = {part: {task: glyphs.part(task, part, size) for task in glyphs.tasks} for part, size in SIZES.items()}
    examples = {task: Examples(images, {task: labels}) for task, (images, labels) in parts["train"].items()}
    measured: dict[str, float] = {}
    for method, several in trials(glyphs.tasks).items():
        tried = []
        for build, lr in several:
            torch.manual_seed(seed)
            model = Mixed(build())
            mixture = Mixture(examples, tasks_per_step="all", batch_size=BATCH, seed=seed)
            fit(model, mixture, epochs=EPOCHS, lr=lr, seed=seed)
            tried.append((model.accuracy(parts["validation"]), model.accuracy(parts["test"]), lr, float(count(model))))
        _, *best = max(tried, key=lambda trial: trial[0])
        names = ("accuracy", "lr", "parameters")
        measured |= {f"{method} {what}": value for what, value in zip(names, best, strict=True)}
    return measured
