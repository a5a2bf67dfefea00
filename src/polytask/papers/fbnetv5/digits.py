"""One super-network on real images: three tasks search it in one run, and what each finds is trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polytask.claim import Measurements
from polytask.data import Examples, read_idx_images
from polytask.papers._idx import MNIST
from polytask.papers.fbnetv5.supernet import Costs, MultiPath, ResolutionPath
from polytask.shrink.search import Distributions, Goal, MultiTaskReinforce, OneRun, Validated, choose
from polytask.shrink.search.space import Configuration
from polytask.task import Task
from polytask.training import evaluate, fit

FILES = MNIST
TASKS = {"digit": "accuracy", "ink": "r2", "foreground": "f1"}
"""Which digit, how much of the image is inked, and which pixels are: main metrics, in percent."""
TRAIN, HELD_OUT, TEST = 3000, 384, 2000
"""Images to train on, to choose networks on, and to report on."""
STEPS, WARM_UP, RETRAINED, BATCH, RATE = 360, 120, 140, 32, 2e-2
"""Of a search, those of them for weights alone, and of training from scratch; images a step, and the learning rate."""
SETTINGS: dict[str, Any] = {"batch_size": BATCH, "lr": RATE, "optimizer": partial(torch.optim.AdamW, lr=RATE, foreach=True)}
SHARE = 0.5
"""What a task's network may cost, of the whole network's operations."""
WEIGHT, SAMPLES, LR = 2.0, 12, 2.0
"""Of the cost beyond that, in standard deviations of the loss; and of `MultiTaskReinforce`: the same for all searches."""
FINALS = 4
"""Networks that are measured for each task in the end."""
RANDOM = 5
"""Networks drawn at random for each task, among those that cost about as much as what was found."""
ARMS = {
    "one run": "one run for all tasks",
    "apart": "a run for each task",
    "random": "random, as large",
    "whole": "the whole network",
}


def load(data: Path, seed: int) -> tuple[list[Task], Examples, Examples, Examples]:
    """The tasks; what is trained on, what networks are chosen on, and what is reported."""

    def examples(part: str, places: slice, order: np.ndarray | None = None) -> Examples:
        images, labels = read_idx_images(data / "mnist", (part,))
        chosen = torch.from_numpy(np.arange(len(images)) if order is None else order)[places]
        inked = (images[chosen] > 0.5).float()
        targets = {"digit": labels[chosen], "ink": inked.mean((1, 2)), "foreground": inked}
        return Examples(images[chosen, None], targets)

    order = np.random.default_rng(seed).permutation(10_000)
    train = examples("train10k", slice(TRAIN), order)
    held_out = examples("train10k", slice(TRAIN, TRAIN + HELD_OUT), order)
    tasks = [
        Task.classification("digit", classes=10),
        Task.regression("ink", scale="standard", metric="r2"),
        Task.pixel_binary("foreground", metric="f1"),
    ]
    return [task.fitted(train.targets[task.name]) for task in tasks], train, held_out, examples("t10k", slice(TEST))


def network(tasks: Sequence[Task]) -> MultiPath:
    """Two paths, 14 x 14 and 7 x 7, two modules: nine genes."""
    paths = [ResolutionPath(8, 3, 2, blocks=2), ResolutionPath(16, 5, 2, blocks=2)]
    return MultiPath(tasks, paths, modules=2, channels=1, stem=1, width=16)


def goals_of(costs: Costs) -> dict[str, Goal]:
    """For each task a low loss, at a share of the whole network's operations."""
    return {
        task: Goal(task, "lower", cost=f"{task} macs", target=SHARE * costs()[f"{task} macs"], weight=WEIGHT)
        for task in costs.network.tasks
    }


def searched(tasks: Sequence[Task], train: Examples, held_out: Examples, seed: int) -> dict[str, Configuration]:
    """The network that each of the tasks chooses after one run for all of them."""
    torch.manual_seed(seed)
    supernet = network(tasks)
    costs = Costs(supernet, train.inputs[:1])  # type: ignore[index]
    goals = goals_of(costs)
    reinforce = MultiTaskReinforce(Distributions(supernet.space, goals), samples=SAMPLES, lr=LR)
    fit(OneRun(supernet, reinforce, goals, costs, WARM_UP), train, steps=STEPS, **SETTINGS, seed=seed)
    batches, calibration = ([part[start : start + 128] for start in range(0, HELD_OUT, 128)] for part in (held_out, train))
    measure = Validated(supernet, batches, calibration, costs)
    found = choose(reinforce.distributions, measure, goals, samples=FINALS, costs=costs, seed=seed)
    return {task: trial.configuration for task, trial in found.chosen.items()}


def retrained(
    tasks: Sequence[Task], name: str, configuration: Configuration | None, train: Examples, test: Examples, seed: int
) -> float:
    """The main metric, in percent, of one task's own network, trained from new weights."""
    torch.manual_seed(seed)
    small = network(tasks).extract(configuration, [name])
    fit(small, train.only([name]), steps=RETRAINED, **SETTINGS, seed=seed)
    metrics: Any = evaluate(small, test.only([name]))  # type: ignore[arg-type]
    return 100 * float(metrics[name][TASKS[name]])


def alike(costs: Costs, name: str, configuration: Configuration, random: np.random.Generator) -> list[Configuration]:
    """`RANDOM` other networks that cost this task as much to within a tenth; the nearest where there are fewer."""
    space = costs.network.space
    wanted = costs(configuration)[f"{name} macs"]
    others: dict[tuple[str, ...], Configuration] = {}  # by the parts that run: each network once
    for row in space.distinct(space.size, (), random):
        other = space.configuration(row)
        others.setdefault(tuple(costs.network.used(other)[0]), other)
    del others[tuple(costs.network.used(configuration)[0])]

    def beside(other: Configuration) -> float:
        return max(0.0, abs(costs(other)[f"{name} macs"] / wanted - 1) - 0.1)

    return sorted(others.values(), key=beside)[:RANDOM]


def measure_digits(seed: int, data: Path) -> Measurements:
    """``"ARM TASK"``: each task's metric; ``"ARM"``: their mean, in percent; and ``"ARM macs"``, the mean share of the whole
    network's operations."""
    tasks, train, held_out, test = load(data, seed)
    costs = Costs(network(tasks), train.inputs[:1])  # type: ignore[index]
    random = np.random.default_rng(seed)
    found = {
        "one run": searched(tasks, train, held_out, seed),
        "apart": {task.name: searched([task], train, held_out, seed)[task.name] for task in tasks},
    }
    measured: dict[str, float] = {}
    for name in TASKS:
        others = alike(costs, name, found["one run"][name], random)
        nets: Mapping[str, list[Configuration | None]] = {
            "one run": [found["one run"][name]],
            "apart": [found["apart"][name]],
            "random": [*others],
            "whole": [None],
        }
        for arm, each in nets.items():
            measured[f"{arm} {name}"] = float(
                np.mean([retrained(tasks, name, chosen, train, test, seed) for chosen in each])
            )
            share = [costs(chosen)[f"{name} macs"] / costs()[f"{name} macs"] for chosen in each]
            measured[f"{arm} {name} macs"] = float(np.mean(share))
    for arm in ARMS:
        for what in ("", " macs"):
            measured[arm + what] = float(np.mean([measured[f"{arm} {name}{what}"] for name in TASKS]))
    return measured
