"""Consensus merging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, PerModel, Rule, magnitudes, merge_rules, numbers, per_model, share
from polytask.merge.engine.run import cuts_of
from polytask.merge.masks import check_scale, tall_mask
from polytask.merge.rules._arithmetic import elected, kept, weighted_sum


@merge_rules.add("consensus")
@dataclass(frozen=True)
class Consensus(Rule):
    """Of a multi-task vector, the coordinates that at least ``k`` tasks need.

    ``theta_0 + scale 1[c >= k] tau``, where ``c`` counts the tasks with ``|tau_t| > lambda_t |tau - tau_t|``, strictly as in
    the authors' code. The multi-task vector ``tau`` is the sum of the task vectors, or what `TIES` makes of them where it
    adds up what agrees; the ``tau_t`` are whole in either case. Wang, Dimitriadis, Ortiz-Jimenez, Fleuret and Frossard,
    *Localizing task information for improved model merging and compression*, ICML 2024. With ``k = 0`` it is task arithmetic
    or TIES; with ``k`` above the number of tasks, the base.

    With validation data, the paper first finds ``lambda_t`` by the masked model of each task, with `best_scales`, and then
    ``scale`` by the merged model; `polytask.merge.search` tries ``k`` as well.

    Args:
        k: 2 in the paper; 1 drops only what no task needs.
        mask_scale: ``lambda``, at least 0. The paper chooses it from 0.2 to 0.6, for each task on its validation data;
            0.4 is the middle.
        scale: of the multi-task vector. The paper chooses it from 0.1 to 1 on validation data; 0.3 is what task arithmetic
            starts from.
        vector: what ``tau`` is, ``"sum"`` or ``"ties"``.
        density: what TIES keeps of each task vector, from 0 to 1; a sum keeps all.
    """

    k: int = 2
    mask_scale: PerModel = 0.4
    scale: float = 0.3
    vector: Literal["sum", "ties"] = "sum"
    density: PerModel = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 0:
            raise InputError(f"k {self.k!r}: expected a number of tasks, 0 or more")
        for number in numbers(self.mask_scale):
            check_scale(number, "mask_scale")
        if self.vector not in ("sum", "ties"):
            raise InputError(f"vector {self.vector!r}: expected 'sum' or 'ties'")
        share(self.density, "density")

    def statistics(self, count: int) -> Sequence[Cuts]:
        return () if self.vector == "sum" else (kept(self.density, count, "model"),)

    def merge(self, chunk: Chunk) -> Tensor:
        count = len(chunk.rows)
        total = weighted_sum(chunk.rows, [1.0] * count) if self.vector == "sum" else _ties(chunk)
        tasks = torch.zeros(len(total), dtype=torch.int32)
        for row, scale in zip(chunk.rows, per_model(self.mask_scale, count, "mask_scale"), strict=True):
            tasks += tall_mask(row, total, scale)
        return chunk.plus_base(total.mul_(tasks >= self.k), self.scale)


def _ties(chunk: Chunk) -> Tensor:
    """What TIES adds up, ``(n,)``. The rows are left as they are, since masks compare whole task vectors."""
    trimmed = magnitudes(chunk)
    for row, size, cuts in zip(chunk.rows, trimmed, cuts_of(chunk, "kept"), strict=True):
        torch.mul(row, cuts[0].above(size), out=size)
    return elected(trimmed, [1.0] * len(trimmed), "sum")
