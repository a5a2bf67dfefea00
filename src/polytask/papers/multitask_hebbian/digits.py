"""The claims on handwritten digits: a pattern is eight digits side by side, and the network sees images of them.

scikit-learn's digits are -1 and 1 at half of the ink. A pattern joins eight classes, ``N = 512``; its examples join images
of these classes, 100 of each class being set aside for that; the pattern itself, which the network never sees, is the sign
of the mean of all other images. Each digit's pixels are permuted and change sign in a way of its own, the same for its
examples: without this all digits have the same dark margin, and all patterns are nearly one. Last come the blanks.

States start at the hierarchical state of the patterns, and relax for at most `SWEEPS` sweeps at zero temperature.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from polytask.claim import Measurements
from polytask.papers.multitask_hebbian.dynamics import relax
from polytask.papers.multitask_hebbian.mean_field import hierarchical
from polytask.papers.multitask_hebbian.network import HebbianNetwork, estimated_quality
from polytask.papers.multitask_hebbian.patterns import (
    hierarchical_state,
    magnetisations,
    pattern_losses,
    random_states,
)
from polytask.papers.multitask_hebbian.synthetic import PROTOCOLS, one_step

PATTERNS, DIGITS, SHOWN, SWEEPS = 3, 8, 100, 20
DILUTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MILD, MIDDLE, STRONG = 0.2, 0.5, 0.7
EXAMPLES, STARTS = (1, 3, 10, 50), 20
"""Numbers of examples, dilutions being compared at the last; and random states that relax."""


def digit_patterns(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patterns ``(K, N)`` and examples ``(K, M, N)`` without blanks, and a number in [0, 1) for each pattern's site.

    A site is blank at every dilution above its number.
    """
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(seed)
    pixels, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    images = torch.where(pixels >= 8, 1.0, -1.0)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = [images[shuffled][labels[shuffled] == label] for label in range(10)]
    patterns, examples = [], []
    for _ in range(PATTERNS):
        parts = []
        for label in torch.randperm(10, generator=generator)[:DIGITS]:
            shown, rest = by_class[label][:SHOWN], by_class[label][SHOWN:]
            chosen = shown[torch.randperm(SHOWN, generator=generator)[: EXAMPLES[-1]]]
            archetype = torch.where(rest.mean(0) >= 0, 1.0, -1.0)
            order, signs = torch.randperm(64, generator=generator), random_states(1, 64, generator)
            parts.append(torch.cat([archetype[None], chosen])[:, order] * signs)
        joined = torch.cat(parts, 1)
        patterns.append(joined[0])
        examples.append(joined[1:])
    return torch.stack(patterns), torch.stack(examples), torch.rand(PATTERNS, DIGITS * 64, generator=generator)


def measure(seed: int, data: Path) -> Measurements:
    """Of a dilution and a protocol, ``"PROTOCOL m1 at 0.2"`` and so on are magnetisations with the unseen patterns.

    ``sum`` is their sum, ``raised`` how many are above half of the largest, ``evenness`` the smallest over the largest;
    ``to hierarchy`` and ``to equal`` the distance of their shares from those of ``d^(k-1)`` and of equal ones. ``shuffled
    sum`` is with the sites of the couplings permuted. ``"PROTOCOL sum"`` is the mean over dilutions, ``"PROTOCOL overlap"``
    that over numbers of examples of the overlaps at the mild dilution, which are as in `measure_theory`. Losses are sums
    over patterns of the quadratic loss to the nearer of pattern and mirror image, at the middle dilution.
    """
    patterns, examples, blank = digit_patterns(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    found: dict[str, float] = {"quality": estimated_quality(examples)}
    for dilution in DILUTIONS:
        kept = blank >= dilution
        archetypes, seen = patterns * kept, examples * kept[:, None]
        start, cue = hierarchical_state(archetypes, generator), hierarchical_state(archetypes[:1], generator)
        for name, learn in PROTOCOLS.items():
            network = learn(seen)
            found |= _described(f"{name} {{}} at {dilution}", network, archetypes, start, dilution)
            if dilution in (MILD, STRONG):
                found |= _described(f"{name} {{}} from a cue at {dilution}", network, archetypes, cue, dilution)
        shuffled = HebbianNetwork(network.factors[:, torch.randperm(len(start), generator=generator)], float(network.scale))
        found[f"shuffled sum at {dilution}"] = float(
            magnetisations(archetypes, relax(shuffled.sweeper(), start, SWEEPS)).sum()
        )
    kept = blank >= MILD
    for name, learn in PROTOCOLS.items():
        networks = [learn((examples * kept[:, None])[:, :count]) for count in EXAMPLES]
        overlaps = [one_step(network, patterns * kept, torch.Generator().manual_seed(seed)) for network in networks]
        found |= {f"{name} overlap at {count}": value for count, value in zip(EXAMPLES, overlaps, strict=True)}
        found[f"{name} overlap"] = sum(overlaps) / len(overlaps)
        found[f"{name} sum"] = sum(found[f"{name} sum at {dilution}"] for dilution in DILUTIONS) / len(DILUTIONS)
    return found | _losses(patterns * (blank >= MIDDLE), examples * (blank >= MIDDLE)[:, None], generator)


def _described(name: str, network: HebbianNetwork, patterns: Tensor, start: Tensor, dilution: float) -> dict[str, float]:
    m = magnetisations(patterns, relax(network.sweeper(), start, SWEEPS)).double()
    largest = m.max()
    shares = m / m.sum()
    expected = hierarchical(PATTERNS, dilution)
    values = {f"m{k}": value for k, value in enumerate(m.tolist(), start=1)} | {
        "sum": float(m.sum()),
        "raised": float((m > largest / 2).sum()),
        "evenness": float(m.min() / largest),
        "to hierarchy": float((shares - expected / expected.sum()).abs().sum()),
        "to equal": float((shares - 1 / PATTERNS).abs().sum()),
    }
    return {name.format(key): value for key, value in values.items()}


def _losses(patterns: Tensor, examples: Tensor, generator: Generator) -> dict[str, float]:
    """Before and after the cost function alone is minimised, from random states; and of states that hold one pattern."""
    network = PROTOCOLS["unsupervised"](examples)
    random = random_states(STARTS, patterns.shape[1], generator)
    single = torch.stack([hierarchical_state(patterns[k % PATTERNS][None], generator) for k in range(STARTS)])
    states = {"random": random, "relaxed": relax(network.sweeper(), random), "single": single}
    found: dict[str, float] = {}
    for name, some in states.items():
        loss = torch.minimum(*pattern_losses(patterns, some)).sum(1)
        found |= {f"{name} loss": float(loss.mean()), f"{name} energy": float(network.energy(some).mean()) / network.sites}
    return found
