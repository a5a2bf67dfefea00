"""The protocol: adapters of all tasks, then ways of putting them together for a scarce one, at equal steps.

The rich tasks' adapters are there (`rich_adapters`); a seed draws the scarce tasks' rows. Stage one trains an adapter for
each scarce task. Stage two takes all five as sources, and learns under a new head how a scarce task puts them together. Every
run is `STEPS` steps of `BATCH` rows, and keeps its best weights on validation data; the joint adapter, which has learnt the
rich tasks together, goes on with all five in one run, for five times as many. Heads have one learning rate. That of a method
is the best of `GRID` on validation data of other files (`tune`), so that no row of the claims has chosen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from polytask.claim import Measurements
from polytask.papers.scalearn.sources import ADAPTER, load_adapters, rich_adapters
from polytask.papers.scalearn.texts import TUNING_FILES, WHERE, LastBlocks, Split, rich, scarce
from polytask.share import AdapterFusion, ScaLearn, insert

STEPS, BATCH = 48, 16
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

METHODS: dict[str, ScaLearn | AdapterFusion] = {
    "scalearn": ScaLearn(),
    "uniform": ScaLearn("scalar"),
    "scalearn++": ScaLearn(per="model"),
    "uniform++": ScaLearn("scalar", "model", dropout=0),
    "fusion": AdapterFusion(),
}
RATES: dict[str, float] = dict.fromkeys(("adapter", "joint", *METHODS), 3e-3)
"""What `tune` finds."""

Part = Literal["validation", "test"]
Scores = dict[str, float]


def measure(seed: int, data: Path) -> Measurements:
    """Accuracies on the scarce tasks in percent: ``METHOD on TASK``, and the mean of both, ``METHOD``.

    Beside `METHODS` there are ``adapter``, the task's own alone; ``joint``, one adapter of all tasks; ``mean``, the even
    average of the adapters' outputs; and ``encoder``, without any of them.
    """
    splits = scarce(data, seed)
    runs = Runs(splits, rich(data), rich_adapters(data), seed)
    scores = {"adapter": runs.adapters(RATES["adapter"])}
    scores |= {name: runs.targets(method, RATES[name]) for name, method in METHODS.items()}
    scores |= {"mean": runs.even(1 / len(runs.sources)), "encoder": runs.even(0.0), "joint": runs.joint(RATES["joint"])}
    measured = {f"{name} on {task}": value for name, of in scores.items() for task, value in of.items()}
    return measured | {name: sum(of.values()) / len(of) for name, of in scores.items()}


def tune(data: Path, seed: int = 0) -> dict[str, dict[float, float]]:
    """For each method and each rate of `GRID` the mean validation accuracy, on scarce tasks drawn from other files.

    Stage two stands on adapters trained at the best of their rates.
    """
    runs = Runs(scarce(data, seed, TUNING_FILES), rich(data), rich_adapters(data), seed, "validation")
    mean = {name: dict.fromkeys(GRID, 0.0) for name in RATES}

    def note(name: str, rate: float, scores: Scores) -> None:
        mean[name][rate] = sum(scores.values()) / len(scores)

    for rate in GRID:
        note("joint", rate, runs.joint(rate))
        note("adapter", rate, runs.adapters(rate))
    runs.adapters(max(GRID, key=mean["adapter"].__getitem__))
    for name, method in METHODS.items():
        for rate in GRID:
            note(name, rate, runs.targets(method, rate))
    return mean


class Runs:
    """The runs of a seed, on one encoder; each gives by scarce task the accuracy of its best weights, in percent.

    Args:
        targets: the scarce tasks.
        others: the rich ones.
        trained: their adapters' tensors, see `rich_adapters`.
        seed: of all that is drawn.
        part: of the data that is scored.
    """

    def __init__(
        self,
        targets: Mapping[str, Split],
        others: Mapping[str, Split],
        trained: dict[str, torch.Tensor],
        seed: int,
        part: Part = "test",
    ) -> None:
        self.targets, self.splits, self.trained = tuple(targets), {**targets, **others}, trained
        self.seed, self.part = seed, part
        torch.manual_seed(seed)
        self.encoder = LastBlocks()
        self.sources = insert(self.encoder, ADAPTER, tuple(self.splits), WHERE)
        load_adapters(self.sources, trained)

    def adapters(self, rate: float) -> Scores:
        """Stage one: each scarce task's adapter, from a new start."""
        torch.manual_seed(self.seed)
        new = insert(self.encoder, ADAPTER, self.targets, WHERE, name="new")
        load_adapters(self.sources, new.state_dict())
        new.remove()
        self.sources.freeze()
        return {task: self._fit(self.encoder, [task], rate)[task] for task in self.targets}

    def targets_(self) -> None: ...
