"""Whose turn it is in a mixture: rules that weigh its tasks by size, and curricula that let tasks in and out.

A rule is a pure function of the sizes of the sources, the number of the epoch (the first is 0) and the records of the run up
to the start of that epoch. So an epoch can be repeated, and a run that was killed goes on with the same turns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.errors import InputError, suggest

History = Sequence[Mapping[str, Any]]
"""A run's records, in order: see `polytask.training.Fitted` for what they hold."""


class Sampling(ABC):
    """How often each task's turn comes. Subclass it for a rule of your own.

    Attributes:
        dealt: whether weights are numbers of turns: a mixture then deals so many to each task in random order, again and
            again, where it would draw each turn by itself. False by default.
    """

    dealt: ClassVar[bool] = False

    @abstractmethod
    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        """For each task a weight >= 0, in proportion to which its turns come in this epoch; 0 leaves it out.

        Args:
            sizes: the number of batches of each task's source.
            epoch: the epoch's number, from 0.
            history: the run's records up to the start of the epoch.
        """

    def metrics(self) -> dict[str, str]:
        """The validation metric, by task, that the rule reads from the records. None by default."""
        return {}


@dataclass(frozen=True)
class Temperature(Sampling):
    """``w_k = n_k^(1/T)``: proportional to size at ``T = 1``, uniform at ``T = inf``.

    Arivazhagan et al., *Massively multilingual neural machine translation in the wild*, 2019, with their ``T = 5``.
    """

    temperature: float = 5.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature {self.temperature}, expected a number > 0")

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        return powers(sizes, 1 / self.temperature)


@dataclass(frozen=True)
class Capped(Sampling):
    """``w_k = min(n_k, K)``: proportional to size, but no task counts as larger than the limit.

    Examples-proportional mixing of Raffel et al., *Exploring the limits of transfer learning with a unified text-to-text
    transformer*, JMLR 2020, section 3.5.2. A limit above all sizes is proportional, one below all sizes uniform.

    Args:
        limit: ``K``, > 0, in batches, as all sizes of a mixture are. The paper's is in examples: divide by the batch size.
    """

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise InputError(f"limit {self.limit}, expected a number of batches > 0")

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        return {name: float(min(size, self.limit)) for name, size in sizes.items()}


@dataclass(frozen=True)
class Annealed(Sampling):
    """``w_k = n_k^a`` with ``a = 1 - 0.8 (e - 1) / (E - 1)`` in epoch ``e`` of ``E``: from proportional towards uniform.

    Stickland and Murray, *BERT and PALs: projected attention layers for efficient adaptation in multi-task learning*, ICML
    2019. A single epoch is proportional; epochs after the last keep its ``a = 0.2``.

    Args:
        epochs: ``E``, >= 1: as many as the run has.
    """

    epochs: int

    def __post_init__(self) -> None:
        if not self.epochs >= 1:
            raise InputError(f"annealed over {self.epochs} epochs, expected at least 1")

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        return powers(sizes, 1 - 0.8 * min(epoch / max(self.epochs - 1, 1), 1.0))


def powers(sizes: Mapping[str, int], exponent: float) -> dict[str, float]:
    """``n_k^exponent`` for each task, over the largest of them, so that nothing overflows."""
    largest = max(sizes.values(), default=1)
    return {name: (size / largest) ** exponent for name, size in sizes.items()}


@dataclass(frozen=True, kw_only=True)
class Curriculum(Sampling):
    """A rule that says which tasks take part; among those, turns come by another rule.

    Args:
        sampling: that other rule, or its name; ``"uniform"`` by default.
    """

    sampling: str | Sampling = "uniform"

    def __post_init__(self) -> None:
        if isinstance(as_sampling(self.sampling), Curriculum):
            raise InputError(f"{type(self).__name__} samples by another curriculum, expected a rule by size")

    @abstractmethod
    def tasks(self, names: Collection[str], epoch: int, history: History) -> Collection[str]:
        """The tasks that take part in this epoch, of those with these names."""

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        tasks = self.tasks(sizes, epoch, history)
        part = {name: size for name, size in sizes.items() if name in tasks}
        among = as_sampling(self.sampling).weights(part, epoch, history)
        return {name: among.get(name, 0.0) for name in sizes}


@dataclass(frozen=True)
class AntiCurriculum(Curriculum):
    """Only the hard tasks for the first epochs, then all tasks together.

    McCann et al., *The natural language decathlon: multitask learning as question answering*, 2018, where question answering
    comes first. They take turns round robin; here turns are drawn, by default with equal chances.

    Args:
        hard: the tasks that come first.
        epochs: how long they are alone, >= 1.
        sampling: among the tasks that take part.
    """

    hard: Collection[str]
    epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_stage(self.hard)
        if not self.epochs >= 1:
            raise InputError(f"hard tasks first for {self.epochs} epochs, expected at least 1")

    def tasks(self, names: Collection[str], epoch: int, history: History) -> Collection[str]:
        _check_known(self.hard, names)
        return self.hard if epoch < self.epochs else names


