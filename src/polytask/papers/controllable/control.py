"""What preferences and budgets do to a trained supernet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from polytask.papers._correlation import spearman
from polytask.papers.controllable.models import stand_alone
from polytask.papers.controllable.values import Table, covered, mean
from polytask.share.slimmable import Configuration, Costs, Supernet, find_configuration, macs

BUDGETS = (0.5, 0.75, 1.0)
"""A budget is what the supernet costs when all of it has this width."""


def control(supernet: Supernet, costs: Costs, validation: Table, test: Table) -> dict[str, float]:
    """What preferences do, for the supernet that was trained last.

    Over `preferences` and `BUDGETS`. ``"preferred"`` is the mean value of a task that alone is preferred, ``"random"`` when
    the same decoder widths are assigned to tasks at random (the mean over all assignments) and the encoder is chosen for
    them in the same way; ``"preferred TASK"`` and ``"random TASK"`` are those of one task, ``"not preferred TASK"`` is when
    another one is. ``"hypervolume"`` is that of skills (0 for the best constant, 1 for the network trained by itself) at the
    middle budget, ``"static hypervolume"`` that of the even preference alone. ``"monotonicity"`` is Spearman's correlation
    of a task's preference and its value. ``"violations"`` counts extracted networks that cost more than the budget.
    ``"range TASK"`` is how much the decoder's width alone changes a value.
    """
    tasks = tuple(supernet.tasks)
    found: dict[tuple[int, float], Configuration] = {}
    random: dict[str, list[float]] = {task: [] for task in tasks}
    violations = 0
    for share, (place, preference) in itertools.product(BUDGETS, enumerate(preferences(tasks))):
        budget = costs(Configuration(share, dict.fromkeys(tasks, share)))

        def score(configuration: Configuration, preference: Mapping[str, float] = preference) -> float:
            values = validation(configuration)
            return sum(preference[task] * values[task] for task in tasks)

        chosen = find_configuration(costs, preference, budget, score)
        violations += macs(stand_alone(supernet, chosen), costs.inputs) > budget
        found[place, share] = chosen
        if place < len(tasks):
            for assigned in assignments(chosen.decoders):
                fitting = [Configuration(encoder, assigned) for encoder in supernet.encoders()]
                fitting = [configuration for configuration in fitting if costs(configuration) <= budget]
                random[tasks[place]].append(test(max(fitting, key=score))[tasks[place]])
    values = {key: test(configuration) for key, configuration in found.items()}
    measured = {"violations": float(violations), "none": 0.0}
    for place, task in enumerate(tasks):
        measured[f"preferred {task}"] = mean([values[place, share][task] for share in BUDGETS])
        others = [other for other in range(len(tasks)) if other != place]
        measured[f"not preferred {task}"] = mean([values[other, share][task] for other in others for share in BUDGETS])
        measured[f"random {task}"] = mean(random[task])
        spread = [test(Configuration(1.0, dict.fromkeys(tasks, width)))[task] for width in supernet.widths]
        measured[f"range {task}"] = max(spread) - min(spread)
    for name in ("preferred", "random"):
        measured[name] = mean([measured[f"{name} {task}"] for task in tasks])
    wanted = list(preferences(tasks))
    correlations = [
        spearman([p[task] for p in wanted], [values[place, share][task] for place in range(len(wanted))])
        for share in BUDGETS
        for task in tasks
    ]
    measured["monotonicity"] = mean(correlations)
    points = [test.skills(found[place, BUDGETS[1]]) for place in range(len(wanted))]
    return measured | {"hypervolume": covered(points), "static hypervolume": covered(points[-1:])}


def preferences(tasks: Sequence[str]) -> Iterator[dict[str, float]]:
    """Each task alone, each pair of tasks alike, and at last all tasks alike; they sum to 1."""
    for size in range(1, len(tasks) + 1):
        for chosen in itertools.combinations(tasks, size):
            yield {task: (task in chosen) / size for task in tasks}


def assignments(decoders: Mapping[str, float]) -> list[dict[str, float]]:
    """All ways to give these widths to the tasks, each as often as it is drawn."""
    return [dict(zip(decoders, order, strict=True)) for order in itertools.permutations(decoders.values())]
