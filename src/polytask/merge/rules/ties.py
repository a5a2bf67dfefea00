"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, PerModel, Rule, merge_rules, per_model, share
from polytask.merge.rules._arithmetic import elected, trim


@merge_rules.add("ties")
@dataclass(frozen=True)
class TIES(Rule):
    """The largest entries of each task vector, and of these only the ones with the sign that weighs most.

    Trim: of each task vector the fraction ``density`` of largest magnitude is kept, exactly that many, the first of equal
    ones. Elect: ``s_p = sign(sum_k w_k tau_kp)``, + where the sum is 0. Merge: of the ``w_k tau_kp`` that have the elected
    sign the sum over that of their ``|w_k|``, or the sum alone; ``theta_0 + scale`` times that. Yadav et al.,
    *TIES-merging: resolving interference when merging models*, NeurIPS 2023. The authors' code gives a sum of exactly 0 the
    sign that most sums have.

    Args:
        density: of each task vector, from 0 to 1.
        scale: 1 without validation data; for a sum of eight vision tasks 0.3.
        weight: ``w``.
        scope: whether to trim each task vector as a whole, as in the paper, or ``"tensor"`` by tensor, as mergekit does.
        merge_by: ``"mean"``, as in the paper, or ``"sum"``.
    """

    density: PerModel = 0.2
    scale: float = 1.0
    weight: PerModel = 1.0
    scope: Literal["model", "tensor"] = "model"
    merge_by: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        share(self.density, "density")
        if self.scope not in ("model", "tensor"):
            raise InputError(f"scope {self.scope!r}: expected 'model' or 'tensor'")
        if self.merge_by not in ("mean", "sum"):
            raise InputError(f"merge_by {self.merge_by!r}: expected 'mean' or 'sum'")

    def statistics(self, count: int) -> Sequence[Cuts]:
        densities = per_model(self.density, count, "density")
        return (Cuts("kept", lambda n: [[int(d * n)] for d in densities], scope=self.scope),)

    def merge(self, chunk: Chunk) -> Tensor:
        weights = per_model(self.weight, len(chunk.rows), "weight")
        return chunk.plus_base(elected(trim(chunk, "kept"), weights, self.merge_by), self.scale)
