"""From what a user wants to a configuration: preferences make decoders, and the rest of the budget makes the encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from polytask.errors import InputError
from polytask.share.slimmable.chain import Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.cost import Costs


def decoder_widths(preference: Mapping[str, float], widths: Sequence[float]) -> dict[str, float]:
    """Decoders as wide as their tasks are preferred: ``d_min + (d_max - d_min) p_t / max(p)``, to the nearest width.

    The more preferred a task, the more operations its decoder gets, is the rule of Aich et al. (*Efficient controllable
    multi-task architectures*, ICCV 2023); the formula is a reconstruction. Of two equally near widths it is the larger.

    >>> decoder_widths({"classes": 0.5, "boundary": 0.5, "depth": 0.0}, (0.25, 0.5, 0.75, 1.0))
    {'classes': 1.0, 'boundary': 1.0, 'depth': 0.25}
    """
    for task, value in preference.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"preference {value} for task {task!r}, expected a number of at least 0")
    largest = max(preference.values(), default=0)
    if largest == 0:
        raise InputError(f"preferences {dict(preference)}, expected one above 0")
    low, high = min(widths), max(widths)
    wanted = {task: low + (high - low) * value / largest for task, value in preference.items()}
    return {task: min(widths, key=lambda width: (abs(width - want), -width)) for task, want in wanted.items()}


def find_configuration(
    costs: Costs,
    preference: Mapping[str, float],
    budget: int,
    score: Callable[[Configuration], float],
    method: Literal["exhaustive", "greedy"] | None = None,
) -> Configuration:
    """The configuration for a preference among tasks within a budget of operations, without any training.

    Decoders are as wide as `decoder_widths` says. Of the encoders that then fit the budget the one with the best score is
    chosen, and the most expensive of equally good ones. Where none fits, decoders are narrowed step by step, those of the
    least preferred tasks first and equally preferred ones together, until the narrowest encoder fits. The order of these
    steps is that of Aich et al.; their details are a reconstruction.

    Args:
        costs: the supernet's costs.
        preference: how much each task counts; at least 0, in any scale.
        budget: the largest cost, in the unit of ``costs``; what is found never costs more.
        score: how good a configuration is, higher is better: on validation data, of the extracted network, recalibrated if
            it has batch norms.
        method: ``"exhaustive"`` scores every encoder that fits; ``"greedy"`` begins at the narrowest and widens, as long as
            it can, the stage that gains most, and keeps the best seen. By default greedy where stages have widths of their
            own.

    Raises:
        InputError: a preference that is none, or a budget below the cost of the smallest configuration.
    """
    supernet = costs.supernet
    if set(preference) != set(supernet.tasks):
        raise InputError(f"preferences for {sorted(preference)}, expected one for each task: {sorted(supernet.tasks)}")
    if method not in ("exhaustive", "greedy", None):
        raise InputError(f"method {method!r}, expected 'exhaustive' or 'greedy'")
    decoders = _affordable(costs, preference, budget)

    def fitting(encoders: Iterator[Widths]) -> list[Configuration]:
        found = (Configuration(encoder, decoders) for encoder in encoders)
        return [configuration for configuration in found if costs(configuration) <= budget]

    def rank(configuration: Configuration) -> tuple[float, int]:
        value = score(configuration)
        if not math.isfinite(value):
            raise InputError(f"the score of {configuration} is {value}, expected a finite number")
        return value, costs(configuration)

    if (method or ("greedy" if supernet.per_stage else "exhaustive")) == "exhaustive":
        return max(fitting(supernet.encoders()), key=rank)
    step = Configuration(supernet.smallest.encoder, decoders)
    seen = {step: rank(step)}
    while wider := fitting(_one_wider(step.encoder, supernet.widths)):
        ranks = {configuration: rank(configuration) for configuration in wider}
        step = max(ranks, key=lambda configuration: ranks[configuration])
        seen[step] = ranks[step]
    return max(seen, key=lambda configuration: seen[configuration])


def _affordable(costs: Costs, preference: Mapping[str, float], budget: int) -> dict[str, float]:
    """The decoders of a preference, narrowed until they fit the budget beside the narrowest encoder."""
    supernet = costs.supernet
    widths, narrowest = supernet.widths, supernet.smallest.encoder
    decoders = decoder_widths(preference, widths)
    for value in sorted(set(preference.values())):
        group = [task for task in preference if preference[task] == value]
        while costs(Configuration(narrowest, decoders)) > budget and decoders[group[0]] > widths[0]:
            narrower = widths[widths.index(decoders[group[0]]) - 1]
            decoders |= dict.fromkeys(group, narrower)
    least = costs(Configuration(narrowest, decoders))
    if least > budget:
        raise InputError(f"budget {budget}: the smallest configuration costs {least}, expected at least that")
    return decoders


def _one_wider(encoder: Widths, widths: Sequence[float]) -> Iterator[Widths]:
    """The encoders that have one width more: the next one for all of it, or for one of its stages."""
    if not isinstance(encoder, tuple):
        yield from widths[widths.index(encoder) + 1 :][:1]
        return
    for stage, width in enumerate(encoder):
        for wider in widths[widths.index(width) + 1 :][:1]:
            yield (*encoder[:stage], wider, *encoder[stage + 1 :])
