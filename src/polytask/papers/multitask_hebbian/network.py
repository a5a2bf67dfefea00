"""The network: one symmetric matrix of couplings for all patterns, kept as the factors that it is made of.

``J_ij = (scale / N) sum_p x_i^p x_j^p`` for ``i != j``, and ``J_ii = 0``. The factors ``x`` are whole numbers: the patterns,
the sums over their examples where a teacher says which pattern an example is of, or the examples themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.papers.multitask_hebbian.dynamics import Sweeper


class HebbianNetwork(nn.Module):
    """``N`` spins coupled by ``P`` factors, which are parameters that no optimizer changes.

    Args:
        factors: ``(P, N)`` whole numbers, as floats.
        scale: what multiplies ``1 / N`` in front of the sum over factors.
    """

    scale: Tensor

    def __init__(self, factors: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.factors = nn.Parameter(factors, requires_grad=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.double))

    @property
    def sites(self) -> int:
        """``N``."""
        return self.factors.shape[1]

    def fields(self, states: Tensor) -> Tensor:
        """``h_i = sum_j J_ij s_j`` of states ``(..., N)``, in double precision; exactly 0 where all factors are 0."""
        factors, states = self.factors.double(), states.double()
        whole = (states @ factors.T) @ factors - factors.square().sum(0) * states
        return whole * self.scale / self.sites

    def energy(self, states: Tensor) -> Tensor:
        """``H = -1/2 sum_{i != j} J_ij s_i s_j`` of states ``(..., N)``, in double precision; it grows with ``N``."""
        return -(self.fields(states) * states.double()).sum(-1) / 2

    def step(self, states: Tensor) -> Tensor:
        """All spins of states ``(..., N)`` at once along their fields, at zero temperature; a spin without a field stays."""
        fields = self.fields(states)
        return torch.where(fields == 0, states.double(), fields.sign()).to(states.dtype)

    def sweeper(self) -> Sweeper:
        """What updates spins one after another, for `heat_bath` and `relax`."""
        return Sweeper(self.factors, float(self.scale))


def stored(patterns: Tensor) -> HebbianNetwork:
    """The network that stores patterns ``(K, N)`` of -1, 0 and 1 themselves: ``J_ij = (1/N) sum_mu xi_i^mu xi_j^mu``."""
    return HebbianNetwork(_checked("patterns", patterns, 2))


def supervised(examples: Tensor, quality: float | None = None) -> HebbianNetwork:
    """Hebb's rule with a teacher, on the mean of each pattern's examples ``(K, M, N)``.

    ``J_ij = (1 / (N R)) sum_mu mean_a(eta_i^{mu,a}) mean_a(eta_j^{mu,a})``, where ``R = r^2 + (1 - r^2) / M`` is the mean
    square of these means at active sites. It is computed from ``quality``, ``r``, or else from the examples; it only sets
    the scale of temperatures.
    """
    summed = _checked("examples", examples, 3).sum(1)
    return HebbianNetwork(summed, 1 / (_normaliser(examples, quality) * examples.shape[1] ** 2))


def unsupervised(examples: Tensor, quality: float | None = None) -> HebbianNetwork:
    """Hebb's rule without a teacher: every example is stored, no matter of which pattern it is.

    ``J_ij = (1 / (N R M)) sum_mu sum_a eta_i^{mu,a} eta_j^{mu,a}``, arguments as for `supervised`, with which it agrees for
    one example of each pattern.
    """
    each = _checked("examples", examples, 3).flatten(0, 1)
    return HebbianNetwork(each, 1 / (_normaliser(examples, quality) * examples.shape[1]))


def estimated_quality(examples: Tensor) -> float:
    """The quality ``r`` of at least two examples ``(K, M, N)`` of each pattern, by how much they agree at active sites."""
    count = examples.shape[1]
    if count < 2:
        raise InputError(f"examples: {count} of each pattern, expected at least two to see how much they agree")
    return math.sqrt(max(0.0, (count * _normaliser(examples, None) - 1) / (count - 1)))


def _normaliser(examples: Tensor, quality: float | None) -> float:
    if quality is not None:
        return quality**2 + (1 - quality**2) / examples.shape[1]
    active = examples[:, 0] != 0
    squares = examples.mean(1).square()
    # Examples that cancel at every active site leave no coupling, whatever the scale.
    return float(squares[active].mean()) or 1.0


def _checked(name: str, values: Tensor, dimensions: int) -> Tensor:
    shape = "(K, N)" if dimensions == 2 else "(K, M, N)"
    if values.ndim != dimensions or not values.numel():
        raise InputError(f"{name}: shape {tuple(values.shape)}, expected {shape}")
    strange = ((values != 0) & (values.abs() != 1)).nonzero()
    if len(strange):
        place = strange[0].tolist()
        raise InputError(f"{name}: {float(values[tuple(place)]):g} at {place}, expected -1, 1 or, for a blank, 0")
    return values.float()
