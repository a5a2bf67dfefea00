"""The protocol: adapters of all tasks, then ways of putting them together for a scarce one.

The rich tasks' adapters are there (`rich_adapters`); a seed draws the scarce tasks' rows. Stage one trains an adapter for
each scarce task, in `STEPS` steps of `BATCH` rows. Stage two takes all five as sources, and learns under a new head, in as
many steps, how a scarce task puts them together. The adapter that it is compared to has the steps of both stages; the joint
adapter, which has learnt the rich tasks together, goes on with all five in one run of five times `STEPS`, more than both
scarce tasks take otherwise. Every run keeps its best weights on validation data. Heads have one learning rate. That of a
method is the best of `GRID` on rows of other files (`tune`), so that no row of the claims has chosen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.model import Model
from polytask.papers.scalearn.sources import As, load_adapters, rich_adapters, task_adapter, train
from polytask.papers.scalearn.texts import TUNING_FILES, WHERE, LastBlocks, Split, rich, scarce
from polytask.share import AdapterFusion, Inserted, ScaLearn, insert, transferred
from polytask.training import evaluate

STEPS, BATCH = 48, 16
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

VARIANTS = {
    "scalearn": ScaLearn(),
    "uniform": ScaLearn("scalar"),
    "scalearn++": ScaLearn(per="model"),
    "uniform++": ScaLearn("scalar", "model", dropout=0),
}
"""The paper's four: a vector or a number for each source, in each layer or for the whole model."""

METHODS: dict[str, ScaLearn | AdapterFusion] = {**VARIANTS, "fusion": AdapterFusion()}

RATES = {
    "adapter": 1e-2,
    "joint": 3e-3,
    "scalearn": 3e-2,
    "uniform": 3e-2,
    "scalearn++": 3e-2,
    "uniform++": 1e-2,
    "fusion": 3e-4,
}
"""What `tune` chose."""

Scores: TypeAlias = dict[str, float]


def measure(seed: int, data: Path) -> Measurements:
    """Test accuracies on the scarce tasks in percent: ``METHOD on TASK``, and the mean of both, ``METHOD``.

    Beside `METHODS` there are ``adapter``, the task's own alone; ``joint``, one adapter of all tasks; ``mean``, the even
    average of the adapters' outputs; and ``encoder``, without any of them. Also how many parameters a method learns for a
    task beside its head, ``METHOD parameters``, and how much of each source is in a task: ``TASK takes SOURCE``, the
    coefficient of ``uniform``, the mean over layers.
    """
    runs = Runs(scarce(data, seed), rich(data), rich_adapters(data), seed)
    scores = {"joint": runs.joint(RATES["joint"]), "adapter": runs.adapters(RATES["adapter"], 2 * STEPS)}
    runs.adapters(RATES["adapter"])
    facts = dict.fromkeys(("adapter parameters", "joint parameters"), _numel(runs.sources))
    for name, method in METHODS.items():
        scores[name], learnt = runs.transfers(method, RATES[name])
        facts[f"{name} parameters"] = _numel(learnt)
        if name == "uniform":
            facts |= _takes(learnt)
    scores |= {"mean": runs.fixed(1 / len(runs.splits)), "encoder": runs.fixed(0.0)}
    measured = {f"{name} on {task}": value for name, of in scores.items() for task, value in of.items()}
    return measured | {name: _mean(of) for name, of in scores.items()} | facts


def tune(data: Path, seed: int = 0) -> dict[str, dict[float, float]]:
    """For each method and each rate of `GRID` its mean accuracy on scarce tasks that are drawn from other files.

    Stage two stands on adapters trained at the best of their rates.
    """
    runs = Runs(scarce(data, seed, TUNING_FILES), rich(data), rich_adapters(data), seed)
    found = {"adapter": {rate: _mean(runs.adapters(rate, 2 * STEPS)) for rate in GRID}}
    runs.adapters(max(GRID, key=found["adapter"].__getitem__))
    for name, method in METHODS.items():
        found[name] = {rate: _mean(runs.transfers(method, rate)[0]) for rate in GRID}
    return found | {"joint": {rate: _mean(runs.joint(rate)) for rate in GRID}}


