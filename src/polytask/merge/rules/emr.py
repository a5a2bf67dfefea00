"""EMR-Merging: elect, mask, rescale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Rule, merge_rules
from polytask.merge.rules._arithmetic import agreeing, elect


def unify(rows: Tensor) -> Tensor:
    """The unified task vector: the sign of the sum, and the largest magnitude among those that have that sign.

    Args:
        rows: task vectors, ``(K, n)``, which are overwritten.

    Returns:
        ``(n,)``. Where the sum is 0 the sign is +.
    """
    signs = elect(rows)
    largest = torch.zeros_like(signs)
    for row in agreeing(rows, signs):
        torch.maximum(largest, row, out=largest)
    return largest.mul_(signs)


def mask(delta: Tensor, unified: Tensor) -> Tensor:
    """Where a task vector has the sign of the unified one, ``tau_t tau > 0``: bool, of their shape."""
    if delta.shape != unified.shape:
        raise InputError(
            f"a task vector of shape {list(delta.shape)}, expected that of the unified one, {list(unified.shape)}"
        )
    return (delta.sign() * unified.sign()) > 0  # the product itself may underflow


def rescaler(deltas: Mapping[str, Tensor], unified: Mapping[str, Tensor]) -> float:
    """What brings the masked unified task vector to the mean magnitude of a task's own: ``|tau_t|_1 / |m_t tau|_1``.

    Args:
        deltas: the task vector by tensor.
        unified: the unified one, with the same names and shapes.

    Returns:
        One number for all tensors; 1 where the mask leaves nothing.
    """
    if deltas.keys() != unified.keys():
        odd = sorted(deltas.keys() ^ unified.keys())[0]
        raise InputError(f"tensor {odd!r} is not in both the task vector and the unified one")
    own = sum(float(delta.abs().sum(dtype=torch.float64)) for delta in deltas.values())
    kept = sum(
        float((unified[name].abs() * mask(delta, unified[name])).sum(dtype=torch.float64)) for name, delta in deltas.items()
    )
    return own / kept if kept > 0 else 1.0


def specialize(base: Tensor, delta: Tensor, unified: Tensor, scale: float) -> Tensor:
    """One task's weights from what EMR-Merging stores: ``theta_0 + lambda_t m_t tau``, in the precision of the base.

    Args:
        base: ``theta_0``.
        delta: the task vector, from which the mask is made, of the same shape.
        unified: the unified task vector, of the same shape.
        scale: the task's `rescaler`.
    """
    return (base + scale * unified * mask(delta, unified)).to(base.dtype)


@merge_rules.add("emr")
@dataclass(frozen=True)
class EMR(Rule):
    """In each coordinate the sign that weighs most, and the largest of the task vectors' entries that have it.

    ``theta_0 + scale tau`` with ``tau = sign(sum_t tau_t) max_t |tau_t|``, over the tasks that have the sign, and + where
    the sum is 0. Huang, Ye, Chen, He, Yue and Ouyang, *EMR-merging: tuning-free high-performance model merging*, NeurIPS
    2024. This is the vector that tasks share; each has its own model, ``theta_0 + lambda_t m_t tau``, by `mask`, `rescaler`
    and `specialize`.

    Args:
        scale: 1 in the paper.
    """

    scale: float = 1.0

    def merge(self, chunk: Chunk) -> Tensor:
        return chunk.plus_base(unify(chunk.rows), self.scale)
