"""LINAS: search by predictors that are fitted anew after every batch of measurements."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from polytask.errors import InputError
from polytask.shrink.search._evolution import Evolution
from polytask.shrink.search._strategy import Proposals, Strategy, Values, drive, first_rows, strategies
from polytask.shrink.search.nsga2 import NSGA2
from polytask.shrink.search.predictor import Model, Predictor
from polytask.shrink.search.space import Rows, Space


@strategies.add("linas")
@dataclass(frozen=True)
class LINAS(Strategy):
    """Lightweight iterative neural architecture search: Sarah et al., *A hardware-aware system for accelerating deep neural
    network optimization*, arXiv 2202.12954, 2022, Algorithm 1, where it is called ConcurrentNAS.

    A batch is measured; a predictor for each objective is fitted on all measurements so far; evolution on the predictors
    alone, from a random population, proposes the next batch: the best that it came across, by front and crowding. The paper
    takes evolution's last population, of which some may have been measured before; here what was measured is passed over, so
    that no measurement is spent twice.

    Args:
        population: the size of a batch, and of the inner population; 50 is the paper's, 125 for its Transformer.
        generations: of the inner evolution; the paper has more than 200.
        inner: the inner evolution; its population is ``population``.
        models: what predictors are chosen from.
    """

    population: int = 50
    generations: int = 200
    inner: Evolution = field(default_factory=NSGA2)
    models: Sequence[Model] = ("ridge", "svr")

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise InputError(f"{self.generations} inner generations, expected at least 1")

    def propose(self, space: Space, start: Rows, random: np.random.Generator) -> Proposals:
        """Batches of ``population``, of which the first is ``start`` and random rows."""
        inner = replace(self.inner, population=self.population)
        rows = first_rows(space, start, self.population, random)
        measured: list[Rows] = []
        values: list[Values] = []
        known: set[bytes] = set()
        while len(rows):
            known.update(space.keys(rows))
            found = yield rows
            whole = ~np.isnan(found).any(1)
            measured.append(rows[whole])
            values.append(found[whole])
            if sum(map(len, values)):
                predictors = fitted(space, np.concatenate(measured), np.concatenate(values), self.models)
                rows = predicted_best(space, predictors, inner, self.generations, self.population, known, random)
            else:
                rows = space.distinct(self.population, known, random)


def fitted(space: Space, rows: Rows, values: Values, models: Sequence[Model]) -> list[Predictor]:
    """A predictor for each objective."""
    features = space.features(rows)
    return [Predictor(models).fit(features, column) for column in values.T]


def predicted_best(
    space: Space,
    predictors: Sequence[Predictor],
    inner: Evolution,
    generations: int,
    count: int,
    known: Collection[bytes],
    random: np.random.Generator,
) -> Rows:
    """Of all that evolution on the predictors comes across, the ``count`` best that are not ``known``."""

    def predicted(rows: Rows) -> Values:
        features = space.features(rows)
        return np.stack([predictor(features) for predictor in predictors], 1)

    nothing = np.empty((0, len(space.names)), dtype=np.int64)
    rows, values = drive(inner.propose(space, nothing, random), predicted, generations)
    new = np.array([key not in known for key in space.keys(rows)])
    rows, values = rows[new], values[new]
    best: Rows = rows[inner.survive(values, count)] if len(rows) else rows
    if len(best) == count:
        return best
    return np.concatenate([best, space.distinct(count - len(best), {*known, *space.keys(best)}, random)])
