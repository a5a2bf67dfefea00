"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import same_tensors
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, PerModel, Rule, merge_rules, per_model, share
from polytask.merge.engine.run import CHUNK, Merge
from polytask.merge.engine.source import InMemory
from polytask.merge.rules._arithmetic import elect, elected, kept, trimmed, weighted_sum


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
        election: whether ``w`` counts in it, ``"weighted"``, or not, ``"even"``: with ``merge_by="sum"`` and learned weights
            that is AdaMerging++, see `trim_and_elect`.
    """

    density: PerModel = 0.2
    scale: float = 1.0
    weight: PerModel = 1.0
    scope: Literal["model", "tensor"] = "model"
    merge_by: Literal["mean", "sum"] = "mean"
    election: Literal["weighted", "even"] = "weighted"

    def __post_init__(self) -> None:
        share(self.density, "density")
        if self.scope not in ("model", "tensor"):
            raise InputError(f"scope {self.scope!r}: expected 'model' or 'tensor'")
        if self.merge_by not in ("mean", "sum"):
            raise InputError(f"merge_by {self.merge_by!r}: expected 'mean' or 'sum'")
        if self.election not in ("weighted", "even"):
            raise InputError(f"election {self.election!r}: expected 'weighted' or 'even'")

    def statistics(self, count: int) -> Sequence[Cuts]:
        return (kept(self.density, count, self.scope),)

    def merge(self, chunk: Chunk) -> Tensor:
        weights, rows = per_model(self.weight, len(chunk.rows), "weight"), trimmed(chunk, "kept")
        if self.election == "even":
            agree = rows * elect(rows) > 0
            total = weighted_sum(rows.mul_(agree), weights)
            if self.merge_by == "mean":
                total /= weighted_sum(agree.to(rows.dtype), list(map(abs, weights))).clamp_(min=torch.finfo(rows.dtype).tiny)
            return chunk.plus_base(total, self.scale)
        return chunk.plus_base(elected(rows, weights, self.merge_by), self.scale)


@torch.no_grad()
def trim_and_elect(vectors: Sequence[Mapping[str, Tensor]], density: PerModel = 0.2) -> list[dict[str, Tensor]]:
    """Task vectors as TIES has them before it adds them up: ``Phi(tau_k)``, what AdaMerging++ learns coefficients of.

    Trim: of each task vector as a whole the fraction ``density`` of largest magnitude is kept, exactly that many, the first
    of equal ones in the sorted order of names. Elect: ``s_p = sign(sum_k tau_kp)`` of what was kept; a sum of exactly 0 has
    the sign of ``sum_p s_p``, + where that is 0 too. ``Phi(tau_k)_p`` is ``tau_kp`` where it has the sign ``s_p``, else 0.
    Yang, Wang, Shen, Liu, Guo, Wang and Tao, *AdaMerging: Adaptive model merging for multi-task learning*, ICLR 2024, after
    Yadav et al.

    >>> vectors = [{"w": torch.tensor([1.0, -2, 0.5, 3])}, {"w": torch.tensor([2.0, 1, -0.5, -4])}]
    >>> [vector["w"].tolist() for vector in trim_and_elect(vectors, density=0.5)]
    [[0.0, -2.0, 0.0, 0.0], [2.0, 0.0, 0.0, -4.0]]

    Args:
        vectors: K task vectors ``theta_k - theta_0``, all with the same names and shapes. They are read piece by piece, and
            may be mapped files or lie on any device.
        density: from 0 to 1, for all vectors or for each.

    Returns:
        K vectors, dense, new, each tensor in its own dtype and on its own device: kept entries have their bits. Tensors that
        are not floating-point are left out. A tied weight that vectors have under two names counts twice; drop one before.

    Raises:
        InputError: there are no vectors, their names or shapes differ, or values are not finite.
    """
    if not vectors:
        raise InputError("vectors: none, expected at least one task vector")
    same_tensors(vectors, vectors[0])
    shapes = {name: tuple(tensor.shape) for name, tensor in sorted(vectors[0].items()) if tensor.is_floating_point()}
    found = [{name: torch.empty_like(vector[name].detach().reshape(-1)) for name in shapes} for vector in vectors]
    dtype = torch.float64 if any(t.dtype == torch.float64 for vector in found for t in vector.values()) else torch.float32
    trimmed = _Trim(found, density)
    Merge(trimmed, [InMemory(vector) for vector in vectors], None, shapes, dtype).run(lambda name, start, total: None)
    most = 1.0 if trimmed.votes >= 0 else -1.0
    for name in shapes:
        for start in range(0, math.prod(shapes[name]), CHUNK):
            pieces = [vector[name][start : start + CHUNK] for vector in found]
            rows = torch.stack([piece.to("cpu", dtype) for piece in pieces])
            signs = weighted_sum(rows, [1.0] * len(rows)).sign_()
            signs[signs == 0] = most
            for piece, row in zip(pieces, rows, strict=True):
                piece.masked_fill_((row * signs <= 0).to(piece.device), 0)
    return [{name: tensor.view(shapes[name]) for name, tensor in vector.items()} for vector in found]


class _Trim(Rule):
    """A rule that writes what it keeps to the flat vectors ``into``, and adds up the signs of the sums in ``votes``."""

    needs_base: ClassVar[bool] = False

    def __init__(self, into: Sequence[Mapping[str, Tensor]], density: PerModel) -> None:
        share(density, "density")
        self.into, self.density = into, density
        self.votes = 0

    def statistics(self, count: int) -> Sequence[Cuts]:
        return (kept(self.density, count, "model"),)

    def merge(self, chunk: Chunk) -> Tensor:
        rows = trimmed(chunk, "kept")
        for row, vector in zip(rows, self.into, strict=True):
            vector[chunk.name][chunk.start : chunk.start + len(row)] = row
        total = weighted_sum(rows, [1.0] * len(rows))
        self.votes += int(total.sign().sum())
        return total
