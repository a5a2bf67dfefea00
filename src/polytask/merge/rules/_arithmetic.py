"""Arithmetic that several rules share: no result depends on where a tensor was cut, so sums have an order of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, PerModel, magnitudes, per_model
from polytask.merge.engine.run import cuts_of


def kept(density: PerModel, count: int, scope: Literal["model", "tensor"]) -> Cuts:
    """The statistic ``"kept"``: where the ``int(density n)`` largest magnitudes of each of ``count`` models are cut off."""
    densities = per_model(density, count, "density")
    return Cuts("kept", lambda n: [[int(d * n)] for d in densities], scope=scope)


def weighted_sum(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """``sum_k w_k rows[k]``, ``(n,)``, added up in the order of the rows, ``(K, n)``."""
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += row if weight == 1 else row * weight
    return total


def weight_of_positive(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """``sum_k w_k [rows[k] > 0]``, ``(n,)``, in the precision of the rows, ``(K, n)``."""
    positive = torch.from_numpy(np.greater(rows.numpy(), 0).view(np.uint8))
    if len(rows) < 256 and all(weight == 1 for weight in weights):
        total = positive[0]
        for row in positive[1:]:
            total += row
        return total.to(rows.dtype)
    return weighted_sum(positive.to(rows.dtype), weights)


def divide(total: Tensor, by: Tensor) -> Tensor:
    """``total / by``, ``(n,)``, in place, where ``by`` is not 0, and ``total`` where it is."""
    divisor = by.numpy()
    divisor[divisor == 0] = 1
    return total.div_(by)


def mask(row: Tensor, kept: Tensor) -> None:
    """Make ``row``, ``(n,)``, 0 where it is not ``kept``."""
    np.multiply(row.numpy(), kept.numpy(), out=row.numpy())


def trim(chunk: Chunk, name: str) -> Tensor:
    """The chunk's rows, ``(K, n)``, in place, with 0 where magnitudes are not above the first cut of the statistic."""
    for row, size, cuts in zip(chunk.rows, magnitudes(chunk), cuts_of(chunk, name), strict=True):
        mask(row, cuts[0].above(size))
    return chunk.rows


def agreeing(rows: Tensor) -> Tensor:
    """The elected signs of ``rows``, ``(K, n)``: those of their sum, + where that is 0. ``(n,)``, 1 and -1.

    The rows are left, in place, as the sizes of what has the elected sign; all else is 0.
    """
    total = weighted_sum(rows, [1.0] * len(rows))
    signs = torch.from_numpy(np.greater_equal(total.numpy(), 0).view(np.uint8)).to(rows.dtype).mul_(2).sub_(1)
    rows *= signs
    rows.clamp_(min=0)
    return signs


def elected(rows: Tensor, weights: Sequence[float], merge_by: Literal["mean", "sum"]) -> Tensor:
    """Of each entry of the weighted ``rows``, ``(K, n)``, what has the sign of their sum: added up, or its mean. ``(n,)``.

    The mean is over the sizes of the weights: one below 0 turns a model's sign around. The rows are overwritten.
    """
    for row, weight in zip(rows, weights, strict=True):
        if weight != 1:
            row *= weight
    signs = agreeing(rows)
    total = weighted_sum(rows, [1.0] * len(rows))
    if merge_by == "mean":
        total = divide(total, weight_of_positive(rows, [abs(weight) for weight in weights]))
    return total.mul_(signs)
