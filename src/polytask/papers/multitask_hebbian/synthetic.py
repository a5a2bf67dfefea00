"""The claims on drawn patterns: Monte Carlo beside the self-consistency equations, and how many examples are needed."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from polytask.claim import Measurements
from polytask.papers.multitask_hebbian.dynamics import heat_bath
from polytask.papers.multitask_hebbian.mean_field import counted_odds, hierarchical, odds, solve
from polytask.papers.multitask_hebbian.network import HebbianNetwork, stored, supervised, unsupervised
from polytask.papers.multitask_hebbian.patterns import (
    diluted_patterns,
    examples_needed,
    hierarchical_state,
    magnetisations,
    noisy_examples,
)

PATTERNS = 3
SITES, DILUTIONS, TEMPERATURES, BEFORE, SWEEPS = 20_000, (0.2, 0.4, 0.55, 0.7), (0.0, 0.1, 0.2), 100, 100
TOLERANCE = 0.02
"""Of the Monte Carlo: sweeps before anything is measured, and sweeps that are measured; an error that counts as none."""
LEARNING_SITES, DILUTION, QUALITY, EXAMPLES, OVERLAP = 5000, 0.25, 0.2, (12, 25, 50, 100, 200), 0.95
"""Of the learning: numbers of examples, and the overlap that is asked for."""
PROTOCOLS = {"supervised": supervised, "unsupervised": unsupervised}


def measure_theory(seed: int, data: Path, sites: int = SITES, learning_sites: int = LEARNING_SITES) -> Measurements:
    """``"monte carlo error"`` is by how much magnetisations, from the hierarchical state, miss a solution of the equations.

    The equations have several solutions, so it is the one that they reach from these magnetisations, for the same
    patterns. What counts is the magnetisation that differs most, in the mean over dilutions and temperatures;
    ``"monte carlo worst"`` is the largest. ``"infinite error"`` is the difference to the solution from the hierarchical
    state with infinitely many spins. ``"PROTOCOL overlap with M drawn"`` is the overlap one step after a pattern, over its
    active sites; ``"PROTOCOL needed"`` how many examples an overlap of `OVERLAP` needs, in percent of what theory says.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = torch.tensor([_errors(sites, d, t, generator) for d in DILUTIONS for t in TEMPERATURES])
    own, infinite = errors.mean(0).tolist()
    found = {"monte carlo error": own, "monte carlo worst": float(errors[:, 0].max()), "infinite error": infinite}
    found["tolerance"] = TOLERANCE
    patterns = diluted_patterns(PATTERNS, learning_sites, DILUTION, generator)
    examples = noisy_examples(patterns, max(EXAMPLES), QUALITY, generator)
    for name, learn in PROTOCOLS.items():
        overlaps = [one_step(learn(examples[:, :count], QUALITY), patterns, _again(seed)) for count in EXAMPLES]
        found |= {f"{name} overlap with {count} drawn": value for count, value in zip(EXAMPLES, overlaps, strict=True)}
        found[f"{name} needed"] = 100 * needed(EXAMPLES, overlaps, OVERLAP) / examples_needed(OVERLAP, QUALITY)
    return found


def _errors(sites: int, dilution: float, temperature: float, generator: Generator) -> tuple[float, float]:
    """To the nearby solution for the same patterns, and to that for infinitely many spins."""
    patterns = diluted_patterns(PATTERNS, sites, dilution, generator)
    beta = 1 / temperature if temperature else math.inf
    chain = heat_bath(stored(patterns).sweeper(), hierarchical_state(patterns, generator), beta, generator)
    m = torch.stack([magnetisations(patterns, state) for state in islice(chain, BEFORE, BEFORE + SWEEPS)]).mean(0)
    own = solve(m, counted_odds(patterns), temperature)
    infinite = solve(hierarchical(PATTERNS, dilution), odds(PATTERNS, dilution), temperature)
    return float((m - own).abs().max()), float((m - infinite).abs().max())


def _again(seed: int) -> Generator:
    """The same numbers for each network: they fill the same blanks with the same spins."""
    return torch.Generator().manual_seed(seed + 1)


def one_step(network: HebbianNetwork, patterns: Tensor, generator: Generator | None = None) -> float:
    """The mean over patterns of the overlap, over the active sites, one step at zero temperature after the pattern.

    Blanks are filled with random spins.
    """
    starts = torch.stack([hierarchical_state(pattern[None], generator) for pattern in patterns])
    aligned = (network.step(starts) * patterns).sum(1) / patterns.abs().sum(1)
    return float(aligned.mean())


def needed(examples: tuple[int, ...], overlaps: list[float], overlap: float) -> float:
    """How many examples give ``overlap``, between those that were measured.

    By theory ``erfinv(overlap)^2`` grows as the number of examples; so it is interpolated by that. Beyond the last number it
    is the last.
    """
    inverse = torch.erfinv(torch.tensor([*overlaps, overlap], dtype=torch.double).clamp(-1 + 1e-9, 1 - 1e-9))
    squares = (inverse * inverse.abs()).numpy()
    return float(np.interp(squares[-1], np.maximum.accumulate(squares[:-1]), examples))
