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
    if how == "random" or column is None:
        keys = np.random.default_rng(seed).permutation(rows)
    elif how == "stratified":
        codes = torch.from_numpy(column.rank("dense").fill_null(0).cast(pl.Int64).to_numpy())
        train, validation, test = (np.sort(part.numpy()) for part in split_by_class(codes, shares, seed))
        return _checked(train, validation, test, how)
    else:
        keys = column.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
        if how == "group":
            keys = np.random.default_rng(seed).permutation(int(keys.max()) + 1)[keys]
    # Where each key's rows end when rows are ordered by key; a key belongs to the part that the middle of its rows is in.
    ends = np.bincount(keys).cumsum()
    middles = ends - np.bincount(keys) / 2
    part = np.searchsorted(np.cumsum(shares)[:2] * rows, middles, side="left")[keys]
    return _checked(*(np.flatnonzero(part == i) for i in range(3)), how=how)


def _checked(train: Rows, validation: Rows, test: Rows, how: str) -> tuple[Rows, Rows, Rows]:
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        if len(part) == 0:
            total = len(train) + len(validation) + len(test)
            raise InputError(f"the {how} split of {total} rows leaves none for {name}, expected more rows or groups")
    return train, validation, test
