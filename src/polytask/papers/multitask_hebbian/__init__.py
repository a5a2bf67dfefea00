"""Multitasking Hebbian networks: patterns with blanks, which one state retrieves several of at once.

A spin that is blank in one pattern is free to serve another. With few blanks the retrieved patterns come in a hierarchy,
with many all are raised alike. Networks learn from noisy examples, with a teacher or without.

>>> import torch
>>> generator = torch.Generator().manual_seed(0)
>>> patterns = diluted_patterns(3, 5000, dilution=0.2, generator=generator)
>>> examples = noisy_examples(patterns, 100, quality=0.3, generator=generator)
>>> network = unsupervised(examples)
>>> cue = hierarchical_state(patterns[:1], generator)
>>> found = magnetisations(patterns, relax(network.sweeper(), cue))
>>> bool(found[0] > 0.75) and hierarchical(3, 0.2).tolist()[0] == 0.8
True
>>> states = heat_bath(network.sweeper(), cue, beta=10.0, generator=generator)
>>> bool(network.energy(next(states)) < network.energy(cue))
True
"""

from __future__ import annotations

from functools import partial

import torch

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.multitask_hebbian.digits import MILD, STRONG, measure
from polytask.papers.multitask_hebbian.dynamics import Sweeper, heat_bath, relax
from polytask.papers.multitask_hebbian.mean_field import (
    counted_odds,
    critical_dilution,
    critical_temperature,
    evenness,
    hierarchical,
    odds,
    parallel,
    phase_diagram,
    solve,
    stability,
)
from polytask.papers.multitask_hebbian.network import (
    HebbianNetwork,
    estimated_quality,
    stored,
    supervised,
    unsupervised,
)
from polytask.papers.multitask_hebbian.patterns import (
    dataset_entropy,
    diluted_patterns,
    examples_needed,
    hierarchical_state,
    magnetisations,
    noisy_examples,
    one_step_overlap,
    pattern_losses,
    random_states,
)
from polytask.papers.multitask_hebbian.picture import plot
from polytask.papers.multitask_hebbian.synthetic import measure_theory

__all__ = [
    "PAPER",
    "HebbianNetwork",
    "Sweeper",
    "counted_odds",
    "critical_dilution",
    "critical_temperature",
    "dataset_entropy",
    "diluted_patterns",
    "estimated_quality",
    "evenness",
    "examples_needed",
    "heat_bath",
    "hierarchical",
    "hierarchical_state",
    "magnetisations",
    "noisy_examples",
    "odds",
    "one_step_overlap",
    "parallel",
    "pattern_losses",
    "phase_diagram",
    "random_states",
    "relax",
    "solve",
    "stability",
    "stored",
    "supervised",
    "unsupervised",
]

_digits = partial(Claim, run=measure, seeds=10)
_drawn = partial(Claim, run=measure_theory, seeds=5)
_COMMENT = "Couplings of 50 examples of each pattern, without a teacher; magnetisations with patterns that were never seen."


def _at_scale() -> HebbianNetwork:
    """Ten patterns on a million spins."""
    return HebbianNetwork(torch.empty(10, 1_000_000))


PAPER = Paper(
    slug="multitask_hebbian",
    title="Parallel Learning by Multitasking Neural Networks",
    family="theory_and_control",
    verbs=("share", "balance", "measure"),
    reference="J. Stat. Mech. 2023, arXiv 2308.04106",
    claims=(
        _digits(
            name="hierarchy",
            statement="with a fifth blank, shares of the retrieved patterns are nearer to a power law than to equal ones",
            method=f"unsupervised to hierarchy at {MILD}",
            baseline=f"unsupervised to equal at {MILD}",
            better="lower",
            claimed="mild dilution: a hierarchy, amplitudes decay as a power law",
            comment=_COMMENT,
        ),
        _digits(
            name="parallel",
            statement="with 70 % blank, shares of the retrieved patterns are nearer to equal ones than to the power law",
            method=f"unsupervised to equal at {STRONG}",
            baseline=f"unsupervised to hierarchy at {STRONG}",
            better="lower",
            claimed="strong dilution: all patterns are raised with equal strength",
            comment=_COMMENT,
        ),
        _digits(
            name="more at once",
            statement="with 70 % blank more patterns are raised, to half of the largest, than with a fifth blank",
            method=f"unsupervised raised at {STRONG}",
            baseline=f"unsupervised raised at {MILD}",
            better="higher",
            claimed="from one pattern after another to all in parallel",
            comment=_COMMENT,
        ),
        _digits(
            name="no blanks",
            statement="with 70 % blank more patterns are raised than by a Hopfield network, whose patterns have no blanks",
            method=f"unsupervised raised at {STRONG}",
            baseline="unsupervised raised at 0.0",
            better="higher",
            claimed="Hopfield's network retrieves one pattern at a time",
            comment=_COMMENT,
        ),
        _digits(
            name="couplings",
            statement="the sum of magnetisations is above that with the sites of the couplings permuted",
            method=f"unsupervised sum at {MILD}",
            baseline=f"shuffled sum at {MILD}",
            better="higher",
            claimed="",
            comment="A check that the couplings retrieve, and not the state from which the network starts.",
        ),
        _digits(
            name="no teacher",
            statement="without a teacher the sum of magnetisations is less than 0.02 below that with one, over dilutions",
            method="unsupervised sum",
            baseline="supervised sum",
            better="higher",
            margin=-0.02,
            claimed="a teacher changes neither multitasking nor thresholds",
        ),
        _digits(
            name="no teacher, few examples",
            statement="without a teacher the overlap after a step is less than 0.02 below, at 1 to 50 examples",
            method="unsupervised overlap",
            baseline="supervised overlap",
            better="higher",
            margin=-0.02,
            claimed="a teacher changes neither multitasking nor thresholds",
            comment="Both stay below what signal to noise predicts: some pixels of a digit are less certain than others.",
        ),
        _digits(
            name="loss",
            statement="minimising the cost function gives a smaller quadratic loss to all patterns than holding one of them",
            method="relaxed loss",
            baseline="single loss",
            better="lower",
            claimed="minimising the cost function on several patterns minimises the quadratic loss",
            comment="From random states, half of each pattern blank; the losses are to patterns that were never seen.",
        ),
        _drawn(
            name="threshold",
            statement="without a teacher an overlap of 0.95 needs at most 10 % more examples",
            method="unsupervised needed",
            baseline="supervised needed",
            better="lower",
            margin=-10.0,
            claimed="the same required size of the data set",
            comment="Drawn patterns, examples of quality 0.2; in percent of what signal to noise predicts, 92 examples.",
        ),
        _drawn(
            name="Monte Carlo",
            statement="magnetisations are within 0.02 of a solution of the self-consistency equations for the same patterns",
            method="monte carlo error",
            baseline="tolerance",
            better="lower",
            claimed="Monte Carlo confirms the theory",
            comment="20,000 spins, mean over four dilutions and three temperatures. The equations have several solutions: "
            "of these the one counts that its own magnetisations lead to. Close to transitions finite networks differ more "
            "from infinite ones: the patterns' own frequencies of columns count.",
        ),
    ),
    scales=(
        Scale(
            name="10 patterns, 1,000,000 spins",
            build=_at_scale,
            parameters=10_000_000,
            source="K N: the couplings are kept as their factors; the paper's networks are smaller",
        ),
    ),
    plot=plot,
)
