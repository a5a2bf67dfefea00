"""Arithmetic that several rules share: no result depends on where a tensor was cut, so sums have an order of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.fused import fused
from polytask.merge.engine.ranks import trim
from polytask.merge.engine.rule import Cuts, PerModel, per_model
from polytask.merge.engine.run import cuts_of

Array = np.ndarray[Any, np.dtype[Any]]


def kept(density: PerModel, count: int, scope: Literal["model", "tensor"]) -> Cuts:
    """The statistic ``"kept"``: where the ``int(density n)`` largest magnitudes of each of ``count`` models are cut off."""
    densities = per_model(density, count, "density")
    return Cuts("kept", lambda n: [[int(d * n)] for d in densities], scope=scope)


def weighted_sum(rows: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum_k w_k rows[k]``, ``(n,)``, added up in the order of the rows, ``K`` times ``(n,)``."""
    each = iter(rows)
    total = next(each) * weights[0]
    for row, weight in zip(each, weights[1:], strict=True):
        total.add_(row, alpha=weight)
    return total


def mask(row: Tensor, kept: Tensor) -> None:
    """Make ``row``, ``(n,)``, 0 where it is not ``kept``."""
    np.multiply(row.numpy(), kept.numpy(), out=row.numpy())


def trimmed(chunk: Chunk, name: str) -> Tensor:
    """The chunk's rows, ``(K, n)``, in place, with 0 where magnitudes are not above the statistic's first cut.

    Where it has a second cut, what is above that is 0 too.
    """
    for row, cuts in zip(chunk.rows.numpy(), cuts_of(chunk, name), strict=True):
        trim(row, *cuts)
    return chunk.rows


def elect(rows: Tensor) -> Tensor:
    """The elected signs of ``rows``, ``(K, n)``: those of their sum, + where that is 0. ``(n,)``, 1 and -1."""
    return weighted_sum(rows, [1.0] * len(rows)).ge_(0).mul_(2).sub_(1)


def agreeing(rows: Tensor, signs: Tensor) -> Iterator[Tensor]:
    """Each of ``rows``, ``(K, n)``, in turn and in place: the sizes of what has the elected sign, and 0."""
    for row in rows:
        yield row.mul_(signs).clamp_(min=0)


def elected(rows: Tensor, weights: Sequence[float], merge_by: Literal["mean", "sum"]) -> Tensor:
    """Of each entry of the weighted ``rows``, ``(K, n)``, what has the sign of their sum: added up, or its mean. ``(n,)``.

    The mean is over the sizes of the weights: one below 0 turns a model's sign around. The rows are overwritten.
    """
    factors = torch.tensor(weights, dtype=rows.dtype)
    return torch.from_numpy(sum_of_elected(rows.numpy(), factors.numpy(), merge_by == "mean"))


def _sum_of_elected(rows: Array, weights: Array, mean: bool) -> Array:
    elected = torch.from_numpy(rows)
    elected *= torch.from_numpy(weights)[:, None]
    signs = elect(elected)
    total, weight_of = torch.zeros_like(signs), torch.zeros_like(signs)
    for row, weight in zip(agreeing(elected, signs), weights.tolist(), strict=True):
        total += row
        if mean:
            weight_of.add_(row.sign_(), alpha=abs(weight))
    if mean:
        total /= weight_of.clamp_(min=torch.finfo(total.dtype).tiny)  # where nothing agrees, 0 is divided
    return total.mul_(signs).numpy()


@fused(_sum_of_elected)
def sum_of_elected(rows: Array, weights: Array, mean: bool) -> Array:
    """See `elected`."""
    count, n = rows.shape
    zero, one, tiny = rows.dtype.type(0), rows.dtype.type(1), np.finfo(rows.dtype).tiny
    found = np.empty(n, rows.dtype)
    for start in range(0, n, 2048):  # a piece at a time, which stays in the cache
        stop = min(start + 2048, n)
        signs, total, weight_of = found[start:stop], np.zeros(stop - start, rows.dtype), np.zeros(stop - start, rows.dtype)
        signs[:] = zero
        for k in range(count):
            row, weight = rows[k, start:stop], weights[k]
            for i in range(stop - start):
                signs[i] += row[i] * weight
        for i in range(stop - start):
            signs[i] = one if signs[i] >= zero else -one
        for k in range(count):
            row, weight = rows[k, start:stop], weights[k]
            for i in range(stop - start):
                size = row[i] * weight * signs[i]
                total[i] += zero if size <= zero else size  # what is not a number goes on
                weight_of[i] += abs(weight) if size > zero else zero
        for i in range(stop - start):
            signs[i] *= total[i] / max(weight_of[i], tiny) if mean else total[i]
    return found
