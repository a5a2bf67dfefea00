"""Training, validation and test rows: at random, alike in a column's classes, by whole groups, or by time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from polytask.data.digits import split_by_class
from polytask.errors import InputError, suggest

SPLITS = ("random", "stratified", "group", "time")
"""``random``; ``stratified``, each class divided alike; ``group``, no group in two parts; ``time``, the latest rows last."""

SHARES = (0.6, 0.2, 0.2)
"""The share of the rows in training, validation and test."""

Rows = NDArray[np.int64]


def split_rows(
    rows: int, how: str = "random", column: pl.Series | None = None, shares: Sequence[float] = SHARES, seed: int = 0
) -> tuple[Rows, Rows, Rows]:
    """Indices of the training, validation and test rows: disjoint, ascending, together all rows.

    Args:
        rows: the number of rows.
        how: one of `SPLITS`.
        column: the classes, groups or times; not for ``random``. Rows that share a group, or a time, are never divided;
            rows without one stand together as one more class or group, and come first in time.
        shares: of the three parts; with groups or ties the nearest that whole groups allow.
        seed: of the division; ``time`` has nothing random.

    Raises:
        InputError: an unknown way to split, shares that do not sum to 1, or a part without rows.
    """
    if how not in SPLITS:
        raise InputError(f"unknown split {how!r}: {suggest(how, SPLITS)}")
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"split shares {tuple(shares)}, expected three positive numbers that sum to 1")
    rng = np.random.default_rng(seed)
    if how == "random":
        parts = _divided(rng.permutation(rows), shares)
    elif column is None:
        raise InputError(f"a {how} split needs a column to split by")
    elif how == "stratified":
        parts = [np.sort(part.numpy()) for part in split_by_class(torch.from_numpy(_codes(column)), shares, seed)]
    elif how == "group":
        groups = _codes(column)
        parts = _divided(rng.permutation(groups.max() + 1)[groups], shares)
    else:
        parts = _divided(_codes(column), shares)
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise InputError(f"the {how} split of {rows} rows leaves none for {name}, expected more rows or groups")
    return parts[0], parts[1], parts[2]


def _divided(keys: Rows, shares: Sequence[float]) -> list[Rows]:
    """The rows, in the order of their keys, in three parts; a key belongs to the part that the middle of its rows is in."""
    counts = np.bincount(keys)
    part_of_key = np.searchsorted(np.cumsum(shares)[:2] * len(keys), counts.cumsum() - counts / 2)
    return [np.flatnonzero(part_of_key[keys] == part) for part in range(3)]


def _codes(column: pl.Series) -> Rows:
    """The rank of each value among the distinct ones, from 1; 0 where it is missing."""
    return column.rank("dense").fill_null(0).cast(pl.Int64).to_numpy(writable=True)
