"""Preferences among tasks, for the methods that know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polytask.balance._balancer import GramianWeighting
from polytask.balance.solvers import Array
from polytask.errors import InputError, suggest


class PreferringWeighting(GramianWeighting):
    """A Gramian weighting with a preference among tasks.

    Args:
        preference: a number > 0 for each task; a task that is not named has 1.
    """

    def __init__(self, preference: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.preference = dict(preference or {})
        for name, weight in self.preference.items():
            if not 0 < weight < float("inf"):
                raise InputError(f"preference {weight} for task {name!r}: expected a finite number > 0")

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in self.preference:
            if name not in tasks:
                raise InputError(f"preference names an unknown task {name!r}: {suggest(name, tasks)}")

    def preferences(self, tasks: Iterable[str]) -> Array:
        """The preferences of the tasks of this step, in their order."""
        return np.array([self.preference.get(name, 1.0) for name in tasks])

    def shares(self, tasks: Iterable[str]) -> Array:
        """The preferences, brought to a sum of 1."""
        preferences = self.preferences(tasks)
        shares: Array = preferences / preferences.sum()
        return shares
