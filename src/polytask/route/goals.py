"""What a user wants beside quality: weights on normalised costs, by name or as flags in the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polytask.errors import InputError, suggest
from polytask.route.expert import Expert

LOG = frozenset({"size", "price", "latency"})
"""Costs that are compared by their logarithms, since models differ in them by orders of magnitude."""

FLAGS: Mapping[str, Mapping[str, float]] = {
    "small model": {"size": 1.0},
    "fast": {"latency": 1.0},
    "cheap": {"price": 1.0},
    "recent": {"age": 1.0},
}
"""What flags stand for: weights of costs. The names and weights of Tryage's own table are not known to us; pass another."""

_FLAG = re.compile(r"[ \t]*\[flag:\s*([^\]\n]*)\]", re.IGNORECASE)
_NUMBER = re.compile(r"(.*?)(?:\s*[=\s]\s*([0-9.]+))?")


class Wish(NamedTuple):
    """A prompt without its flags, and the weights that they stand for."""

    text: str
    weights: dict[str, float]


def parse_flags(prompt: str, flags: Mapping[str, Mapping[str, float]] = FLAGS) -> Wish:
    """Take flags such as ``[Flag: small model]`` out of a prompt.

    A number after a flag multiplies its weights: ``[Flag: small model 0.3]``. Several flags add up. Raises `InputError` for
    an unknown one, with the nearest known.

    >>> parse_flags("Explain entropy. [Flag: small model] [Flag: fast 0.5]")
    Wish(text='Explain entropy.', weights={'size': 1.0, 'latency': 0.5})
    """
    weights: dict[str, float] = {}
    for found in _FLAG.finditer(prompt):
        split = _NUMBER.fullmatch(found[1].strip().lower())
        name, factor = (split[1], split[2]) if split else (found[1], None)
        name = " ".join(name.split())
        if name not in flags:
            raise InputError(f"unknown flag {found[1].strip()!r} in the prompt: {suggest(name, flags)}")
        try:
            times = float(factor) if factor is not None else 1.0
        except ValueError:
            raise InputError(f"flag {found[1].strip()!r} in the prompt: {factor!r} is no number") from None
        for cost, weight in flags[name].items():
            weights[cost] = weights.get(cost, 0.0) + weight * times
    text = _FLAG.sub("", prompt)
    return Wish(text.strip() if weights else text, weights)


def normalised_costs(experts: Sequence[Expert], names: Sequence[str]) -> np.ndarray:
    """``(K, len(names))`` in [0, 1]: 0 for the expert with the least of a cost, 1 for the one with the most.

    Linear between, in the logarithm for costs in `LOG`; 0 for all where all are equal. So one weight means the same for any
    unit: how much loss the dearest expert has to save against the cheapest. Raises `InputError` for a cost that no expert
    or not every expert states, and for one in `LOG` that is not positive.
    """
    found = np.empty((len(experts), len(names)))
    for column, name in enumerate(names):
        stated = [expert.costs.get(name) for expert in experts]
        if all(value is None for value in stated):
            known = sorted({cost for expert in experts for cost in expert.costs})
            raise InputError(f"no expert states a cost {name!r}: {suggest(name, known)}")
        for expert, value in zip(experts, stated, strict=True):
            if value is None or (name in LOG and value <= 0):
                wanted = "a positive number" if name in LOG else "a number"
                raise InputError(f"expert {expert.name!r}: {name} {value}, expected {wanted}, as it has a weight")
        values = np.array(stated, dtype=float)
        values = np.log10(values) if name in LOG else values
        spread = values.max() - values.min()
        found[:, column] = (values - values.min()) / spread if spread else 0.0
    return found


def weighted_costs(experts: Sequence[Expert], weights: Mapping[str, float]) -> np.ndarray:
    """``sum_j lambda_j C_j`` for each expert, ``(K,)``; weights have to be finite and at least 0."""
    for name, weight in weights.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise InputError(f"weight {weight} of the cost {name!r}, expected a finite number from 0")
    result: np.ndarray = normalised_costs(experts, list(weights)) @ np.array(list(weights.values()), dtype=float)
    return result
