"""Exact solvers of the small problems behind Gramian weightings: quadratic programs on ``y >= 0``, and Newton's method.

All work on the cosines of the task gradients, ``C = D^-1 G D^-1`` with ``D`` the norms of the gradients, in ``y = D w``
instead of the weights ``w``: tasks whose gradients differ in size by any factor are then solved alike. The functions take
and give NumPy arrays in float64. A quadratic program is solved by block principal pivoting: guess which entries are
positive, solve the linear system of those, turn round all wrong guesses at once, until the optimality conditions hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

RIDGE = 1e-13
"""Added to the diagonal of a matrix of cosines before it is factorised; its entries are rounded at about 1e-16."""

STATIONARY = 1e-13
"""Below this the squared norm of a convex combination of unit gradients counts as zero: no step helps all tasks."""

TOLERANCE = 1e-11
"""What counts as zero beside the largest of its kind, in optimality conditions."""


def cosines(gramian: Tensor) -> tuple[Array, Array]:
    """Norms and cosines of the task gradients, ``(K,)`` and ``(K, K)``.

    A gradient that vanishes has norm 0, and counts as orthogonal to all others.
    """
    g: Array = gramian.numpy().astype(np.float64)
    diagonal: Array = g.diagonal()
    norms = np.sqrt(np.where(diagonal > 1e-290, diagonal, 0))
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    matrix = np.clip(g * inverse[:, None] * inverse, -1, 1)
    np.fill_diagonal(matrix, 1)
    return norms, matrix


def at_least(gramian: Tensor, shares: Array | None, added: Callable[[Array, Array], Array]) -> Tensor:
    """``u`` and what has to be added to these weights for the step to conflict with no task, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        shares: ``u >= 0``, ``(K,)``; ``1 / K`` each by default.
        added: from the cosines, ``(K, K)``, and ``u`` times the norms, ``(K,)``, what to add, times the norms.
    """
    norms, matrix = cosines(gramian)
    shares = np.full(len(norms), 1 / len(norms)) if shares is None else shares
    longest = norms.max()
    if longest == 0:
        return torch.from_numpy(shares)
    norms = norms / longest
    more = added(matrix, norms * shares)
    return torch.from_numpy(shares + np.divide(more, norms, out=np.zeros_like(more), where=norms > 0))


def nonnegative(matrix: Array, linear: Array, free: Flags | None = None) -> Array:
    """The ``y >= 0`` that minimises ``y^T M y / 2 - q^T y``.

    Args:
        matrix: ``M``, ``(K, K)``, positive semi-definite with a diagonal of about 1.
        linear: ``q``, ``(K,)``; the minimum has to exist.
        free: a guess at which entries of the solution are positive, ``(K,)``.
    """
    free = linear > 0 if free is None else free
    fewest, patience = len(linear) + 1, 4
    while patience > 0:
        y, wrong = _pivot(matrix, linear, free)
        count = int(np.count_nonzero(wrong))
        if count == 0:
            return np.maximum(y, 0)
        patience = 4 if count < fewest else patience - 1
        fewest = min(count, fewest)
        free = free ^ wrong
    from scipy.optimize import nnls  # scipy's parts take half a second to import, and a run seldom needs them

    # Going in circles, as it may where tasks depend on each other: one entry at a time, which is slower, cannot.
    values, vectors = np.linalg.eigh(matrix)
    root: Array = np.sqrt(np.maximum(values, RIDGE))
    slow, _ = nnls(root[:, None] * vectors.T, vectors.T @ linear / root, maxiter=30 * len(matrix))
    y, wrong = _pivot(matrix, linear, np.greater(slow, 0))
    return np.array(slow) if wrong.any() else np.maximum(y, 0)


def nonnegative_columns(matrix: Array, linear: Array) -> Array:
    """`nonnegative` for each column of ``linear``, ``(K, N)``, with one matrix.

    Which entries are positive is guessed for all columns together by a few steps of the alternating direction method of
    multipliers in single precision, which are products of matrices; then each column is solved exactly.
    """
    free = _guess(matrix, linear)
    ridged = matrix + RIDGE * np.eye(len(matrix))
    y = np.zeros_like(linear)
    few: Flags = np.less(3 * free.sum(0), 2 * len(matrix))
    for k in few.nonzero()[0]:
        at = free[:, k].nonzero()[0]
        y[at, k] = _solve(_block(ridged, at), linear[at, k])
    if not few.all():
        # Where most are positive, the inverse solves for the slopes of those that are not.
        inverse = np.asarray(np.linalg.inv(ridged), dtype=np.float64)
        y[:, ~few] = inverse @ linear[:, ~few]
        for k in (~few).nonzero()[0]:
            at = (~free[:, k]).nonzero()[0]
            y[:, k] -= inverse[:, at] @ _solve(_block(inverse, at), y[at, k])
            y[at, k] = 0
    slope = matrix @ y - linear
    size = np.abs(linear).max(0)
    wrong = _wrong(y, slope, size, free) | free & (np.abs(slope) > TOLERANCE * size)
    y = np.maximum(y, 0)
    for k in np.nonzero(wrong.any(0))[0]:
        y[:, k] = nonnegative(matrix, linear[:, k], free[:, k])
    return y


def projections(matrix: Array) -> Array:
    """The ``Z >= 0`` with ``C (I + Z) >= 0`` for which the columns of ``I + Z`` make unit gradients into their projections.

    The projection is onto the cone of steps that conflict with no task, and ``(I + Z)^T C (I + Z)`` has the least diagonal.
    Where some gradients cancel each other, a step in the cone is orthogonal to each of them: those are taken out first.
    """
    nearest, zero = hull_is_zero(matrix)
    if zero:
        z = _projections_beside(matrix, nearest)
        slope = matrix + matrix @ z
        size = TOLERANCE * (1 + np.abs(z).max(0))
        if (slope >= -size).all() and (np.abs((z * slope).sum(0)) <= size).all():
            return z
    return nonnegative_columns(matrix, -matrix)


def _projections_beside(matrix: Array, cancelling: Array) -> Array:
    held = cancelling > 1e-6 * cancelling.max()
    rest = ~held
    onto = np.linalg.pinv(matrix[np.ix_(held, held)], rcond=1e-11, hermitian=True) @ matrix[held]
    beside = matrix[np.ix_(rest, rest)] - matrix[np.ix_(rest, held)] @ onto[:, rest]
    diagonal = beside.diagonal()
    lengths = np.sqrt(np.where(diagonal > 1e-14, diagonal, 0))
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    unit = np.clip(beside * inverse[:, None] * inverse, -1, 1)
    np.fill_diagonal(unit, 1)
    z = np.zeros_like(matrix)
    if rest.any():
        z[np.ix_(rest, rest)] = projections(unit) * inverse[:, None] * lengths
    # The multipliers of the gradients taken out may have any sign, until the combination that cancels is added.
    z[held] = -onto - onto[:, rest] @ z[rest]
    z[held] += np.outer(cancelling[held], np.maximum((-z[held] / cancelling[held, None]).max(0), 0))
    return np.maximum(z, 0)


def hull_is_zero(matrix: Array) -> tuple[Array, bool]:
    """The point nearest to zero in the convex hull of the unit gradients, as ``y >= 0``, and whether it is zero."""
    ones = np.ones(len(matrix))
    y = nonnegative(matrix + 1, ones)
    return y, bool(y @ matrix @ y <= STATIONARY * y.sum() ** 2)


def min_norm(norms: Array, matrix: Array) -> Array:
    """The weights on the simplex that minimise ``|sum_k w_k g_k|^2``, ``(K,)``.

    With ``a = D^-1 1``, they are in proportion to ``D^-1 y`` for the minimum of ``y^T C y + (a^T y - 1)^2`` over ``y >= 0``.
    """
    if not norms.all():
        flat: Array = (norms == 0) / np.count_nonzero(norms == 0)
        return flat
    # First as if all gradients were of one length: a combination that vanishes does so whatever the lengths.
    y, zero = hull_is_zero(matrix)
    inverse = norms.min() / norms
    if not zero:
        y = nonnegative(matrix + np.outer(inverse, inverse), inverse, y > 0)
    weights: Array = y * inverse / (y @ inverse)
    return weights


def raise_until(matrix: Array, rise: Array, base: Array, top: float, target: float, squared: bool) -> Array:
    """The solution ``y`` of `nonnegative` for ``q = nu a - b`` at the level ``nu`` where it is as large as asked for.

    Its size grows with ``nu``: smoothly as long as the same entries are positive, which Newton's method follows exactly,
    kept in an interval. Where no step helps all tasks, the size at ``nu = 0`` is the largest there is, and the answer is the
    solution there if it falls short.

    Args:
        matrix: cosines ``C``, ``(K, K)``.
        rise: ``a > 0``, ``(K,)``.
        base: ``b``, ``(K,)``.
        top: a level at which the solution is as large as asked for, if any level is.
        target: how large; 0 or more.
        squared: whether its size is ``y^T C y``, rather than ``a^T y``.
    """
    low, high, nu = float((base / rise).min()), 0.0, 0.0
    nearest = 1e-24 * max(top, -low)
    below, above = np.zeros_like(base), np.zeros_like(base)  # solutions at both ends of the interval
    short, over = -target, 0.0
    y, followed, last = below, False, np.inf
    if target == 0:
        return y
    for turn in range(200):
        linear, before = nu * rise - base, y > 0
        y = nonnegative(matrix, linear, before if turn else None)
        total = float(rise @ y)
        excess = (float(y @ linear) if squared else total) - target
        if turn == 0 and excess < 0:
            if hull_is_zero(matrix)[1]:
                return y
            high = top
        # A step of Newton's that keeps the set of positive entries is exact but for rounding.
        settled = followed and abs(excess) <= 1e-6 * target and np.array_equal(before, y > 0)
        if settled or abs(excess) <= 1e-14 * target:
            return y
        if excess < 0:
            low, below, short = nu, y, excess
        else:
            high, above, over = nu, y, excess
        if high - low <= max(nearest, 1e-16 * abs(nu)):
            break
        at = y.nonzero()[0]
        curve = float(rise[at] @ _solve(_block(matrix, at), rise[at])) if len(at) else 0.0
        if squared:
            inside = total * total - curve * excess
            move = -excess / (total + inside**0.5) if inside > 0 < total else np.inf
        else:
            move = -excess / curve if curve > 0 else np.inf
        followed = low < nu + move < high and abs(excess) < 0.5 * last
        last = abs(excess)
        if followed:
            nu += move
        else:
            nu = high if len(at) == 0 and not over else (low + high) / 2
    # The sum of the weights may jump at a level, where tasks depend on each other: all between the ends is a solution.
    return y if over <= 0 else (over * below - short * above) / (over - short)


def fair(matrix: Array, pull: Array, power: float) -> Array:
    """The ``y > 0`` with ``C y = c y^-p``, entry by entry.

    It minimises the convex ``y^T C y / 2 - sum_k c_k f(y_k)`` with ``f' = y^-p``, here by Newton's method with a line search
    on the slope, which unlike the value is exact to the end.

    Args:
        matrix: cosines ``C``, ``(K, K)``; where a convex combination of unit gradients is zero there is no solution, and
            that for ``C`` plus a ridge of 1e-12 takes its place: large weights of a step that all but vanishes.
        pull: ``c > 0``, ``(K,)``.
        power: ``p > 0``.
    """
    if hull_is_zero(matrix)[1]:
        matrix = matrix + 1e-12 * np.eye(len(matrix))
    y = pull ** (1 / (1 + power))
    product, size, least, best = matrix @ y, np.abs(matrix), np.inf, y
    for _ in range(200):
        force = pull * y**-power
        slope = product - force
        error = float(np.abs(slope / (force + 1e-5 * size @ y)).max())  # where terms cancel, rounding is no error
        if error < least:
            least, best = error, y
        elif least < 1e-9:
            break
        if error <= 1e-15:
            break
        hessian = matrix.copy()
        hessian.flat[:: len(y) + 1] += power * force / y
        step = _solve(hessian, -slope)
        along, fall = matrix @ step, abs(float(slope @ step))
        length = min(1.0, 0.95 / max(float((-step / y).max()), 1e-300))
        for _ in range(60):
            following = y + length * step
            if float((product + length * along - pull * following**-power) @ step) <= 0.5 * fall:
                break
            length /= 2
        y = following
        product = matrix @ y
    return best


def _pivot(matrix: Array, linear: Array, free: Flags) -> tuple[Array, Flags]:
    # y is zero off the free entries, the slope M y - q zero on them; and which entries were guessed wrong
    y = np.zeros_like(linear)
    size = float(np.abs(linear).max())
    at = free.nonzero()[0]
    ridged = _block(matrix, at)
    ridged.flat[:: len(at) + 1] += RIDGE
    y[at] = _solve(ridged, linear[at])
    slope = matrix @ y - linear
    for _ in range(3):  # takes out what the ridge has put in
        if len(at) == 0 or float(np.abs(slope[at]).max()) <= 1e-15 * size:
            break
        better = y.copy()
        better[at] -= _solve(ridged, slope[at])
        slope_ = matrix @ better - linear
        if np.abs(slope_[at]).max() >= np.abs(slope[at]).max():
            break
        y, slope = better, slope_
    return y, _wrong(y, slope, size, free)


def _wrong(y: Array, slope: Array, size: Array | float, free: Flags) -> Flags:
    wrong: Flags = np.where(free, y < -TOLERANCE * np.maximum(y.max(0), size), slope < -TOLERANCE * size)
    return wrong


def _block(matrix: Array, at: NDArray[np.intp]) -> Array:
    return matrix.take(at, 0).take(at, 1)


def _guess(matrix: Array, linear: Array) -> Flags:
    # With penalty 1 and over-relaxation 1.6, the method's step is t <- A |t| + 0.2 t + b for z = max(t, 0), u = min(t, 0).
    one = np.eye(len(matrix), dtype=np.float32)
    solve = 1.6 * np.linalg.inv(matrix.astype(np.float32) + one)
    constant = solve @ linear.astype(np.float32)
    solve -= 0.8 * one
    t = constant.copy()
    for _ in range(10 + len(matrix) // 8):
        following = solve @ np.abs(t)
        t *= 0.2
        t += following
        t += constant
    free: Flags = t > 0
    return free


def _solve(matrix: Array, right: Array) -> Array:
    if len(right) == 0:
        return right
    from scipy.linalg import lapack  # see `nonnegative`

    _, x, failed = lapack.dposv(matrix.T, right, lower=1)  # transposed it is as LAPACK wants it, and saves a copy
    if failed:
        x = np.linalg.lstsq(matrix, right, rcond=RIDGE)[0]
    solution: Array = x
    return solution
