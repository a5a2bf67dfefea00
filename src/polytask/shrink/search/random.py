"""Random search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.shrink.search._strategy import Proposals, Strategy, first_rows, strategies
from polytask.shrink.search.space import Rows, Space


@strategies.add("random")
@dataclass(frozen=True)
class Random(Strategy):
    """Every gene drawn by itself, each option as likely; no network twice.

    Args:
        batch: how many at a time.
    """

    batch: int = 50

    def propose(self, space: Space, start: Rows, random: np.random.Generator) -> Proposals:
        """Until there are no more."""
        known: set[bytes] = set()
        rows = first_rows(space, start, self.batch, random)
        while len(rows):
            known.update(space.keys(rows))
            yield rows
            rows = space.distinct(self.batch, known, random)
