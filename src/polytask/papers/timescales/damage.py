"""What a trained network bears: neurons taken out, weights and time constants disturbed; and how it learns on from there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from polytask.data import Schedule
from polytask.errors import InputError
from polytask.papers.timescales.network import LeakyRNN, MemoryNetwork
from polytask.papers.timescales.tasks import BitStream, draw, labels, name_of
from polytask.training import fit


def ablated(network: MemoryNetwork, neurons: Collection[int]) -> MemoryNetwork:
    """A copy in which these neurons neither receive nor send: their rows and columns of the weights are 0."""
    core = _leaky(network)
    gone = sorted(neurons)
    if gone and not 0 <= gone[0] <= gone[-1] < core.width:
        raise InputError(f"neurons {gone}, expected numbers from 0 to {core.width - 1}")
    damaged = deepcopy(network)
    core = _leaky(damaged)
    with torch.no_grad():
        core.recurrent.weight[gone] = 0
        core.recurrent.weight[:, gone] = 0
        core.input.weight[gone] = 0
        damaged.readout.weight[:, gone] = 0
    return damaged


def perturbed(network: MemoryNetwork, size: float, generator: Generator | None = None) -> MemoryNetwork:
    """A copy with ``W + size |W| D / |D|``, Frobenius norms, ``D`` Gaussian and 0 on the diagonal, as ``W`` is."""
    damaged = deepcopy(network)
    core = _leaky(damaged)
    noise = torch.randn(core.width, core.width, generator=generator).to(core.recurrent.weight)
    noise.fill_diagonal_(0)
    with torch.no_grad():
        core.recurrent.weight += size * core.weights.norm() * noise / noise.norm()
    return damaged


def slowed(network: MemoryNetwork, size: float, generator: Generator | None = None) -> MemoryNetwork:
    """A copy with ``tau + size |tau| |D| / |D|``: each time constant is longer by the magnitude of its Gaussian share."""
    damaged = deepcopy(network)
    core = _leaky(damaged)
    noise = torch.randn(core.width, generator=generator).abs().to(core.raw_tau)
    with torch.no_grad():
        core.raw_tau.copy_(core.tau + size * core.tau.norm() * noise / noise.norm())
    return damaged


def accuracies(
    network: MemoryNetwork, rule: str, tasks: Sequence[str], count: int = 2000, seed: int = 0
) -> dict[str, float]:
    """The accuracy of each task on ``count`` new sequences, whose length is drawn for the largest N."""
    return accuracies_on(network, *draw(rule, tasks, count, torch.Generator().manual_seed(seed)))


def accuracies_on(network: MemoryNetwork, bits: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
    """The accuracy of each task on these sequences, such as ``(bits, labels(rule, bits, tasks))``."""
    with torch.no_grad():
        found = network.evaluate([(bits, targets)])
    return {task: found[task]["accuracy"] for task in targets}


def retrained(
    network: MemoryNetwork, rule: str, n: int, updates: int, batch_size: int = 256, lr: float = 1e-3, seed: int = 0
) -> tuple[MemoryNetwork, float]:
    """A copy that went on with the task ``N = n`` alone for so many updates of Adam, and its accuracy on new sequences.

    How the paper's networks are retrained, and with which optimizer, is not known.
    """
    task, copy = name_of(n), deepcopy(network)
    stream = BitStream(rule, Schedule({0: [task]}), [task], batch_size, length=updates, seed=seed)
    adam: Any = partial(torch.optim.Adam, lr=lr)
    fit(copy, stream, steps=updates, optimizer=adam, clip=2.0, schedule="constant", seed=seed)
    return copy, accuracies(copy, rule, [task], seed=seed + 1)[task]


def probed(network: MemoryNetwork, rule: str, n: int, count: int = 2000, seed: int = 0) -> float:
    """The accuracy of a new linear readout for ``N = n`` of the last states, on sequences that it was not fitted on.

    Logistic regression on ``count`` sequences: what the network keeps of bits that it was not trained to remember.
    """
    from sklearn.linear_model import LogisticRegression

    bits, targets = draw(rule, [name_of(n)], 2 * count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        states = network.core(bits.to(network.readout.weight.device)).cpu().double()
    target = targets[name_of(n)]
    states = (states - states.mean(0)) / states.std(0).clamp(min=1e-9)
    probe = LogisticRegression(max_iter=500).fit(states[:count].numpy(), target[:count].numpy())
    return float(probe.score(states[count:].numpy(), target[count:].numpy()))


def scans(count: int, length: int, seed: int = 0) -> Tensor:
    """``(count, length)`` bits of real images: scikit-learn's digits, thresholded, read row by row up to a random pixel."""
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data > 7.5).float()
    if not 1 <= length <= pixels.shape[1]:
        raise InputError(f"scans of {length} pixels, expected from 1 to {pixels.shape[1]}")
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(len(pixels), (count,), generator=generator)
    start = torch.randint(pixels.shape[1] - length + 1, (count,), generator=generator)
    return pixels[image[:, None], start[:, None] + torch.arange(length)]


def on_scans(network: MemoryNetwork, rule: str, tasks: Sequence[str], length: int, seed: int = 0) -> dict[str, float]:
    """`accuracies` on `scans` of this length: another distribution of bits than that of training."""
    bits = scans(2000, length, seed)
    return accuracies_on(network, bits, labels(rule, bits, tasks))


def _leaky(network: MemoryNetwork) -> LeakyRNN:
    if not isinstance(network.core, LeakyRNN):
        raise InputError(f"a network around a {type(network.core).__name__}, expected a LeakyRNN")
    return network.core
