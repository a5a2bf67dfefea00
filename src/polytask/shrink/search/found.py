"""What a search found: every configuration that was evaluated, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask import pareto
from polytask.errors import InputError, suggest
from polytask.shrink.search.nsga2 import NSGA2
from polytask.shrink.search.space import Configuration

Direction: TypeAlias = Literal["lower", "higher"]


@dataclass(frozen=True)
class Trial:
    """One evaluation.

    Attributes:
        configuration: what was evaluated.
        values: every number that came back, by name; empty if it failed.
        error: why it failed; empty if it did not.
    """

    configuration: Configuration
    values: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True)
class Found:
    """The trials of a search.

    Attributes:
        objectives: by name, which direction is better.
        trials: all of them, in the order in which they were asked for.
    """

    objectives: Mapping[str, Direction]
    trials: list[Trial]

    @property
    def measured(self) -> list[Trial]:
        """The trials that did not fail."""
        return [trial for trial in self.trials if not trial.error]

    @property
    def failed(self) -> list[Trial]:
        """The trials that did."""
        return [trial for trial in self.trials if trial.error]

    def values(self) -> NDArray[np.float64]:
        """``(N, M)``: the objectives of what was measured, signed so that lower is better."""
        return signed([trial.values for trial in self.measured], self.objectives)

    def front(self) -> list[Trial]:
        """The trials that no other dominates, by the first objective; of equal ones the first."""
        values = self.values()
        if not len(values):
            return []
        best = pareto.fronts(values, 1)[0]
        _, first = np.unique(values[best], axis=0, return_index=True)
        return [self.measured[i] for i in best[first]]

    def best(self, count: int) -> list[Configuration]:
        """At most ``count`` configurations, by front and then by crowding: a start for a search in another setting."""
        values = self.values()
        if not len(values):
            return []
        return [self.measured[i].configuration for i in NSGA2().survive(values, count)]

    def hypervolume(self, reference: Mapping[str, float], trials: int | None = None) -> float:
        """How much of the space of objectives is covered, see `polytask.pareto.hypervolume`.

        Args:
            reference: for each objective the worst value that counts. Fix it before you look, and for all that is compared.
            trials: of only the first so many; failed ones count among them.
        """
        for name in self.objectives:
            if name not in reference:
                raise InputError(f"no reference for {name!r}: {suggest(name, reference)}")
        measured = [trial.values for trial in self.trials[:trials] if not trial.error]
        worst = signed([reference], self.objectives)[0]
        return pareto.hypervolume(-signed(measured, self.objectives), (-worst).tolist())


def signed(values: list[Mapping[str, float]], objectives: Mapping[str, Direction]) -> NDArray[np.float64]:
    """``(N, M)``, lower is better."""
    signs = {name: 1.0 if direction == "lower" else -1.0 for name, direction in objectives.items()}
    rows = [[sign * each[name] for name, sign in signs.items()] for each in values]
    return np.array(rows, dtype=np.float64).reshape(-1, len(signs))
