"""The sum of the logarithms of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import positive


@balancers.add("db_mtl_log")
class LogLosses(LossWeighting):
    """The step follows the gradient of ``sum_k log L_k``: it does not change when a loss is multiplied by a constant.

    The loss-balancing half of Lin et al., *Dual-balancing for multi-task learning*, 2023 (arXiv:2308.12029), by itself; the
    other half brings the task gradients to one length. Losses have to be positive; one that is exactly 0 is left out.
    """

    scale = "own"

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        left, positives = positive(tuple(losses), values, "db_mtl_log")
        return (positives.log() if left else values).sum()
