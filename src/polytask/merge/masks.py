"""Masks of flat tensors: which coordinates of a multi-task vector a task needs, and masks as packed bits.

Wang, Dimitriadis, Ortiz-Jimenez, Fleuret and Frossard, *Localizing task information for improved model merging and
compression*, ICML 2024 (TALL-masks and Consensus merging).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import wide

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6)
"""The paper's grid for the scale of a task's mask."""


def tall_mask(delta: Tensor, merged: Tensor, scale: float) -> Tensor:
    """The coordinates in which the multi-task vector serves the task: ``|tau_t| > scale * |tau_MTL - tau_t|``.

    With ``scale`` 1, these are the coordinates that are nearer to the expert in the multi-task model than in the base. The
    inequality is strict, as in the authors' code (the paper prints >=): a coordinate that no expert moved is not in the
    mask. A larger scale gives a subset; scale 0 gives the support of the task vector.

    Args:
        delta: the task vector ``tau_t``, expert minus base, any shape, finite.
        merged: the multi-task vector ``tau_MTL`` at coefficient 1, of the same shape, such as the sum of the task vectors.
        scale: lambda, finite, >= 0. The paper chooses it for each task from `SCALES` on validation data.

    Returns:
        bool, of the same shape. Half precision is compared in float32.
    """
    if delta.shape != merged.shape:
        raise InputError(f"a task vector of shape {tuple(delta.shape)}, a multi-task vector of {tuple(merged.shape)}")
    check_scale(scale, "scale")
    delta, merged = delta.to(wide(delta.dtype)), merged.to(wide(merged.dtype))
    return delta.abs() > (merged - delta).abs_().mul_(scale)


def magnitude_mask(delta: Tensor, density: float = 0.1) -> Tensor:
    """The ``round(density * n)`` coordinates of the largest ``|tau_t|``; of equal ones, the first. The paper's baseline.

    Args:
        delta: the task vector, ``(n,)``, finite; the paper takes the whole model's at once.
        density: the share that is kept, from 0 to 1.

    Returns:
        bool ``(n,)``.
    """
    if delta.ndim != 1:
        raise InputError(f"a task vector of shape {tuple(delta.shape)}, expected (n,)")
    if not 0 <= density <= 1:
        raise InputError(f"density {density}: expected a number from 0 to 1")
    n = len(delta)
    kept = round(density * n)
    if kept in (0, n):
        return torch.full((n,), kept > 0, device=delta.device)
    size = delta.to(wide(delta.dtype)).abs()
    threshold = size.kthvalue(n - kept + 1).values
    mask = size > threshold
    mask[(size == threshold).nonzero().flatten()[: kept - int(mask.sum())]] = True
    return mask


def agreement(masks: Iterable[Tensor]) -> Tensor:
    """How many of the masks, ``(K, n)`` or K tensors of one shape, hold each coordinate: int32.

    The paper calls a coordinate *catastrophic* where this is 0 (no task wants what the multi-task vector has there) and
    *selfish* where it is 1.
    """
    counts: Tensor | None = None
    for mask in masks:  # one by one, so that a generator never has all of them in memory
        counts = mask.to(torch.int32, copy=True) if counts is None else counts.add_(mask)
    if counts is None:
        raise InputError("agreement of no masks, expected at least one")
    return counts


def consensus(masks: Iterable[Tensor], k: int) -> Tensor:
    """The coordinates that at least ``k`` of the masks hold, bool: k = 0 holds all of them, more than K holds none."""
    if k < 0:
        raise InputError(f"k {k}: expected a number of tasks >= 0")
    return agreement(masks) >= k


def pack(mask: Tensor) -> Tensor:
    """The bits of a bool tensor of any shape, row by row, eight to a byte: uint8 ``(ceil(n / 8),)``.

    The first value is a byte's highest bit, as in `numpy.packbits`; what is left of the last byte is zero.
    """
    if mask.dtype != torch.bool:
        raise InputError(f"a mask of type {mask.dtype}, expected torch.bool")
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel())).to(mask.device)


def unpack(packed: Tensor, numel: int, shape: Sequence[int] | None = None) -> Tensor:
    """The bool tensor that `pack` packed.

    Args:
        packed: uint8 ``(ceil(numel / 8),)``.
        numel: how many values the mask has: the bits behind them are cut off, and must be zero.
        shape: the shape of the result, of ``numel`` values; ``(numel,)`` when left out.
    """
    check_packed(packed, numel)
    if shape is not None and math.prod(shape) != numel:
        raise InputError(f"a mask of {numel} values, expected {math.prod(shape)} for the shape {tuple(shape)}")
    bits = torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=numel)).to(packed.device).view(torch.bool)
    return bits if shape is None else bits.view(torch.Size(shape))


def check_scale(scale: float, what: str) -> None:
    """Raise `InputError` about ``what`` unless it is a finite number of at least 0."""
    if not 0 <= scale < math.inf:
        raise InputError(f"{what} {scale}: expected a finite number >= 0")


def check_packed(packed: Tensor, numel: int) -> None:
    """Raise `InputError` unless ``packed`` is what `pack` gives for ``numel`` values."""
    if packed.dtype != torch.uint8 or packed.shape != ((numel + 7) // 8,):
        found = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise InputError(f"a packed mask is {found}, expected torch.uint8 of shape ({(numel + 7) // 8},) for {numel} values")
    if numel % 8 and int(packed[-1]) & (255 >> numel % 8):
        raise InputError(f"a packed mask has bits behind its {numel} values, expected zeros")
