"""What the tasks are paid for: indicators of random sets of observations, by networks or by hashing; or any numbers."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from polytask.errors import InputError

PRIME = 2**13 - 1


class Cumulants(nn.Module):
    """``m`` numbers of each observation, which the tasks' values are sums of. Nothing but thresholds is trained."""

    tasks: int

    @abstractmethod
    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(N, m)`` cumulants without gradient, and the loss that trains thresholds, ``None`` where there are none."""


class NetworkIndicators(Cumulants):
    """``1`` where a frozen random network's output is above a threshold: ``r_i(x) = 1{o_i(x) + b_i > 0}``.

    Thresholds ``b_i`` are learned by quantile regression, so that each set has the same share of observations: the loss is
    the mean of ``(o_i + b_i) ((1 - share) - 1{o_i + b_i < 0})``. Where a network gives 0 to more than ``1 - share`` of the
    observations, as one that ends in ReLU may, its set is where it gives more, and smaller.

    Args:
        network: observations to ``(N, m)``; frozen here, in eval mode always.
        tasks: ``m``.
        share: of the observations in each set.
    """

    def __init__(self, network: nn.Module, tasks: int, share: float = 0.01) -> None:
        super().__init__()
        _check_share(share)
        self.network, self.tasks, self.share = network.requires_grad_(False).eval(), tasks, share
        self.thresholds = nn.Parameter(torch.zeros(tasks))

    def train(self, mode: bool = True) -> NetworkIndicators:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            outputs = self.network(observations)
        shifted = outputs.float() + self.thresholds
        loss = (shifted * ((1 - self.share) - (shifted.detach() < 0).float())).mean()
        return (shifted.detach() > 0).float(), loss


class HashIndicators(Cumulants):
    """``1`` where a universal hash of the observation is 0: ``h(x) = ((a_0 + sum_j a_j x_j) mod p) mod k``.

    ``p = 2^13 - 1``; Carter and Wegman, 1979. Sets of about a share ``1 / k`` of all observations, with nothing in common.

    Args:
        inputs: numbers in an observation, which are whole, 0 to 255.
        tasks: ``m``.
        share: ``1 / k``, rounded.
        generator: of the ``a``.
    """

    def __init__(self, inputs: int, tasks: int, share: float = 0.01, generator: torch.Generator | None = None) -> None:
        super().__init__()
        _check_share(share)
        self.tasks, self.buckets = tasks, round(1 / share)
        drawn = torch.randint(PRIME, (inputs + 1, tasks), generator=generator)
        drawn[1:].clamp_(min=1)
        self.register_buffer("offsets", drawn[0])
        self.register_buffer("factors", drawn[1:])

    @torch.no_grad()
    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        # Whole numbers below 2^53 are exact in double precision, whose products are faster than those of integers.
        sums = observations.flatten(1).double() @ self.get_buffer("factors").double() + self.get_buffer("offsets").double()
        return (sums % PRIME % self.buckets == 0).float(), None


class NetworkCumulants(Cumulants):
    """A frozen random network's outputs themselves, which indicators are compared with."""

    def __init__(self, network: nn.Module, tasks: int) -> None:
        super().__init__()
        self.network, self.tasks = network.requires_grad_(False).eval(), tasks

    @torch.no_grad()
    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.network(observations).float(), None


class TableCumulants(Cumulants):
    """The rows of a table ``(states, m)``, for observations that are numbers of states, ``(N,)`` int64."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.tasks = table.shape[1]
        self.register_buffer("table", table.float())

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.get_buffer("table")[observations], None


def _check_share(share: float) -> None:
    if not 0 < share < 1 or math.isnan(share):
        raise InputError(f"share {share}, expected more than 0 and less than 1")
