"""The plain sum of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers


@balancers.add("equal")
class Equal(LossWeighting):
    """Equal weights: the step follows the gradient of ``sum_k L_k``."""

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = tuple(losses.values())
        return values[0] if len(values) == 1 else torch.stack(values).sum()
