"""DARE: drop and rescale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, per_model, share
from polytask.merge.rules._arithmetic import elected, mask, weighted_sum
from polytask.merge.rules._random import keep


@merge_rules.add("dare")
@dataclass(frozen=True)
class DARE(Rule):
    """Random entries of each task vector are dropped, and the rest scaled up so that its mean stays as it is.

    ``tau'_k = m_k tau_k / density``, with each entry of ``m_k`` 1 with probability ``density``; then the weighted sum, or
    the sum of what agrees with the elected sign (see `TIES`), times ``scale``. Yu et al., *Language models are super
    Mario: absorbing abilities from homologous models as a free lunch*, ICML 2024. An entry's draw depends on the seed, the
    tensor's name, the model's number and the entry's place, and on nothing else.

    Args:
        density: what is kept, above 0 to 1; the paper drops 0.9 and more of fine-tuned language models.
        scale: of the sum.
        weight: of each model.
        elect: whether to drop what has not the elected sign.
        merge_by: whether what is left then is averaged by weight, ``"mean"``, or added up, ``"sum"``.
        rescale: whether to divide by the density.
        seed: of the draws, at least 0.
    """

    density: PerModel = 0.1
    scale: float = 1.0
    weight: PerModel = 1.0
    elect: bool = False
    merge_by: Literal["mean", "sum"] = "mean"
    rescale: Literal["density", "none"] = "density"
    seed: int = 0

    def __post_init__(self) -> None:
        share(self.density, "density")
        if self.rescale not in ("density", "none"):
            raise InputError(f"rescale {self.rescale!r}: expected 'density' or 'none'")
        if self.merge_by not in ("mean", "sum"):
            raise InputError(f"merge_by {self.merge_by!r}: expected 'mean' or 'sum'")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: expected a whole number of at least 0")

    def merge(self, chunk: Chunk) -> Tensor:
        count = len(chunk.rows)
        weights, densities = per_model(self.weight, count, "weight"), per_model(self.density, count, "density")
        for k, (row, density) in enumerate(zip(chunk.rows, densities, strict=True)):
            if density < 1:
                mask(row, keep(density, len(row), self.seed, chunk.name, k, chunk.start))
        factors = [1 / d if self.rescale == "density" and d > 0 else 1.0 for d in densities]
        if not self.elect:
            return chunk.plus_base(weighted_sum(chunk.rows, _times(weights, factors)), self.scale)
        for row, factor in zip(chunk.rows, factors, strict=True):
            row *= factor
        return chunk.plus_base(elected(chunk.rows, weights, self.merge_by), self.scale)


def _times(weights: Sequence[float], factors: Sequence[float]) -> list[float]:
    return [w * f for w, f in zip(weights, factors, strict=True)]
