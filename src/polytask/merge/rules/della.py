"""DELLA: drop by magnitude, elect, fuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, numbers, per_model, share
from polytask.merge.rules._arithmetic import elected, weighted_sum
from polytask.merge.rules._random import keep


def probabilities(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """With what probability each entry of a task vector is kept: it grows evenly with the rank of its magnitude in its row.

    Args:
        rows: one task vector's tensor, ``(rows, width)``.
        density: the mean of the probabilities of a row.
        epsilon: those of its smallest and its largest entry are this far from it; the only entry of a row has the mean.

    Returns:
        ``(rows, width)``, float64. Of entries of equal magnitude, the first have the lower ranks.
    """
    width = rows.shape[1]
    order = rows.abs().argsort(dim=1, stable=True)
    steps = torch.linspace(-1, 1, width, dtype=torch.float64) if width > 1 else torch.zeros(width, dtype=torch.float64)
    by_rank = (density + epsilon * steps).expand(order.shape)
    return torch.empty_like(by_rank, memory_format=torch.contiguous_format).scatter_(1, order, by_rank)


@merge_rules.add("della")
@dataclass(frozen=True)
class DELLA(Rule):
    """Random entries of each task vector are dropped, small ones rather than large ones, and what agrees is merged.

    MagPrune: the entries of a row, along a tensor's last dimension, are ranked by magnitude; that of rank ``r`` of ``n``,
    from 0, is kept with probability ``p = density + epsilon (2 r / (n - 1) - 1)``, and then divided by ``p``, so that its
    mean stays as it is. Elect and fuse: as in `TIES`, the mean of what has the elected sign, weighted by ``w``; ``theta_0 +
    scale`` times that. Deep, Bhardwaj and Poria, *DELLA-merging: reducing interference in model merging through
    magnitude-based sampling*, 2024. The paper counts in what is dropped, ``1 - density``, and its epsilon is the whole
    range; density and half the range are mergekit's settings. An entry's draw depends on the seed, the tensor's name, the
    model's number and the entry's place, and on nothing else.

    Args:
        density: what is kept, from 0 to 1. At 1 nothing is dropped, at 0 all is, whatever ``epsilon``.
        epsilon: at least 0; ``density - epsilon`` and ``density + epsilon`` have to be between 0 and 1.
        scale: of the sum.
        weight: of each model.
        elect: whether to drop what has not the elected sign; otherwise the weighted sum of all is taken.
        rescale: whether to divide by the probabilities.
        seed: of the draws, at least 0.
    """

    density: PerModel = 0.5
    epsilon: PerModel = 0.15
    scale: float = 1.0
    weight: PerModel = 1.0
    elect: bool = True
    rescale: Literal["probability", "none"] = "probability"
    seed: int = 0

    cut = "row"

    def __post_init__(self) -> None:
        share(self.density, "density")
        share(self.epsilon, "epsilon")
        if self.rescale not in ("probability", "none"):
            raise InputError(f"rescale {self.rescale!r}: expected 'probability' or 'none'")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: expected a whole number of at least 0")
        densities, epsilons = numbers(self.density), numbers(self.epsilon)
        for density, epsilon in zip(
            densities if len(densities) > 1 else densities * len(epsilons),
            epsilons if len(epsilons) > 1 else epsilons * len(densities),
            strict=False,
        ):
            if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
                raise InputError(f"density {density}, epsilon {epsilon}: expected density +- epsilon between 0 and 1")

    def merge(self, chunk: Chunk) -> Tensor:
        count = len(chunk.rows)
        weights = per_model(self.weight, count, "weight")
        densities, epsilons = per_model(self.density, count, "density"), per_model(self.epsilon, count, "epsilon")
        for k, (row, density, epsilon) in enumerate(zip(chunk.rows, densities, epsilons, strict=True)):
            if density in (0, 1):
                row *= density
                continue
            chances = probabilities(row.view(-1, max(chunk.width, 1)), density, epsilon).view(-1)
            row *= keep(chances, len(row), self.seed, chunk.name, k, chunk.start)
            if self.rescale == "probability":
                row /= chances.to(row)
        if not self.elect:
            return chunk.plus_base(weighted_sum(chunk.rows, weights), self.scale)
        return chunk.plus_base(elected(chunk.rows, weights, "mean"), self.scale)
