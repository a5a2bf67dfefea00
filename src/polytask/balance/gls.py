"""The geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import positive


@balancers.add("gls")
class GLS(LossWeighting):
    """The geometric loss strategy: the step follows the gradient of ``(prod_k L_k)^(1/K)``.

    Chennupati, Sistu, Yogamani and Rawashdeh, *MultiNet++: multi-stream feature aggregation and geometric loss strategy for
    multi-task learning*, CVPR Workshops 2019. Each task's gradient is divided by its loss, so a constant factor on a loss
    changes the size of the step and not its direction. Losses have to be positive; one that is exactly 0 is left out of the
    mean, which it would make 0.
    """

    scale = "mean"

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        left, positives = positive(tuple(losses), values, "gls")
        return positives.log().mean().exp() if left else values.sum()
