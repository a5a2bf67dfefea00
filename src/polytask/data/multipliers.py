"""Multipliers of data sets: how often each is passed through in an epoch, less often once it no longer gains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polytask.data.sampling import Goal, History, Sampling, validated
from polytask.errors import InputError, suggest


@dataclass(frozen=True)
class Multipliers(Sampling):
    """``floor(n_k m_k)`` turns in each round of a mixture; ``m_k`` halves while task ``k`` does not improve.

    A validation is bad for a task if its metric is not better than the mean of the last ``window`` before it. After more
    than ``patience`` bad ones in a row ``m_k`` becomes ``max(least_k, m_k / 2)``, and the count begins anew. It takes effect
    with the next epoch. Liu et al., *One for all: towards training one graph model for all classification tasks*, ICLR 2024,
    whose code has a window and a patience of 3; whether theirs have to be in a row is not known.

    Sizes are in batches, as all sizes of a mixture are: with ``batch_size=1`` and as many ``turns`` in a step as its batch
    shall have samples, they are in samples, as in the paper.

    Args:
        multipliers: ``m_k`` at the start by task, > 0; 2.0 passes twice through a source in each round.
        least: what no multiplier falls below, one number or one for each task; a multiplier that starts below it stays.
        goals: for each task, or one for all, the validation metric and whether higher is better, which
            ``Goal("accuracy", above=inf)`` says; a task without keeps its multiplier. By default none has any.
        patience: bad validations in a row that do nothing yet, >= 0.
        window: validations that the next is compared with the mean of, >= 1.

    >>> rule = Multipliers({"a": 0.7, "b": 2.5}, least=0.2, goals=Goal("auc", above=math.inf), patience=1)
    >>> rule.weights({"a": 10, "b": 3}, 0, ())
    {'a': 7.0, 'b': 7.0}
    >>> flat = [{"epoch": k, "validation": {"a": {"auc": 0.8}, "b": {"auc": 0.5 + k / 10}}} for k in range(3)]
    >>> rule.weights({"a": 10, "b": 3}, 3, flat)
    {'a': 3.0, 'b': 7.0}
    """

    multipliers: Mapping[str, float]
    least: Mapping[str, float] | float = 0.1
    goals: Goal | Mapping[str, Goal] | None = None
    patience: int = 3
    window: int = 3

    dealt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in self.multipliers.items():
            if not 0 < value < math.inf:
                raise InputError(f"multiplier {value} of task {name!r}, expected a number > 0")
        if self.patience < 0 or self.window < 1:
            raise InputError(f"patience {self.patience} and window {self.window}, expected >= 0 and >= 1")
        for given in (self.least, self.goals):
            for name in given if isinstance(given, Mapping) else ():
                if name not in self.multipliers:
                    raise InputError(f"a setting for a task without multiplier, {name!r}: {suggest(name, self.multipliers)}")

    def metrics(self) -> dict[str, str]:
        return {name: goal.metric for name, goal in self._goals().items()}

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        for name in sizes:
            if name not in self.multipliers:
                raise InputError(f"no multiplier for the task {name!r}, expected one for each of {list(sizes)}")
        return {name: float(math.floor(size * self.multiplier(name, history))) for name, size in sizes.items()}

    def multiplier(self, name: str, history: History) -> float:
        """``m_k`` of a task after these records."""
        start = value = self.multipliers[name]
        goal = self._goals().get(name)
        if goal is None:
            return value
        least = min(start, self.least[name] if isinstance(self.least, Mapping) else self.least)
        past: list[float] = []
        bad = 0
        for record in history:
            found = validated(record, name, goal.metric)
            before = past[-self.window :]
            if before:
                bad = 0 if goal.better(found, sum(before) / len(before)) else bad + 1
            if bad > self.patience:
                value, bad = max(least, value / 2), 0
            past.append(found)
        return value

    def _goals(self) -> dict[str, Goal]:
        if self.goals is None:
            return {}
        return dict.fromkeys(self.multipliers, self.goals) if isinstance(self.goals, Goal) else dict(self.goals)
