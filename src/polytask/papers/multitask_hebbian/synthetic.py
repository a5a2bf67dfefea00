"""The claims on drawn patterns: Monte Carlo beside the self-consistency equations, and how many examples are needed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from polytask.claim import Measurements
from polytask.papers.multitask_hebbian.dynamics import heat_bath
from polytask.papers.multitask_hebbian.mean_field import hierarchical, solve
from polytask.papers.multitask_hebbian.network import HebbianNetwork, stored, supervised, unsupervised
from polytask.papers.multitask_hebbian.patterns import (
    diluted_patterns,
    examples_needed,
    hierarchical_state,
    magnetisations,
    noisy_examples,
)

PATTERNS = 3
SITES, DILUTIONS, TEMPERATURES, BEFORE, SWEEPS = 20_000, (0.2, 0.4, 0.55, 0.7), (0.0, 0.1, 0.2), 20, 20
"""Of the Monte Carlo: sweeps before anything is measured, and sweeps that are measured."""
LEARNING_SITES, DILUTION, QUALITY, EXAMPLES, OVERLAP = 5000, 0.25, 0.2, (12, 25, 50, 100, 200), 0.95
"""Of the learning: numbers of examples, and the overlap that is asked for."""
PROTOCOLS = {"supervised": supervised, "unsupervised": unsupervised}


def measure_theory(seed: int, data: Path, sites: int = SITES, learning_sites: int = LEARNING_SITES) -> Measurements:
    """``"monte carlo error"`` is the largest difference of a magnetisation to the theory's, over dilutions and temperatures.

    Both start at the hierarchical state. ``"PROTOCOL overlap at M"`` is the overlap one step after a pattern, over its active
    sites; ``"PROTOCOL needed"`` how many examples an overlap of `OVERLAP` needs, in percent of what theory says.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = [
        _error(sites, dilution, temperature, generator) for dilution in DILUTIONS for temperature in TEMPERATURES
    ]
    found = {"monte carlo error": max(errors), "tolerance": 0.02}
    patterns = diluted_patterns(PATTERNS, learning_sites, DILUTION, generator)
    examples = noisy_examples(patterns, max(EXAMPLES), QUALITY, generator)
    for name, learn in PROTOCOLS.items():
        overlaps = [one_step(learn(examples[:, :count], QUALITY), patterns, generator) for count in EXAMPLES]
        found |= {f"{name} overlap at {count}": value for count, value in zip(EXAMPLES, overlaps, strict=True)}
        found[f"{name} needed"] = 100 * needed(EXAMPLES, overlaps, OVERLAP) / examples_needed(OVERLAP, QUALITY)
    return found


def _error(sites: int, dilution: float, temperature: float, generator: Generator) -> float:
    patterns = diluted_patterns(PATTERNS, sites, dilution, generator)
    beta = 1 / temperature if temperature else torch.inf
    chain = heat_bath(stored(patterns).sweeper(), hierarchical_state(patterns, generator), beta, generator)
    m = torch.stack([magnetisations(patterns, state) for state in islice(chain, BEFORE, BEFORE + SWEEPS)]).mean(0)
    return float((m - solve(hierarchical(PATTERNS, dilution), dilution, temperature)).abs().max())


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
