"""What a strategy of searching is: a generator of rows to evaluate, which is sent their values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask.register import Register
from polytask.shrink.search.space import Rows, Space

Values: TypeAlias = NDArray[np.float64]
"""``(N, M)`` objectives, lower is better; rows of NaN failed."""

Proposals: TypeAlias = Generator[Rows, Values, None]


class Strategy(ABC):
    """The settings of a strategy; the strategy itself is the generator that `propose` makes."""

    @abstractmethod
    def propose(self, space: Space, start: Rows, random: np.random.Generator) -> Proposals:
        """Yields rows of ``space`` and is sent their values, until it has no more to ask.

        Args:
            space: where to search.
            start: ``(N, G)``, rows to ask for first; there may be none.
            random: all that is random; together with the values it decides what is yielded.
        """


strategies: Register[type[Strategy]] = Register("search strategy")
"""The strategies by name, with their defaults."""


def first_rows(space: Space, start: Rows, count: int, random: np.random.Generator) -> Rows:
    """The rows of ``start``, and as many drawn ones as make them ``count`` different networks."""
    start = space.filled(start, random)
    keys = space.keys(start)
    kept = [place for place, key in enumerate(keys) if keys.index(key) == place]
    return np.concatenate([start[kept], space.distinct(max(0, count - len(kept)), set(keys), random)])


def drive(proposals: Proposals, values_of: Callable[[Rows], Values], batches: int) -> tuple[Rows, Values]:
    """All that is proposed in so many batches, and its values."""
    asked, found = [], []
    rows = next(proposals)
    for _ in range(batches):
        values = values_of(rows)
        asked.append(rows)
        found.append(values)
        try:
            rows = proposals.send(values)
        except StopIteration:
            break
    return np.concatenate(asked), np.concatenate(found)
