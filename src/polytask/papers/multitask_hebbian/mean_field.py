"""The self-consistency equations of few patterns in an infinite network, their closed forms, and the phase diagram.

``m_mu = E_xi [xi^mu tanh(beta sum_nu xi^nu m_nu)]``: with ``K`` patterns a site is one of ``3^K`` columns, and the
expectation is a sum over them. At zero temperature tanh is the sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import InputError


def columns(patterns: int) -> Tensor:
    """All columns of -1, 0 and 1, ``(3^K, K)``."""
    if not 1 <= patterns <= 10:
        raise InputError(f"{patterns} patterns, expected 1 to 10: a sum over 3^K columns is taken")
    return torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.double)] * patterns).view(-1, patterns)


def odds(patterns: int, dilution: Tensor | float) -> Tensor:
    """The probability of each of the `columns` of ``K`` patterns, ``(..., 3^K)`` for dilutions ``(...)``."""
    active = columns(patterns).abs().sum(1)
    d = torch.as_tensor(dilution, dtype=torch.double)[..., None]
    return ((1 - d) / 2) ** active * d ** (patterns - active)


def counted_odds(patterns: Tensor) -> Tensor:
    """How often each of the `columns` occurs in patterns ``(K, N)``, as a share: ``(3^K,)``.

    With these instead of `odds` the equations are those of a network with just these patterns. Close to a transition that
    makes a difference for many thousands of spins.
    """
    place = 3.0 ** torch.arange(len(patterns) - 1, -1, -1, dtype=torch.double)
    which = (place @ (patterns.double() + 1)).long()
    return torch.bincount(which, minlength=3 ** len(patterns)).double() / patterns.shape[1]


def solve(
    start: Tensor, odds: Tensor, temperature: Tensor | float = 0.0, steps: int = 20_000, accuracy: float = 1e-10
) -> Tensor:
    """The solution that iterating the equations reaches from ``start``, ``(..., K)``, in double precision.

    Close to a transition iterations are slow; the solution is what ``steps`` of them give where a step still changes more
    than ``accuracy``.

    Args:
        start: magnetisations ``(..., K)``.
        odds: of the columns, ``(..., 3^K)``: `odds` or `counted_odds`.
        temperature: ``1 / beta``, a number or ``(...)``.
        steps: the most iterations.
        accuracy: the change of a magnetisation below which they end.
    """
    each, t = columns(start.shape[-1]), torch.as_tensor(temperature, dtype=torch.double)[..., None]
    m = start.double()
    for _ in range(steps):
        after = (odds * _aligned(m @ each.T, t)) @ each
        change = float((after - m).abs().max())
        m = after
        if change < accuracy:
            break
    return m


def _aligned(fields: Tensor, temperature: Tensor) -> Tensor:
    """``tanh(h / T)``, at zero temperature the sign of ``h``."""
    fields = torch.where(fields.abs() < 1e-12, 0.0, fields)  # sums that cancel
    return torch.where(temperature > 0, (fields / temperature.clamp(min=1e-300)).tanh(), fields.sign())


def stability(m: Tensor, odds: Tensor, temperature: float) -> float:
    """The largest eigenvalue of the iteration's Jacobian at ``m``, ``(K,)``: below 1 the solution is stable.

    ``beta E[xi xi^T (1 - tanh^2)]``, at a temperature above 0; ``odds`` as for `solve`.
    """
    if not temperature > 0:
        raise InputError(f"temperature = {temperature}, expected above 0")
    each = columns(len(m))
    slope = 1 - (each @ m.double() / temperature).tanh() ** 2
    return float(torch.linalg.eigvalsh((each.T * odds * slope) @ each / temperature)[-1])


def hierarchical(patterns: int, dilution: float) -> Tensor:
    """Magnetisations of `hierarchical_state`: ``m_k = (1 - d) d^(k-1)``, ``(K,)``; their sum is ``1 - d^K``."""
    return (1 - dilution) * dilution ** torch.arange(patterns, dtype=torch.double)


def critical_dilution(patterns: int) -> float:
    """Up to which dilution the hierarchical state is stable at zero temperature: the root of ``1 - 2 d + d^K`` below 1.

    There the first pattern's magnetisation is the sum of all others. With one or two patterns it is stable at any dilution,
    and the answer is 1; with many it is 1/2.
    """
    if patterns < 3:
        return 1.0
    low, high = 0.5, (2 / patterns) ** (1 / (patterns - 1))  # above 0, and where it is least
    while high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - 2 * middle + middle**patterns > 0 else (low, middle)
    return low


def critical_temperature(dilution: float) -> float:
    """``1 - d``: above it all magnetisations are 0."""
    return 1 - dilution


def parallel(patterns: int, dilution: float, temperature: float = 0.0, steps: int = 20_000) -> float:
    """The one magnetisation of the state that all patterns share equally: ``m = (1/K) E[S tanh(beta m S)]``, ``S = sum xi``.

    At zero temperature ``E|S| / K``. It solves the equations at any dilution, but need not be stable.
    """
    total, t, m = columns(patterns).sum(1), torch.tensor(temperature, dtype=torch.double), 1.0
    weighted = odds(patterns, dilution) * total / patterns
    for _ in range(steps):
        after = float((weighted * _aligned(m * total, t)).sum())
        if abs(after - m) < 1e-13:
            break
        m = after
    return m


def phase_diagram(patterns: int, dilutions: Sequence[float], temperatures: Sequence[float], steps: int = 2000) -> Tensor:
    """Magnetisations ``(D, T, K)`` that are reached from the hierarchical state, for each dilution and temperature."""
    d = torch.tensor(dilutions, dtype=torch.double)[:, None].expand(-1, len(temperatures))
    t = torch.tensor(temperatures, dtype=torch.double).expand(len(dilutions), -1)
    start = torch.stack([hierarchical(patterns, float(value)) for value in dilutions])[:, None].expand(-1, len(t[0]), -1)
    return solve(start, odds(patterns, d), t, steps, accuracy=1e-8)


def evenness(m: Tensor) -> Tensor:
    """The smallest over the largest magnetisation, ``(..., K)`` to ``(...)``: 0 where one pattern is alone, 1 where all are
    equal, no number where none is above a thousandth."""
    largest = m.max(-1).values
    return torch.where(largest > 1e-3, m.min(-1).values / largest, math.nan)
