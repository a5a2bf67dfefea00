"""Model Breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, PerModel, Rule, merge_rules, per_model, share
from polytask.merge.rules._arithmetic import elected, trimmed, weighted_sum


@merge_rules.add("breadcrumbs")
@dataclass(frozen=True)
class Breadcrumbs(Rule):
    """Of each task vector a band of magnitudes: neither the outliers nor the small perturbations; then their scaled sum.

    ``theta_0 + scale sum_k w_k m_k tau_k``, where ``m_k`` drops the fraction ``gamma`` of largest magnitude, and keeps the
    fraction ``density`` that comes next, exactly ``int(density n)`` of ``n``; equal ones in the order of their places.
    Davari and Belilovsky, *Model breadcrumbs: scaling multi-task model merging with sparse masks*, ECCV 2024. In the
    paper's terms ``gamma`` here is 1 less its percentile of outliers, and ``density`` what lies between its percentiles.
    Where ``density + gamma > 1`` fewer outliers are dropped.

    Args:
        density: what is kept, from 0 to 1.
        gamma: outliers, from 0 to 1.
        scale: of the sum.
        weight: of each model.
        unit: what the fractions are of: a ``"tensor"``, as in the paper and in mergekit; a ``"row"`` of its last
            dimension, as in the authors' code, where a tensor without dimensions is kept; or the whole ``"model"``.
        first: ``"outliers"`` are dropped before the rest is counted; after ``"top"``, the outliers are among what
            ``density`` counts, and fewer are kept.
        elect: whether to add up only what has the sign of the sum, as `TIES` does; mergekit's ``breadcrumbs_ties``. The
            paper does not.
    """

    density: PerModel = 0.1
    gamma: PerModel = 0.01
    scale: float = 0.3
    weight: PerModel = 1.0
    unit: Literal["tensor", "row", "model"] = "tensor"
    first: Literal["outliers", "top"] = "outliers"
    elect: bool = False

    def __post_init__(self) -> None:
        share(self.density, "density")
        share(self.gamma, "gamma")
        if self.unit not in ("tensor", "row", "model"):
            raise InputError(f"unit {self.unit!r}: expected 'tensor', 'row' or 'model'")
        if self.first not in ("outliers", "top"):
            raise InputError(f"first {self.first!r}: expected 'outliers' or 'top'")
        if self.unit == "row":
            object.__setattr__(self, "cut", "row")

    def statistics(self, count: int) -> Sequence[Cuts]:
        if self.unit == "row":
            return ()
        return (Cuts("band", lambda n: self.counts(count, n), scope="model" if self.unit == "model" else "tensor"),)

    def counts(self, count: int, n: int) -> list[list[int]]:
        """Of ``n`` entries of each model, how many are at least as large as what is kept, and how many too large."""
        found = []
        for density, gamma in zip(
            per_model(self.density, count, "density"), per_model(self.gamma, count, "gamma"), strict=True
        ):
            kept, outliers = int(density * n), int(gamma * n)
            before = [min(kept + outliers, n), min(outliers, n - kept)]
            found.append(before if self.first == "outliers" else [kept, outliers])
        return found

    def merge(self, chunk: Chunk) -> Tensor:
        weights = per_model(self.weight, len(chunk.rows), "weight")
        if self.unit == "row":
            self._by_row(chunk)
        else:
            trimmed(chunk, "band")
        total = elected(chunk.rows, weights, "sum") if self.elect else weighted_sum(chunk.rows, weights)
        return chunk.plus_base(total, self.scale)

    def _by_row(self, chunk: Chunk) -> None:
        if not chunk.shape:
            return
        width = max(chunk.width, 1)
        for row, (low, high) in zip(chunk.rows, self.counts(len(chunk.rows), width), strict=True):
            rows = row.view(-1, width)
            order = rows.abs().argsort(dim=1, descending=True, stable=True)
            mask = torch.zeros_like(rows, dtype=torch.bool)
            rows *= mask.scatter_(1, order[:, high:low], True)
