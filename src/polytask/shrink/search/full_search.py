"""Full search: predictors fitted once, on many random configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from polytask.shrink.search._evolution import Evolution
from polytask.shrink.search._strategy import Proposals, Strategy, first_rows, strategies
from polytask.shrink.search.linas import fitted, predicted_best
from polytask.shrink.search.nsga2 import NSGA2
from polytask.shrink.search.predictor import Model
from polytask.shrink.search.space import Rows, Space


@strategies.add("full_search")
@dataclass(frozen=True)
class FullSearch(Strategy):
    """Random configurations are measured, predictors fitted on them once, and what a long evolution on the predictors finds
    best is measured in the end: Sarah et al., arXiv 2202.12954, 2022, with 1,000 to 4,000 samples.

    Args:
        samples: how many random configurations; a budget has to exceed it by ``population``.
        population: how many are measured in the end.
        generations: of the evolution.
        inner: the evolution; its population is ``population``.
        models: what predictors are chosen from.
    """

    samples: int = 1000
    population: int = 50
    generations: int = 200
    inner: Evolution = field(default_factory=NSGA2)
    models: Sequence[Model] = ("ridge", "svr")

    def propose(self, space: Space, start: Rows, random: np.random.Generator) -> Proposals:
        """Two batches: ``samples``, and ``population``."""
        inner = replace(self.inner, population=self.population)
        rows = first_rows(space, start, self.samples, random)
        values = yield rows
        whole = ~np.isnan(values).any(1)
        if whole.any():
            predictors = fitted(space, rows[whole], values[whole], self.models)
            known = set(space.keys(rows))
            yield predicted_best(space, predictors, inner, self.generations, self.population, known, random)
