"""Search where the whole table is known: three tasks on three devices, among the cells of NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytask.claim import Measurements
from polytask.papers._nasbench201 import CELLS, EDGES, cells
from polytask.shrink.search import Distributions, FoundByTask, Goal, MultiTaskReinforce, Random, search, search_tasks
from polytask.shrink.search.goal import objectives
from polytask.shrink.search.space import Configuration, Rows

FILES = (CELLS,)
DEVICES = {"cifar10": "raspi4", "cifar100": "eyeriss", "imagenet16": "1080ti_256"}
"""Each task is to run on a device of its own."""
QUANTILE = 0.3
"""As fast as three in ten of all cells on this device."""
WEIGHT = 5.0
"""A latency twice the target costs five standard deviations of accuracy."""
BUDGET = 300
"""Evaluations of a cell; one gives the accuracies for all tasks and the latencies on all devices."""


class Unweighed(MultiTaskReinforce):
    """Every task takes the shared samples as if they were its own."""

    def ratios(self, rows: Rows) -> Tensor:
        return torch.ones(len(self.distributions.tasks), len(rows))


class Joint(MultiTaskReinforce):
    """One distribution for all tasks, of which the mean reward counts."""

    def gradient(self, rows: Rows, ratios: Tensor, advantages: Tensor) -> Tensor:
        each = super().gradient(rows, ratios, advantages)
        return each.mean(0).expand_as(each)


ARMS = {
    "one run": "one run, weighed",
    "separate": "a run for each task",
    "unweighed": "one run, not weighed",
    "joint": "one distribution for all",
    "random": "random search",
}
SETTINGS: Mapping[str, Mapping[str, tuple[int, float]]] = {
    "": {"one run": (9, 2.0), "separate": (9, 4.0), "unweighed": (15, 2.0), "joint": (9, 1.0)},
    " best": {"one run": (15, 4.0), "separate": (15, 4.0), "unweighed": (9, 2.0), "joint": (9, 4.0)},
}
"""Samples in a batch and the length of a step. Of 9, 15 and 24 samples and lengths of 0.5, 1, 2 and 4 for each arm those of
the least mean regret over seeds 100 to 107: of the most probable cells, and of the best measured."""
KINDS: Mapping[str, type[MultiTaskReinforce]] = {"unweighed": Unweighed, "joint": Joint}


class Table:
    """All cells; what a task gets from one is its accuracy, less the penalty for being too slow on its device."""

    def __init__(self, data: Path) -> None:
        table = cells(data)
        numbers = [f"acc_{task}" for task in DEVICES] + [f"lat_{device}" for device in DEVICES.values()]
        rows = table.select(numbers).rows(named=True)
        self.cells: dict[str, dict[str, float]] = dict(zip(table["arch"], rows, strict=True))
        self.goals = {
            task: Goal(
                f"acc_{task}",
                cost=f"lat_{device}",
                target=float(np.quantile(table[f"lat_{device}"].to_numpy(), QUANTILE)),
                weight=WEIGHT,
            )
            for task, device in DEVICES.items()
        }
        self.deviations = {task: float(np.std(table[f"acc_{task}"].to_numpy())) for task in DEVICES}
        self.optima = {task: max(self.reward(task, cell) for cell in rows) for task in DEVICES}

    def __call__(self, configuration: Configuration) -> dict[str, float]:
        return self.cells["".join(configuration.values())]

    def reward(self, task: str, cell: Mapping[str, float]) -> float:
        """In percentage points of accuracy."""
        goal = self.goals[task]
        return goal.value(cell) - self.deviations[task] * goal.penalty(cell)

    def regret(self, task: str, configuration: Configuration) -> float:
        """How much more the best cell of the table gives."""
        return self.optima[task] - self.reward(task, self(configuration))


def run(table: Table, arm: str, seed: int, budget: int, samples: int, lr: float) -> dict[str, dict[str, float]]:
    """The regret by task of the most probable cells, ``""``, and of the best that were measured, ``" best"``."""

    def searched(goals: Mapping[str, Goal], budget: int) -> FoundByTask:
        kind = KINDS.get(arm, MultiTaskReinforce)
        reinforce = kind(Distributions(EDGES, goals), samples=samples, lr=lr)
        return search_tasks(EDGES, table, goals, budget=budget, reinforce=reinforce, seed=seed)

    if arm == "random":
        trials = search(EDGES, table, objectives(table.goals), budget=budget, strategy=Random(budget), seed=seed).trials
        best = {task: goal.best(trials).configuration for task, goal in table.goals.items()}
        probable: Mapping[str, Configuration] = best
    else:
        parts = [{task: goal} for task, goal in table.goals.items()] if arm == "separate" else [table.goals]
        found = [searched(part, budget // len(parts)) for part in parts]
        best = {task: trial.configuration for each in found for task, trial in each.chosen.items()}
        probable = {task: configuration for each in found for task, configuration in each.probable.items()}
    chosen = {"": probable, " best": best}
    return {what: {task: table.regret(task, each[task]) for task in table.goals} for what, each in chosen.items()}


def measure_cells(seed: int, data: Path) -> Measurements:
    """Regrets in percentage points of accuracy: ``"cells ARM"``, the mean over tasks of the most probable cells, and
    ``"cells ARM best"`` of the best measured, each with the settings chosen for it; and by task, ``"cells ARM TASK"``."""
    table = Table(data)
    measured: dict[str, float] = {}
    for arm in ARMS:
        for what, settings in SETTINGS.items():
            found = run(table, arm, seed, BUDGET, *settings.get(arm, (1, 1.0)))[what]
            measured |= {f"cells {arm} {task}{what}": value for task, value in found.items()}
            measured[f"cells {arm}{what}"] = float(np.mean(list(found.values())))
    return measured
