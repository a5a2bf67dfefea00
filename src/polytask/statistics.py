"""Paired statistics over seeds: differences with intervals, p values, and the correction for asking many questions.

Every function takes one number for each pair (method minus baseline on the same seed, split or example). What an interval
covers is what varies between the pairs: over seeds on one data set it covers splits and initialisations, not new data sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from polytask.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, all in the unit of the differences."""

    mean: float
    low: float
    high: float
    level: float = 0.95


def t_interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    """The mean difference with Student's t interval, ``mean +- t_{n-1} s / sqrt(n)``: right for few seeds.

    Args:
        differences: ``(n,)``, at least two finite numbers.
        level: the interval's confidence, between 0 and 1.

    >>> t_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484..., level=0.95)
    """
    values = _checked(differences)
    mean = float(values.mean())
    width = float(special.stdtrit(len(values) - 1, (1 + _level(level)) / 2) * _standard_error(values))
    return Interval(mean, mean - width, mean + width, level)


def bootstrap_interval(
    differences: ArrayLike,
    level: float = 0.95,
    *,
    method: Literal["bca", "percentile"] = "bca",
    statistic: Callable[[NDArray[np.float64], int], NDArray[np.float64]] = np.mean,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """A statistic of the differences with its bootstrap interval: for many pairs, or a statistic without a formula.

    BCa (Efron, *Better bootstrap confidence intervals*, 1987) corrects the percentile interval for bias and skewness. With
    fewer than about 20 pairs either is too narrow; prefer `t_interval` there. When all differences are equal the interval
    is that one number.

    Args:
        differences: ``(n,)``, at least two finite numbers.
        level: the interval's confidence, between 0 and 1.
        method: ``"bca"`` or ``"percentile"``.
        statistic: a function ``(values, axis)`` that reduces one axis, such as ``np.mean`` or ``np.median``.
        resamples: the number of bootstrap samples.
        seed: the seed of the resampling; the same seed gives the same interval.
    """
    from scipy.stats import bootstrap  # takes a second to import, and only this function needs it

    values = _checked(differences)
    estimate = float(np.asarray(statistic(values, 0)))
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, _level(level))
    found = bootstrap(
        (values,),
        lambda sample, axis: statistic(sample, axis),
        n_resamples=resamples,
        confidence_level=_level(level),
        method={"bca": "BCa", "percentile": "percentile"}[method],
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), level)


def paired_p_value(differences: ArrayLike) -> float:
    """The two-sided p value of the paired t test that the mean difference is zero.

    Equal differences have no spread to test against: p is 1 when they are all zero, else 0.
    """
    values = _checked(differences)
    error = _standard_error(values)
    if error == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(2 * special.stdtr(len(values) - 1, -abs(values.mean()) / error))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down correction: p values that may be read together, in the order given.

    The i-th smallest of m is multiplied by ``m - i + 1``, made monotone and cut at 1 (Holm, *A simple sequentially
    rejective multiple test procedure*, 1979). Valid whatever the dependence between the tests.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p values {p.tolist()}, expected a list of numbers between 0 and 1")
    order = p.argsort(kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return corrected


def _standard_error(values: NDArray[np.float64]) -> float:
    # Equal numbers can differ from their rounded mean; their spread is 0 all the same.
    return 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1) / np.sqrt(len(values)))


def _checked(differences: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"differences of shape {values.shape}, expected a list of at least two numbers")
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise InputError(f"difference {index} is {values[index]}, expected a finite number")
    return values


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level {level}, expected a number between 0 and 1")
    return level
