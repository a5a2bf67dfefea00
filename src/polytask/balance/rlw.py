"""Random weights of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers


@balancers.add("rlw")
class RLW(LossWeighting):
    """Random loss weighting: in each step the weights of the losses are the softmax of ``K`` normal draws.

    Lin, Ye, Zhang and Tsang, *Reasonable effectiveness of random weighting: a litmus test for multi-task learning*,
    Transactions on Machine Learning Research 2022. A baseline: what a method of balancing gains should be more than this.
    Draws come from torch's global generator; each process, and each accumulated batch, draws its own.
    """

    scale = "mean"

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        return (torch.randn(len(values)).softmax(0).to(values) * values).sum()
