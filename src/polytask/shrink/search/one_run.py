"""A search for several tasks in one run: each gets a network of its own, and every evaluation serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polytask.errors import InputError
from polytask.shrink.search.distributions import Distributions
from polytask.shrink.search.evaluator import Evaluate, Evaluator
from polytask.shrink.search.found import Direction, Trial
from polytask.shrink.search.goal import Goal, objectives
from polytask.shrink.search.reinforce import MultiTaskReinforce
from polytask.shrink.search.space import Configuration, Rows, Space

IDLE = 30
"""After so many batches in a row without a new network the distributions have settled."""
DRAWS = 64
"""Rows that are drawn at a time, and so often at most, for networks that are new and fit."""

Costs = Callable[[Configuration], Mapping[str, float]]
"""From a configuration to costs that need no evaluation, such as operations, by name."""


@dataclass(frozen=True)
class FoundByTask:
    """What a search for several tasks found.

    Attributes:
        goals: of each task.
        trials: all evaluations, in the order in which they were asked for.
        chosen: for each task the best network that was measured and keeps to its cost; where none does, the one that costs
            least beside it.
        probable: for each task the most probable network, which may not have been measured when the budget was short.
        distributions: as they were in the end.
    """

    goals: Mapping[str, Goal]
    trials: list[Trial]
    chosen: Mapping[str, Trial]
    probable: Mapping[str, Configuration]
    distributions: Distributions


def search_tasks(
    space: Space,
    evaluate: Evaluate,
    goals: Mapping[str, Goal],
    *,
    budget: int,
    reinforce: MultiTaskReinforce | None = None,
    finals: int = 4,
    costs: Costs | None = None,
    seed: int = 0,
    path: Path | str | None = None,
    workers: int = 1,
    ray: str | None = None,
    progress: Callable[[int, int], None] = lambda done, limit: None,
) -> FoundByTask:
    """For each task the network that is best for it, by evaluations that all tasks share: see `MultiTaskReinforce`.

    >>> space = Space({"depth": [1, 2, 3, 4], "width": [8, 16, 32, 64]})
    >>> def evaluate(c):
    ...     macs = c["depth"] * c["width"]
    ...     return {"left": c["depth"] + 0.01 * macs, "right": c["width"] - 0.1 * macs, "macs": macs}
    >>> goals = {"left": Goal("left", cost="macs", target=40, weight=5.0), "right": Goal("right", cost="macs", target=100)}
    >>> found = search_tasks(space, evaluate, goals, budget=14)
    >>> {task: trial.configuration for task, trial in found.chosen.items()}
    {'left': {'depth': 4, 'width': 8}, 'right': {'depth': 1, 'width': 64}}

    Args:
        space: what there is to choose from.
        evaluate: from a configuration to numbers by name: those of all goals, of one evaluation. On *validation* data.
        goals: for each task what it wants.
        budget: how many networks to evaluate at most; one that is asked for again costs nothing.
        reinforce: how the distributions are learned, new, with the tasks of ``goals``; by default as `MultiTaskReinforce`
            has it. It is changed.
        finals: for each task so many evaluations of the budget are kept for the end: for its most probable network, and for
            samples of its distribution. What else is left then is spent so too.
        costs: costs that need no evaluation; these samples then are of networks that fit.
        seed: of what is random.
        path, workers, ray: see `Evaluator`. A search that was killed goes on from the journal at ``path``, and ends as one
            that was not; neither interruptions nor workers change what it finds.
        progress: called after each batch with the networks that are evaluated, and how many there will be at most.

    Raises:
        InputError: the arguments do not fit each other, the journal is of another search, or every evaluation failed.
    """
    reinforce = reinforce or MultiTaskReinforce(Distributions(space, goals))
    distributions = reinforce.distributions
    _check(space, goals, distributions)
    kept = finals * len(goals)
    if finals < 1 or budget <= kept:
        raise InputError(
            f"budget {budget}, expected more than the {kept} that are kept for the end, at least 1 for each task"
        )
    if int(reinforce.updates):
        raise InputError(f"reinforce has learned from {int(reinforce.updates)} batches, expected a new one")
    evaluator = Evaluator(space, evaluate, objectives(goals), budget, path, workers, ray)
    limit = evaluator.limit
    evaluator.limit = max(1, limit - kept)
    generator = torch.Generator().manual_seed(seed)
    idle = 0
    while not evaluator.spent and idle < IDLE:
        before = len(evaluator.trials)
        rows = distributions.sample(reinforce.count, generator)
        reinforce.update(rows, *_rewards(evaluator(rows), evaluator.objectives, goals))
        idle = 0 if len(evaluator.trials) > before else idle + 1
        progress(len(evaluator.trials), limit)
    evaluator.limit = limit
    found = _finish(distributions, evaluator, goals, costs, generator)
    progress(len(evaluator.trials), limit)
    return found


def choose(
    distributions: Distributions,
    evaluate: Evaluate,
    goals: Mapping[str, Goal],
    *,
    samples: int = 16,
    costs: Costs | None = None,
    seed: int = 0,
    path: Path | str | None = None,
    workers: int = 1,
    ray: str | None = None,
) -> FoundByTask:
    """For each task a network of distributions that are learned, as by `OneRun`: of its most probable one and of samples the
    best that fits.

    Args:
        distributions: learned, and not changed.
        evaluate, goals, costs, seed, path, workers, ray: as for `search_tasks`.
        samples: for each task so many networks are evaluated; all tasks choose among all of them.
    """
    _check(distributions.space, goals, distributions)
    evaluator = Evaluator(distributions.space, evaluate, objectives(goals), samples * len(goals), path, workers, ray)
    return _finish(distributions, evaluator, goals, costs, torch.Generator().manual_seed(seed))


def _check(space: Space, goals: Mapping[str, Goal], distributions: Distributions) -> None:
    if tuple(goals) != distributions.tasks:
        raise InputError(f"goals of {list(goals)}, expected one for each task in order: {list(distributions.tasks)}")
    if space.about != distributions.space.about:
        raise InputError("the distributions are of another space, expected one of the same genes and options")


def _rewards(values: np.ndarray, names: Mapping[str, Direction], goals: Mapping[str, Goal]) -> tuple[np.ndarray, np.ndarray]:
    """``(S, T)`` qualities and penalties, of objectives ``(S, M)`` that are signed so that lower is better."""
    columns = {
        name: column if way == "lower" else -column for (name, way), column in zip(names.items(), values.T, strict=True)
    }
    each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    quality = [[goal.value(row) for goal in goals.values()] for row in each]
    return np.array(quality), np.array([[goal.penalty(row) for goal in goals.values()] for row in each])


def _finish(
    distributions: Distributions,
    evaluator: Evaluator,
    goals: Mapping[str, Goal],
    costs: Costs | None,
    generator: torch.Generator,
) -> FoundByTask:
    """Spend what is left on each task's most probable network and on samples, then choose."""
    space = distributions.space
    probable = distributions.most_probable()
    evaluator(probable)
    known = {*space.keys(probable), *(space.keys(space.row(trial.configuration)[None])[0] for trial in evaluator.trials)}
    for place, (task, goal) in enumerate(goals.items()):
        count = (evaluator.limit - len(evaluator.trials)) // (len(goals) - place)
        rows = list(_new(distributions, task, goal, costs, known, count, generator))
        if rows:
            evaluator(np.stack(rows))
    measured = evaluator.found.measured
    if not measured:
        raise InputError(f"all {len(evaluator.trials)} evaluations failed; the first: {evaluator.trials[0].error}")
    chosen = {task: goal.best(measured) for task, goal in goals.items()}
    configurations = {task: space.configuration(row) for task, row in zip(goals, probable, strict=True)}
    return FoundByTask(dict(goals), evaluator.trials, chosen, configurations, distributions)


def _new(
    distributions: Distributions,
    task: str,
    goal: Goal,
    costs: Costs | None,
    known: set[bytes],
    count: int,
    generator: torch.Generator,
) -> Iterator[Rows]:
    """At most ``count`` different samples of a task's distribution that fit, and are not ``known``: they are added to it."""
    space = distributions.space
    for _ in range(DRAWS):
        rows = distributions.sample(DRAWS, generator, task)
        for key, row in zip(space.keys(rows), rows, strict=True):
            if count <= 0:
                return
            if key not in known and (costs is None or goal.fits(costs(space.configuration(row)))):
                known.add(key)
                count -= 1
                yield row
