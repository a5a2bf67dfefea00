"""Patterns with blanks, the examples that a network sees of them, and the states that it starts from.

Sites are the last dimension. Patterns and examples are floats of -1, 0 and 1, where 0 is a blank; states are floats of -1
and 1. Agliari, Alessandrelli, Barra and Ricci-Tersenghi, *Parallel Learning by Multitasking Neural Networks*, J. Stat. Mech.
2023, arXiv 2308.04106.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from polytask.errors import InputError


def diluted_patterns(patterns: int, sites: int, dilution: float, generator: Generator | None = None) -> Tensor:
    """Random patterns, ``(K, N)``: each entry is 0 with probability ``dilution``, else -1 or 1 with equal odds."""
    _within("dilution", dilution, 0 <= dilution < 1, "0 <= dilution < 1")
    kept = torch.rand(patterns, sites, generator=generator) >= dilution
    return kept * random_states(patterns, sites, generator)


def noisy_examples(patterns: Tensor, examples: int, quality: float, generator: Generator | None = None) -> Tensor:
    """``M`` examples of each pattern, ``(K, M, N)``: ``eta = chi xi`` with ``P(chi = 1) = (1 + r) / 2``; blanks stay blank.

    Args:
        patterns: ``(K, N)``.
        examples: ``M``.
        quality: ``r``, the mean of ``chi``, above 0 and at most 1.
        generator: of the noise.
    """
    _within("quality", quality, 0 < quality <= 1, "0 < quality <= 1")
    count, sites = patterns.shape
    right = torch.rand(count, examples, sites, generator=generator) < (1 + quality) / 2
    return patterns[:, None] * torch.where(right, 1.0, -1.0)


def random_states(count: int, sites: int, generator: Generator | None = None) -> Tensor:
    """``(count, sites)`` of -1 and 1 with equal odds."""
    return torch.randint(2, (count, sites), generator=generator) * 2.0 - 1.0


def hierarchical_state(patterns: Tensor, generator: Generator | None = None) -> Tensor:
    """The state ``(N,)`` that follows, at each site, the first of the patterns ``(K, N)`` that is not blank there.

    Where all are blank the spin is drawn. Of a single pattern this is the cue that shows it alone.
    """
    state = random_states(1, patterns.shape[1], generator)[0]
    for pattern in patterns.flip(0):
        state = torch.where(pattern == 0, state, pattern)
    return state


def magnetisations(patterns: Tensor, states: Tensor) -> Tensor:
    """Mattis magnetisations ``m_mu = (1/N) sum_i xi_i^mu s_i``: ``(K, N)`` and ``(..., N)`` to ``(..., K)``.

    The largest value is a pattern's active fraction, ``1 - d`` on average, not 1.
    """
    return states @ patterns.T.to(states.dtype) / patterns.shape[1]


def pattern_losses(patterns: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The quadratic losses ``L_-, L_+ = (1/2N) ||xi^mu -+ s||^2``, each ``(..., K)``: to a pattern and to its mirror image.

    They are ``(1 + a_mu) / 2 -+ m_mu``, with ``a_mu`` the active fraction, so that their product is ``((1 + a_mu) / 2)^2 -
    m_mu^2``, and `HebbianNetwork.energy` is, up to a constant, ``N / 2`` times the sum of these products over the patterns.
    """
    difference = patterns - states[..., None, :]
    mirrored = patterns + states[..., None, :]
    return difference.square().mean(-1) / 2, mirrored.square().mean(-1) / 2


def dataset_entropy(quality: float, examples: int) -> float:
    """``rho = (1 - r^2) / (M r^2)``: what ``M`` examples of quality ``r`` leave unknown of a pattern."""
    _within("quality", quality, 0 < quality <= 1, "0 < quality <= 1")
    return (1 - quality**2) / (examples * quality**2)


def one_step_overlap(entropy: float) -> float:
    """``erf(1 / sqrt(2 rho))``: the overlap with a pattern, over its active sites, one step at zero temperature after it.

    By signal to noise, in large networks and for many examples: the same for any dilution and number of patterns, with a
    teacher and without.
    """
    return math.erf(1 / math.sqrt(2 * entropy)) if entropy > 0 else 1.0


def examples_needed(overlap: float, quality: float) -> float:
    """``2 erfinv(Theta)^2 (1 - r^2) / r^2``: how many examples of quality ``r`` give a one-step overlap of ``Theta``."""
    _within("overlap", overlap, 0 < overlap < 1, "0 < overlap < 1")
    inverse = float(torch.erfinv(torch.tensor(overlap, dtype=torch.double)))
    return 2 * inverse**2 * dataset_entropy(quality, 1)


def _within(name: str, value: float, fine: bool, expected: str) -> None:
    if not fine:
        raise InputError(f"{name} = {value}, expected {expected}")
