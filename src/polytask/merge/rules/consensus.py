"""Consensus merging."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, numbers, per_model
from polytask.merge.masks import tall_mask
from polytask.merge.rules._arithmetic import weighted_sum


@merge_rules.add("consensus")
@dataclass(frozen=True)
class Consensus(Rule):
    """Of the sum of task vectors, the coordinates that at least ``k`` tasks need.

    ``theta_0 + scale 1[c >= k] tau`` with ``tau = sum_t tau_t``, where ``c`` counts the tasks with
    ``|tau_t| > lambda_t |tau - tau_t|``, strictly as in the authors' code. Wang, Dimitriadis, Ortiz-Jimenez, Fleuret and
    Frossard, *Localizing task information for improved model merging and compression*, ICML 2024. With ``k = 0`` it is task
    arithmetic; with ``k`` above the number of tasks, the base.

    Args:
        k: 2 in the paper; 1 drops only what no task needs.
        mask_scale: ``lambda``, at least 0. The paper chooses it from 0.2 to 0.6, for each task on its validation data;
            0.4 is the middle.
        scale: of the sum. The paper chooses it from 0.1 to 1 on validation data; 0.3 is what task arithmetic starts from.
    """

    k: int = 2
    mask_scale: PerModel = 0.4
    scale: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 0:
            raise InputError(f"k {self.k!r}: expected a number of tasks, 0 or more")
        for number in numbers(self.mask_scale):
            if not 0 <= number < math.inf:
                raise InputError(f"mask_scale {number}: expected a finite number of at least 0")

    def merge(self, chunk: Chunk) -> Tensor:
        count = len(chunk.rows)
        total = weighted_sum(chunk.rows, [1.0] * count)
        tasks = torch.zeros(len(total), dtype=torch.int32)
        for row, scale in zip(chunk.rows, per_model(self.mask_scale, count, "mask_scale"), strict=True):
            tasks += tall_mask(row, total, scale)
        return chunk.plus_base(total.mul_(tasks >= self.k), self.scale)
