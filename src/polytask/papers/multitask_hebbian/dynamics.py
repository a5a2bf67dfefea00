"""Monte Carlo of spins that are coupled by few factors: heat bath, one spin after another, many at a time.

A sweep updates the spins in their order, each by the field of the others as they are then. A block of spins is updated at
once, by the fields that they had before it, and again with what the block's earlier spins changed, until nothing changes:
as a spin depends on earlier ones alone, what is left then is what one spin after another gives. Couplings within a block
are weak, so that the first answer is nearly always the last.

Fields are sums of whole numbers, and exact. A spin becomes 1 where its field is above a threshold, which is drawn: so the
same thresholds give the same states, to the bit, whatever the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from polytask.errors import InputError

Array = npt.NDArray[Any]

BLOCK, HELD = 256, 2**26
"""Spins in a block, unless the couplings within blocks would then be more numbers than this."""


class Sweeper:
    """Sweeps of spins with fields ``h_i = (scale / N) sum_{j != i} sum_p x_i^p x_j^p s_j``, on the CPU, by numpy.

    A sweep costs ``O(N (P + block))`` for each chain; memory is ``N (P + block)`` numbers.

    Args:
        factors: ``x``, ``(P, N)`` whole numbers.
        scale: see above.
        block: how many spins are updated at once.
    """

    def __init__(self, factors: Tensor, scale: float = 1.0, block: int | None = None) -> None:
        if factors.ndim != 2 or not factors.numel():
            raise InputError(f"factors: shape {tuple(factors.shape)}, expected (P, N)")
        if not bool((factors == factors.round()).all()):
            raise InputError("factors: some are not whole numbers, expected sums of -1, 0 and 1")
        self.sites, self.scale = factors.shape[1], scale
        size = factors.detach().double().abs().cpu()
        largest = float((size.sum(1) @ size).max())
        # Whole and half numbers up to the largest field have to be exact.
        self.dtype = np.dtype(np.float32 if largest < 2**23 else np.float64)
        self.columns: Array = np.ascontiguousarray(factors.detach().cpu().numpy().T.astype(self.dtype))
        self.own: Array = np.square(self.columns).sum(1)
        step = block or max(16, min(BLOCK, HELD // self.sites))
        self.blocks = []
        for start in range(0, self.sites, step):
            x = self.columns[start : start + step]
            self.blocks.append((slice(start, start + step), x, np.ascontiguousarray(x.T), np.triu(x @ x.T, 1)))

    def thresholds(self, states: Tensor, beta: float = math.inf, generator: Generator | None = None) -> Tensor:
        """What the fields of states ``(..., N)``, in units of ``scale / N``, have to exceed: a half, never a whole number.

        At an inverse temperature ``beta`` they are drawn such that ``P(s_i = 1) = (1 + tanh(beta h_i)) / 2``. At zero
        temperature, the default, a spin follows the sign of its field, and stays where the field is 0.
        """
        if not beta > 0:
            raise InputError(f"beta = {beta}, expected above 0")
        if beta == math.inf:
            return -states.double() / 2
        drawn = torch.rand(states.shape, generator=generator, dtype=torch.double).logit_()
        return drawn.mul_(self.sites / (2 * beta * self.scale)).floor_().add_(0.5)

    def sweep(self, states: Tensor, thresholds: Tensor) -> Tensor:
        """The states after one sweep with these thresholds: ``(N,)``, or ``(R, N)`` for ``R`` chains by themselves."""
        if states.shape[-1] != self.sites or states.ndim > 2 or thresholds.shape != states.shape:
            shapes = f"{tuple(states.shape)} and {tuple(thresholds.shape)}"
            raise InputError(f"states and thresholds: shapes {shapes}, expected both ({self.sites},) or (R, {self.sites})")
        spins: Array = states.detach().cpu().numpy().T.astype(self.dtype, order="C")
        one = np.ones((), self.dtype)
        sums = self.columns.T.dot(spins)
        own = self.own if spins.ndim == 1 else self.own[:, None]
        least = own * spins + thresholds.detach().cpu().numpy().T.astype(self.dtype)
        for rows, x, transposed, later in self.blocks:
            before = spins[rows]
            excess = x.dot(sums) - least[rows]
            change = np.copysign(one, excess) - before
            while True:
                again = np.copysign(one, excess + _on_later(change, later)) - before
                if again.tobytes() == change.tobytes():  # as array_equal, in a fifth of its time
                    break
                change = again
            sums += transposed.dot(change)
            before += change
        return torch.from_numpy(np.ascontiguousarray(spins.T)).to(states)


def _on_later(change: Array, later: Array) -> Array:
    """What changed spins of a block, ``(B,)`` or ``(B, R)``, add to the fields of its later ones."""
    if change.ndim > 1:
        added: Array = later.T.dot(change)
    else:
        changed = change.nonzero()[0]  # few: their rows fit the cache, and all do not
        added = change.take(changed).dot(later.take(changed, 0))
    return added


def heat_bath(
    sweeper: Sweeper, states: Tensor, beta: float = math.inf, generator: Generator | None = None
) -> Iterator[Tensor]:
    """The states after one sweep, two sweeps, and so on without end, at the inverse temperature ``beta``.

    Args:
        sweeper: of a network, `HebbianNetwork.sweeper`.
        states: where to start: ``(N,)``, or ``(R, N)`` for ``R`` chains.
        beta: above 0; zero temperature by default.
        generator: of the thresholds.
    """
    while True:
        states = sweeper.sweep(states, sweeper.thresholds(states, beta, generator))
        yield states


def relax(sweeper: Sweeper, states: Tensor, sweeps: int = 100) -> Tensor:
    """States ``(N,)`` or ``(R, N)`` after sweeps at zero temperature, until no spin changes, or at most ``sweeps``.

    No sweep raises the energy, and every spin that changes lowers it: there are no cycles.
    """
    for _ in range(sweeps):
        after = sweeper.sweep(states, sweeper.thresholds(states))
        if torch.equal(after, states):
            break
        states = after
    return states
