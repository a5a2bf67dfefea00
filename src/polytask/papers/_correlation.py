"""Spearman's rank correlation, defined where a side is constant."""

from __future__ import annotations

import warnings

from numpy.typing import ArrayLike


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's correlation of two lists of ``(N,)`` numbers; ties get their average rank.

    Where one of them is constant there is no correlation: 0, with a warning.

    >>> spearman([1.0, 2.0, 2.0, 3.0], [10, 20, 20, 1000])
    1.0
    """
    from scipy.stats import ConstantInputWarning, spearmanr  # takes a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        found = float(spearmanr(one, other).statistic)
    if found != found:
        warnings.warn("the correlation of numbers that are all alike is not defined, and counted as 0", stacklevel=2)
        return 0.0
    return found
