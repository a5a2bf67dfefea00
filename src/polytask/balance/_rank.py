"""Matrices of cosines of gradients that depend on one another, as those of equal tasks do."""

from __future__ import annotations

import numpy as np

from polytask.balance.solvers import Array

SINGULAR = 1e-6
"""An eigenvalue this small beside the largest is rounding: inner products of gradients come in single precision."""


def rank(matrix: Array) -> int:
    """How many directions the gradients have whose cosines are ``matrix``, ``(K, K)``."""
    values = np.linalg.eigvalsh(matrix)
    return int(np.count_nonzero(values > SINGULAR * values[-1]))


def solve(matrix: Array, right: Array) -> Array:
    """The shortest ``y`` for which ``matrix y`` is as near to ``right`` as can be, ``(K,)``."""
    solution: Array = np.linalg.pinv(matrix, rcond=SINGULAR, hermitian=True) @ right
    return solution
