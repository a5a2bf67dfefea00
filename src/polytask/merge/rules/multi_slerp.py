"""Spherical mean of several models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Products, Rule, merge_rules, per_model
from polytask.merge.rules._arithmetic import weighted_sum


def weights(products: Tensor, shares: Sequence[float], iterations: int = 50) -> list[float]:
    """What each model is multiplied by: its part in the mean direction, brought to the mean length.

    The mean direction is the Karcher mean on the sphere: the point from which the weighted sum of the arcs to all
    directions is 0 (Buss and Fillmore, *Spherical averages and applications to spherical splines and interpolation*, ACM
    Transactions on Graphics 2001), found by going along that sum. The length is the weighted mean of the lengths.

    Args:
        products: inner products of the models, ``(K, K)``, float64.
        shares: their weights, with sum 1. Models that are 0 have no direction, and count for the length only. Where
            directions cancel out, as two numbers of opposite sign do, no direction is their mean, and these are returned.
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    live = lengths > 0
    if not bool(live.any()):
        return [0.0] * len(shares)
    cosines = (products / lengths[:, None] / lengths).where(live[:, None] & live, torch.zeros(()).double())
    w = torch.tensor(shares, dtype=torch.float64) * live
    w = w / w.sum() if float(w.sum()) != 0 else live.double() / live.sum()
    if float(w @ cosines @ w) < 1e-24:
        return list(shares)
    mean = _unit(w, cosines)
    for _ in range(iterations):
        angles = (cosines @ mean).clamp(-1, 1).acos()
        factor = torch.where(angles > 1e-9, angles / angles.sin().clamp(min=1e-12), 1.0)
        factor *= angles < math.pi - 1e-6  # to the other end of the sphere no arc is the shortest
        # The arc to direction k is factor_k (u_k - cos(angle_k) mean).
        along = w * factor - (w * factor * angles.cos()).sum() * mean
        step = float((along @ cosines @ along).clamp(min=0).sqrt())
        if step < 1e-14:
            break
        mean = _unit(math.cos(step) * mean + math.sin(step) / step * along, cosines)
    length = float(sum(s * float(size) for s, size in zip(shares, lengths, strict=True)))
    return [float(m / size) * length if size > 0 else 0.0 for m, size in zip(mean, lengths, strict=True)]


def _unit(coefficients: Tensor, cosines: Tensor) -> Tensor:
    return coefficients / (coefficients @ cosines @ coefficients).sqrt()


@merge_rules.add("multi_slerp")
@dataclass(frozen=True)
class MultiSLERP(Rule):
    """Any number of models, averaged as directions and as lengths, tensor by tensor.

    With two models it is halfway along the arc of `SLERP`, but for the lengths. With a base, task vectors are averaged.

    Args:
        weight: of each model; they are brought to a sum of 1.
    """

    weight: PerModel = 1.0

    needs_base = False

    def statistics(self, count: int) -> Sequence[Products]:
        return (Products("products"),)

    def merge(self, chunk: Chunk) -> Tensor:
        given = per_model(self.weight, len(chunk.rows), "weight")
        if min(given) < 0 or sum(given) <= 0:
            raise InputError(f"weights {given}: expected numbers of at least 0, not all 0")
        shares = [w / sum(given) for w in given]
        return chunk.plus_base(weighted_sum(chunk.rows, weights(chunk.found["products"], shares)))
