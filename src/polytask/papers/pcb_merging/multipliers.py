"""PCB with evolutionary search: a multiplier for each task's vector, found by validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import PCB, merge_state_dicts
from polytask.merge.searching import Found, Range, search


def shares(
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    rule: PCB = PCB(),
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, Tensor]]:
    """What each model has in the merged task vector: the merge is linear in the multipliers ``w``.

    ``theta_0 + scale sum_i S_i w_i C_i / max(sum_j S_j, 1e-12) = theta_0 + sum_i w_i share_i``. So the competition is held
    once, and of every candidate only the weighted sum is made.

    Args:
        models, base: state dicts with the same names and shapes.
        rule: its ``weight`` is not used.
        dtype: of the arithmetic and of the shares.

    Returns:
        For each model its share, the floating-point tensors by name.
    """
    names = [name for name, theta in base.items() if theta.is_floating_point()]
    zeros = {name: torch.zeros_like(base[name], dtype=dtype) for name in names}
    vectors = [{name: model[name].to(dtype) - base[name].to(dtype) for name in names} for model in models]
    alone = [[float(i == k) for i in range(len(models))] for k in range(len(models))]
    return [merge_state_dicts(rule.but(weight=weight), vectors, zeros, dtype) for weight in alone]


def search_multipliers(
    evaluate: Callable[[dict[str, Tensor]], float],
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    rule: PCB = PCB(),
    *,
    low: float = 0.8,
    high: float = 1.3,
    budget: int = 100,
    sampler: Literal["evolution", "optuna"] = "evolution",
    seed: int = 0,
    path: Path | str | None = None,
) -> Found:
    """The multipliers of PCB that score best, from 1 for every model. `polytask.merge.search` has the search.

    ``merge_state_dicts(rule.but(weight=found.best["weight"]), models, base)`` is the merged model. Bounds and budget are
    those of the authors' script for vision; theirs for language has 0.5, 3 and 200, and both search by nevergrad.

    Args:
        evaluate: the score on *validation* data of a model with these weights; higher is better.
        models, base: state dicts with the same names and shapes.
        rule: with all settings but ``weight``.
        low, high: the bounds of a multiplier, around 1.
        budget, sampler, seed, path: of `polytask.merge.search`.

    Raises:
        InputError: 1 is not within the bounds, or what the search raises.
    """
    if not low <= 1 <= high:
        raise InputError(f"multipliers from {low:g} to {high:g}: expected a range with 1 in it, where the search starts")
    parts = shares(models, base, rule)

    def candidate(weights: Sequence[float]) -> dict[str, Tensor]:
        moved = dict(base)
        for name in parts[0]:
            delta = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
            moved[name] = (base[name] + delta).to(base[name].dtype)
        return moved

    return search(
        lambda settings: evaluate(candidate(settings["weight"])),
        {"weight": Range(low, high, count=len(models))},
        budget=budget,
        start={"weight": [1.0] * len(models)},
        sampler=sampler,
        seed=seed,
        path=path,
    )
