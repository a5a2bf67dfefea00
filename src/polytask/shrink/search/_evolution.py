"""Evolution over rows of a space: tournaments, crossover and mutation of integers; who survives is each method's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask import pareto
from polytask.errors import InputError
from polytask.shrink.search._strategy import Proposals, Strategy, Values, first_rows
from polytask.shrink.search.space import Rows, Space

TRIES = 3
"""So often children may all be known; then the rest of a generation is drawn at random."""


@dataclass(frozen=True)
class Evolution(Strategy):
    """Generations of as many children as parents, of which the best survive. No network is a child twice.

    Parents win binary tournaments by front, then by score. A child has each gene of either parent with even odds, if there
    is a crossover at all, and then mutations, which give a gene another of its options, each as likely. So every option is
    reached alike, the first and the last too, and genes need no order; rounded real numbers would not do that.

    Args:
        population: how many survive.
        crossover: the probability that a child has two parents.
        mutation: the probability that a gene mutates; by default one over the population.
    """

    population: int = 50
    crossover: float = 0.9
    mutation: float | None = None

    def __post_init__(self) -> None:
        if self.population < 2 or not 0 <= self.crossover <= 1 or not 0 <= (self.mutation or 0) <= 1:
            raise InputError(f"{self}: expected a population of at least 2, and probabilities between 0 and 1")

    @abstractmethod
    def scores(self, values: Values, fronts: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        """``(N,)``: within its front, how much each of the points in ``fronts`` is worth keeping; higher is better."""

    def survive(self, values: Values, count: int) -> NDArray[np.intp]:
        """Indices of the ``count`` best rows, the best first: whole fronts, and of the last one the best scores."""
        fronts = pareto.fronts(values, count)
        scores = self.scores(values, fronts)
        return np.concatenate([front[np.argsort(-scores[front], kind="stable")] for front in fronts])[:count]

    def propose(self, space: Space, start: Rows, random: np.random.Generator) -> Proposals:
        """A first generation of ``start`` and random rows, then one after the other."""
        children = first_rows(space, start, self.population, random)
        known: set[bytes] = set()
        rows, values = children[:0], None
        while len(children):
            known.update(space.keys(children))
            found = yield children
            whole = ~np.isnan(found).any(1)
            rows = np.concatenate([rows, children[whole]])
            values = found[whole] if values is None else np.concatenate([values, found[whole]])
            if len(rows):
                kept = self.survive(values, self.population)
                rows, values = rows[kept], values[kept]
            children = self._children(space, rows, known, random)

    def _children(self, space: Space, parents: Rows, known: Collection[bytes], random: np.random.Generator) -> Rows:
        """As many as the population has room for; ``parents`` are in the order of their worth."""
        children = parents[:0]
        for _ in range(TRIES if len(parents) else 0):
            children = np.concatenate([children, self._bred(space, parents, random)])
            fresh = {key: place for place, key in enumerate(space.keys(children)) if key not in known}
            children = children[list(fresh.values())[: self.population]]
            if len(children) == self.population:
                return children
        drawn = space.distinct(self.population - len(children), {*known, *space.keys(children)}, random)
        return np.concatenate([children, drawn])

    def _bred(self, space: Space, parents: Rows, random: np.random.Generator) -> Rows:
        count, genes = 3 * self.population, len(space.names)  # most are known once a population has settled
        one, other = random.integers(0, len(parents), (2, 2, count)).min(0)  # the better of two, twice
        crossed = random.random((count, 1)) < self.crossover
        mutation = 1 / self.population if self.mutation is None else self.mutation
        # One number for each gene decides: its first bit from which parent, the rest whether it mutates, and to what.
        drawn = 2 * random.random((count, genes))
        rows: Rows = np.where(crossed & (drawn >= 1), parents[other], parents[one])
        drawn %= 1
        child, gene = np.nonzero((drawn < mutation) & (space.sizes > 1))
        sizes = space.sizes[gene]
        steps = 1 + (drawn[child, gene] / mutation * (sizes - 1)).astype(np.int64) if len(gene) else gene
        rows[child, gene] = (rows[child, gene] + steps) % sizes
        return rows
