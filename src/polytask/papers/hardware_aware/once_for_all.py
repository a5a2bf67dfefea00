"""Search among the sub-networks of Once-for-All: what 2,162 of them reach on ImageNet, and between them what trees say.

The logs of published searches are one run each. To compare strategies over seeds, a network that was not measured is given
the top-1 that gradient-boosted trees predict, fitted on all that were; trees, so that the predictors of a strategy, a linear
model and a support vector machine, search something that is none of them. The operations are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from polytask.claim import Measurements
from polytask.papers.hardware_aware.architecture import SPACE, Architecture
from polytask.papers.hardware_aware.data import EVALUATIONS, OBJECTIVES, REFERENCE, evaluations, networks
from polytask.shrink.search import LINAS, NSGA2, Found, Random, Space, Strategy, reduce_space, search
from polytask.shrink.search.space import Configuration

FILES = (EVALUATIONS,)
BUDGET = 250
POINTS = (50, 100, 150, 200, 250)
"""Evaluations after which the hypervolume is taken."""
STRATEGIES: dict[str, Strategy] = {"random": Random(), "nsga2": NSGA2(), "linas": LINAS()}
"""With the paper's settings: batches and populations of 50."""
VISITED = 2000
"""Evaluations of the search that PopDB learns from; the paper's are 100,000."""

Evaluate = Callable[[Configuration], dict[str, float]]


def measure_search(seed: int, data: Path) -> Measurements:
    """``"<strategy> at <n>"``, the hypervolume / 1e8 from (70 %, 600 M) after n evaluations, and
    ``"<strategy> evaluations"`` until that of NSGA-II at 250, or 251."""
    searches = {name: _search(seed, data, strategy) for name, strategy in STRATEGIES.items()}
    goal = searches["nsga2"].hypervolume(REFERENCE)
    measured: dict[str, float] = {}
    for name, found in searches.items():
        measured |= {f"{name} at {n}": found.hypervolume(REFERENCE, n) / 1e8 for n in POINTS}
        measured[f"{name} evaluations"] = evaluations_to(found, goal)
    return measured


def measure_popdb(seed: int, data: Path) -> Measurements:
    """NSGA-II's hypervolume / 1e8 after 250 evaluations in the ``"whole"`` space, and in the ``"reduced"`` one that
    PopDB leaves of a longer search; and the decimal logarithms of how many networks they have, ``"<space> size"``."""
    visited = _search(seed, data, STRATEGIES["nsga2"], budget=VISITED)
    reduced = reduce_space(SPACE, [trial.configuration for trial in visited.trials])
    measured: dict[str, float] = {}
    for name, space in (("whole", SPACE), ("reduced", reduced)):
        measured[name] = _search(seed, data, STRATEGIES["nsga2"], space).hypervolume(REFERENCE) / 1e8
        measured[f"{name} size"] = float(np.log10(float(space.size)))
    return measured


def _search(seed: int, data: Path, strategy: Strategy, space: Space = SPACE, budget: int | None = None) -> Found:
    return search(space, surrogate(data), OBJECTIVES, budget=budget or BUDGET, strategy=strategy, seed=seed)


def evaluations_to(found: Found, goal: float) -> int:
    """After how many evaluations a hypervolume is reached; one more than there were if it is not."""
    low, high = 0, len(found.trials) + 1
    while high - low > 1:  # it never falls
        middle = (low + high) // 2
        low, high = (low, middle) if found.hypervolume(REFERENCE, middle) >= goal else (middle, high)
    return high


@cache
def surrogate(data: Path) -> Evaluate:
    """From a configuration of `SPACE` to ``top1`` and ``macs``, see above."""
    rows, top1, _ = networks(evaluations(data))
    model = trees().fit(SPACE.canonical(rows), top1)
    known = dict(zip(SPACE.keys(rows), top1.tolist(), strict=True))

    def evaluate(configuration: Configuration) -> dict[str, float]:
        row = SPACE.row(configuration)[None]
        key = SPACE.keys(row)[0]
        value = known[key] if key in known else float(model.predict(row)[0])
        return {"top1": value, "macs": float(Architecture.of(configuration).cost()[1])}

    return evaluate


def trees() -> Any:
    """The model, before it is fitted."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=400, learning_rate=0.05, early_stopping=False, random_state=0)