@dataclass(frozen=True)
class Schedule(Curriculum):
    """Sets of tasks by epoch: ``Schedule({0: ["a"], 5: ["a", "b"], 9: ["b"]})``.

    Args:
        stages: for the first epoch of each stage its tasks; one begins at epoch 0, and the last does not end.
        sampling: among the tasks of a stage.
    """

    stages: Mapping[int, Collection[str]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.stages, default=None) != 0:
            raise InputError(f"stages begin at epochs {sorted(self.stages)}, expected the first at 0")
        for stage in self.stages.values():
            _check_stage(stage)

    def tasks(self, names: Collection[str], epoch: int, history: History) -> Collection[str]:
        for stage in self.stages.values():
            _check_known(stage, names)
        return self.stages[max(start for start in self.stages if start <= epoch)]


@dataclass(frozen=True)
class Goal:
    """What a task has to reach on validation data: a metric ``above`` or ``below`` a number.

    Which of the two is given also says what better is. ``above=inf`` and ``below=-inf`` are never reached.
    """

    metric: str
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise InputError(f"goal for {self.metric!r}: expected above= or below=, one of them")

    def reached(self, value: float) -> bool:
        """Whether ``value`` is beyond the number; NaN is not."""
        return value > self.above if self.above is not None else self.below is not None and value < self.below

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``; anything is better than NaN, except NaN."""
        return not math.isnan(value) and (math.isnan(other) or (value > other if self.below is None else value < other))


@dataclass(frozen=True)
class Promotion(Curriculum):
    """The next set of tasks once the present one is good enough, or no longer gets better.

    A stage is over at the first evaluation at which each of its tasks has reached its goal; or, with ``patience``, after so
    many evaluations in a row at which none of them was better than before in this stage. The next stage begins with the next
    epoch: make epochs short with the mixture's ``length``, and evaluate at least once in each.

    Subclasses may ask for something else of a stage: the curricula of `polytask.papers.timescales` ask it of the newest task
    and of the mean.

    Args:
        stages: the sets of tasks in their order; tasks may come and go, and the last stage does not end.
        goals: for each task, or one for all. A task without a goal has no say.
        patience: evaluations without anything better, after which a stage ends short of its goals; ``None`` waits for them.
        sampling: among the tasks of a stage.
    """

    stages: Sequence[Collection[str]]
    goals: Goal | Mapping[str, Goal]
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stages, str) or not self.stages:
            raise InputError(f"stages {self.stages!r}, expected a list of at least one set of tasks")
        for stage in self.stages:
            _check_stage(stage)
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience}, expected at least 1")
        if not isinstance(self.goals, Goal):
            _check_known(self.goals, [name for stage in self.stages for name in stage])
        for stage in self.stages[:-1]:
            if not self._goals(stage):
                raise InputError(f"no goal for any task of stage {list(stage)}, which would not end")

    def _goals(self, stage: Collection[str]) -> dict[str, Goal]:
        goals = dict.fromkeys(stage, self.goals) if isinstance(self.goals, Goal) else self.goals
        return {name: goals[name] for name in stage if name in goals}

    def metrics(self) -> dict[str, str]:
        return {name: goal.metric for stage in self.stages[:-1] for name, goal in self._goals(stage).items()}

    def tasks(self, names: Collection[str], epoch: int, history: History) -> Collection[str]:
        for stage in self.stages:
            _check_known(stage, names)
        return self.stages[self.stage(history)]

    def passed(self, values: Mapping[str, float], goals: Mapping[str, Goal]) -> bool:
        """Whether a stage is over, by its tasks' values at an evaluation: each has reached its goal.

        Override it for a rule of your own; both are in the order of the stage.
        """
        return all(goals[name].reached(value) for name, value in values.items())

    def stage(self, history: History) -> int:
        """The number of the stage, from 0, that a run with these records is in at its next epoch."""
        stage, began, waited = 0, 0, 0
        best: dict[str, float] = {}
        for record in history:
            if stage == len(self.stages) - 1:
                break
            if record["epoch"] <= began:  # evaluated before this stage's first step
                continue
            goals = self._goals(self.stages[stage])
            values = {name: validated(record, name, goal.metric) for name, goal in goals.items()}
            improved = {n: v for n, v in values.items() if goals[n].better(v, best.get(n, math.nan))}
            best |= improved
            waited = 0 if improved else waited + 1
            if waited == self.patience or self.passed(values, goals):
                stage, began, waited, best = stage + 1, math.ceil(record["epoch"]), 0, {}
        return stage


def as_sampling(sampling: str | Sampling, temperature: float = 5.0) -> Sampling:
    """The rule that a name stands for; a rule as it is."""
    named = {"uniform": math.inf, "proportional": 1.0, "temperature": temperature}
    if isinstance(sampling, Sampling):
        return sampling
    if sampling not in named:
        raise InputError(f"unknown sampling {sampling!r}: {suggest(str(sampling), named)}")
    return Temperature(named[sampling])


def validated(record: Mapping[str, Any], name: str, metric: str) -> float:
    """A validation metric of a task in one of a run's records; `InputError` where the record has none."""
    values = record["validation"].get(name, {})
    if metric not in values:
        raise InputError(f"epoch {record['epoch']}: no validation {metric!r} of task {name!r}: {suggest(metric, values)}")
    return float(values[metric])


def _check_stage(stage: Collection[str]) -> None:
    if isinstance(stage, str) or not stage:
        raise InputError(f"a stage of tasks {stage!r}, expected a list of at least one name")


def _check_known(stage: Collection[str], names: Collection[str]) -> None:
    for name in stage:
        if name not in names:
            raise InputError(f"the curriculum names an unknown task {name!r}: {suggest(name, names)}")