class Runs:
    """The runs of a seed; each gives, by scarce task, the test accuracy of its best weights, in percent.

    Args:
        targets: the scarce tasks.
        others: the rich ones.
        trained: their adapters' tensors, see `rich_adapters`.
        seed: of all that is drawn.
    """

    def __init__(
        self, targets: Mapping[str, Split], others: Mapping[str, Split], trained: Mapping[str, Tensor], seed: int
    ) -> None:
        self.targets, self.splits, self.trained, self.seed = targets, {**targets, **others}, trained, seed
        self.encoder = LastBlocks()
        self.sources = insert(self.encoder, task_adapter(self.encoder.width), tuple(self.splits), WHERE)
        load_adapters(self.sources, trained)

    def adapters(self, rate: float, steps: int = STEPS) -> Scores:
        """Stage one: each scarce task's adapter, from a new start; they are among the sources from then on."""
        torch.manual_seed(self.seed)
        encoder = LastBlocks()
        new = insert(encoder, task_adapter(encoder.width), tuple(self.targets), WHERE).freeze()
        scores = {task: self._run(encoder, task, rate, steps) for task in self.targets}
        load_adapters(self.sources, new.state_dict())
        return scores

    def transfers(self, method: ScaLearn | AdapterFusion, rate: float) -> tuple[Scores, Inserted]:
        """Stage two: ``method`` over all sources, for each scarce task; and what it has learnt."""
        torch.manual_seed(self.seed)
        found = transferred(self.sources, method, tuple(self.targets)).freeze()
        scores = {task: self._run(self.encoder, task, rate, STEPS) for task in self.targets}
        found.remove()
        return scores, found

    def fixed(self, coefficient: float) -> Scores:
        """A head on features in which every source has this coefficient; nothing else is learnt."""
        method = ScaLearn("scalar", "model", dropout=0)
        found = transferred(self.sources, method, tuple(self.targets)).freeze()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.fill_(coefficient)
        scores = {}
        for task, split in self.targets.items():
            encoder = As(task, self.encoder).eval()
            parts = {name: _features(encoder, getattr(split, name)) for name in ("train", "validation", "test")}
            scores[task] = self._run(nn.Identity(), task, 0.0, 2 * STEPS, Split(split.task, **parts))
        found.remove()
        return scores

    def joint(self, rate: float) -> Scores:
        """One adapter, which has learnt the rich tasks, goes on with all five."""
        torch.manual_seed(self.seed)
        encoder = As("all", LastBlocks())
        adapter = insert(encoder.encoder, task_adapter(encoder.width), ["all"], WHERE).freeze()
        load_adapters(adapter, self.trained)
        model = Model(encoder, [split.task for split in self.splits.values()])
        train(model, self.splits, STEPS * len(self.splits), BATCH, rate, self.seed, held=self.targets)
        return {task: _accuracy(model, task, split) for task, split in self.targets.items()}

    def _run(self, encoder: nn.Module, task: str, rate: float, steps: int, split: Split | None = None) -> float:
        split = split or self.targets[task]
        torch.manual_seed(self.seed)  # the same head for all methods
        model = Model(encoder, [split.task], width=self.encoder.width)
        train(model, {task: split}, steps, BATCH, rate, self.seed)
        return _accuracy(model, task, split)


def _accuracy(model: Model, task: str, split: Split) -> float:
    return 100 * evaluate(model, {task: split.test})[task]["accuracy"]


@torch.no_grad()
def _features(encoder: nn.Module, examples: Examples) -> Examples:
    rows = range(0, len(examples), 64)
    found = torch.cat([encoder(examples[start : start + 64][0]) for start in rows])
    return Examples(found, examples.targets)


def _numel(inserted: Inserted) -> float:
    return float(inserted.count()[f"task {inserted.tasks[0]}"])


def _takes(learnt: Inserted) -> dict[str, float]:
    """The coefficients of one number for each source, the mean over modules."""
    parts: list[Any] = list(learnt.parts.values())
    names = parts[0].settings.names
    means = {task: torch.stack([part.coefficients[task].detach() for part in parts]).mean(0) for task in learnt.tasks}
    return {f"{task} takes {name}": float(mean[i]) for task, mean in means.items() for i, name in enumerate(names)}


def _mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)
