"""Learned scales of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import PerTask


@balancers.add("imtl_l")
class IMTLL(PerTask, LossWeighting):
    """A learned scale for each loss that brings all to one size: ``sum_k exp(s_k) L_k - s_k``.

    Liu et al., *Towards impartial multi-task learning*, ICLR 2021: their balance of losses, without that of gradients. At
    the best ``s_k`` each scaled loss is 1. ``s_k`` starts at 0, where the first step is that of the plain sum, and is
    learned with the model's optimizer, without weight decay. It is twice what `Uncertainty` makes of half the losses, with
    ``s_k`` of the other sign.
    """

    log_scale: nn.Parameter

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        s = self.log_scale[self.places(losses)]
        return (s.exp() * torch.stack(tuple(losses.values())) - s).sum()
