"""Random weights of the task gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers


@balancers.add("random_weights")
class RandomWeights(GramianWeighting):
    """In each step, random weights of the task gradients: the softmax of ``K`` normal draws.

    Lin, Ye, Zhang and Tsang, *Reasonable effectiveness of random weighting: a litmus test for multi-task learning*,
    Transactions on Machine Learning Research 2022: random gradient weighting. On the shared parameters it is random loss
    weighting, whose step has the same distribution; but each task's own parameters get the gradient of its loss whole, where
    weights on the losses would scale that too. It costs what methods cost that compare gradients: a baseline for those.
    """

    scale = "mean"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return torch.randn(len(losses), dtype=torch.float64).softmax(0)
