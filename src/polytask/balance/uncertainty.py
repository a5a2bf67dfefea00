"""Homoscedastic uncertainty weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balance._balancer import LossWeighting, balancers
from polytask.errors import InputError


@balancers.add("uncertainty")
class Uncertainty(LossWeighting):
    """A learned noise level for each task: ``sum_k exp(-s_k) L_k + s_k / 2`` with ``s_k = log sigma_k^2``.

    Kendall, Gal and Cipolla, *Multi-task learning using uncertainty to weigh losses for scene geometry and semantics*,
    CVPR 2018, Eq. 10. Their regression term, ``L / (2 sigma^2) + log sigma``, is the same for a loss of half the squared
    error; a constant factor on a loss only shifts its ``s_k``. ``s_k`` starts at 0, where the first step is that of the
    plain sum. The weights are learned with the model's optimizer, without weight decay.
    """

    log_variance: nn.Parameter

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks:
            raise InputError(
                "uncertainty learns a weight for each task: give the model an attribute 'tasks' with their names"
            )
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        names = tuple(losses)
        s = self.log_variance if names == self.tasks else self.log_variance[[self.tasks.index(name) for name in names]]
        return (torch.exp(-s) * torch.stack(tuple(losses.values())) + s / 2).sum()
