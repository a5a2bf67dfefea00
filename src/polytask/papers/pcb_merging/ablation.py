"""PCB with one of its steps left out."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from polytask.errors import InputError

Step: TypeAlias = Literal["intra", "inter", "rescale"]


def compete(vectors: Tensor, ratio: float = 0.1, outliers: float = 0.01, without: Step | None = None) -> Tensor:
    """The merged task vector ``(d,)`` of task vectors ``(K, d)`` that are in memory as a whole; `PCB` streams.

    Args:
        vectors: a row for each task, finite.
        ratio, outliers: as of `polytask.merge.PCB`, whose agreement ``"sum"`` this is.
        without: ``"intra"``: the score is the agreement alone; ``"inter"``: it is the importance alone; ``"rescale"``: what
            is left counts alike, ``S`` is 0 or 1.
    """
    if without not in (None, "intra", "inter", "rescale"):
        raise InputError(f"without {without!r}: expected 'intra', 'inter', 'rescale' or None")
    sizes = _clamped(vectors.abs(), outliers, 1 - outliers)
    scores = torch.ones_like(vectors)
    if without != "intra":
        scores *= (len(vectors) * _normalised(sizes).square()).exp()
    if without != "inter":
        scores *= torch.tanh(vectors * vectors.sum(0))
    strength = _normalised(_clamped(scores, 1 - ratio, 1))
    if without == "rescale":
        strength = (strength > 0).to(strength)
    return (strength * vectors.sign() * sizes).sum(0) / strength.sum(0).clamp(min=1e-12)


def _clamped(values: Tensor, low: float, high: float) -> Tensor:
    """Each row between the order statistics at two fractions of it, counted as the authors do."""
    d = values.shape[1]
    ordered = values.sort(1).values
    most = max(int(d * high - 1), 0)
    return values.clamp(ordered[:, min(int(d * low), most), None], ordered[:, most, None])


def _normalised(values: Tensor) -> Tensor:
    """Each row stretched to [0, 1]; 0 where all its values are equal."""
    low, high = values.aminmax(dim=1, keepdim=True)
    return (values - low) / torch.where(high > low, high - low, 1)
