"""The search itself: a strategy proposes, an evaluator measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polytask.errors import InputError
from polytask.shrink.search._strategy import Strategy, strategies
from polytask.shrink.search.evaluator import Evaluate, Evaluator
from polytask.shrink.search.found import Direction, Found
from polytask.shrink.search.space import Space


def search(
    space: Space,
    evaluate: Evaluate,
    objectives: Mapping[str, Direction],
    *,
    budget: int,
    strategy: str | Strategy = "linas",
    start: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    path: Path | str | None = None,
    workers: int = 1,
    ray: str | None = None,
    progress: Callable[[int, int], None] = lambda done, limit: None,
) -> Found:
    """The trade-offs between objectives that configurations of a network reach, such as accuracy against operations.

    >>> space = Space({"depth": [1, 2, 3], "width": [8, 16, 32, 64]})
    >>> def evaluate(c):
    ...     return {"error": 1 / (c["depth"] * c["width"]) + 0.01 * c["depth"], "cost": c["depth"] * c["width"] ** 2}
    >>> found = search(space, evaluate, {"error": "lower", "cost": "lower"}, budget=12, strategy="random")
    >>> [trial.configuration for trial in found.front()][:2]
    [{'depth': 1, 'width': 64}, {'depth': 2, 'width': 32}]

    Args:
        space: what there is to choose from.
        evaluate: from a configuration to numbers by name, on *validation* data; of one network the same whenever it is
            asked, or as near to it as measurements are.
        objectives: which of these numbers count, and whether ``"lower"`` or ``"higher"`` is better.
        budget: how many networks to evaluate at most.
        strategy: ``"random"``, ``"nsga2"``, ``"age_moea"``, ``"linas"`` or ``"full_search"`` with their defaults, or
            one of your own making.
        start: configurations to begin with, such as the best of a search for other hardware (`Found.best`).
        seed: of what is random.
        path, workers, ray: see `Evaluator`. A search that was killed goes on from the journal at ``path``, and ends as one
            that was not; neither interruptions nor workers change what it finds.
        progress: called after each batch with the networks that are evaluated, and how many there will be at most.

    Raises:
        InputError: the arguments do not fit each other, the journal is of another search, or every evaluation failed.
    """
    chosen = strategies[strategy]() if isinstance(strategy, str) else strategy
    evaluator = Evaluator(space, evaluate, objectives, budget, path, workers, ray)
    first = np.stack([space.row(each) for each in start]) if start else np.empty((0, len(space.names)), dtype=np.int64)
    proposals = chosen.propose(space, first, np.random.default_rng(seed))
    rows = next(proposals)
    while True:
        values = evaluator(rows)
        progress(len(evaluator.trials), evaluator.limit)
        if evaluator.spent:
            break
        try:
            rows = proposals.send(values)
        except StopIteration:
            break
    found = evaluator.found
    if not found.measured:
        raise InputError(f"all {len(found.trials)} evaluations failed; the first: {found.failed[0].error}")
    return found
