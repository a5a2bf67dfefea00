"""Metrics that torchmetrics does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class LogLoss(Metric):  # type: ignore[misc]
    """The mean negative log-probability of the label, in nats.

    Predictions are probabilities: ``(N,)`` of the positive class, or ``(N, C)``; labels are ``(N,)`` integers.
    """

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.ndim == 1:
            prediction = torch.stack([1 - prediction, prediction], 1)
        chosen = prediction.gather(1, target.long()[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
        self.total -= chosen.double().log().sum()
        self.rows += len(target)

    def compute(self) -> Tensor:
        return self.total / self.rows
