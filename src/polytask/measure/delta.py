"""One number for a model of many tasks: relative improvement over single-task baselines, and skill over a constant."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from polytask.errors import InputError


def delta_m(values: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """The mean relative improvement over single-task baselines, as a fraction; above 0 is better.

    ``1/K sum_k s_k (M_k - B_k) / B_k`` with ``s_k`` = +1 where higher is better and -1 where lower is (Maninis, Radosavovic
    and Kokkinos, *Attentive single-tasking of multiple tasks*, CVPR 2019, Eq. 4).

    Raises `InputError` for a baseline that is not positive: a relative change from it is not defined.

    >>> round(delta_m({"left": 0.9, "ink": 0.5}, {"left": 1.0, "ink": 1.0}, {"left": True, "ink": False}), 3)
    0.2
    """
    changes = []
    for name, value in values.items():
        base = baseline[name]
        if not (base > 0 and isfinite(base)):
            raise InputError(f"delta_m: the baseline of task {name!r} is {base}, expected a finite number > 0")
        changes.append((value - base) / base * (1 if higher_is_better[name] else -1))
    return sum(changes) / len(changes)


def skill(value: float, reference: float, perfect: float) -> float:
    """How far a metric is on the way from a constant prediction to a perfect one: 0 at ``reference``, 1 at ``perfect``.

    The skill score of forecast verification (Murphy, *Skill scores based on the mean square error*, 1988). Unlike a raw
    metric it can be averaged over tasks of different kinds. 0 where the constant prediction is already perfect.
    """
    return 0.0 if reference == perfect else (value - reference) / (perfect - reference)
