"""The trimmed mean, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import JacobianAggregator, balancers
from polytask.errors import InputError


def aggregate(jacobian: Tensor, trim: int) -> Tensor:
    """The mean of each column ``(K,)`` without its ``trim`` largest and ``trim`` smallest entries, ``(P,)``."""
    trim = min(trim, (len(jacobian) - 1) // 2)
    return _sorted(jacobian)[trim : len(jacobian) - trim].mean(0)


@balancers.add("trimmed_mean")
class TrimmedMean(JacobianAggregator):
    """In each coordinate, the mean of the task gradients without the largest and the smallest.

    Yin, Chen, Kannan and Bartlett, *Byzantine-robust distributed learning: towards optimal statistical rates*, ICML 2018. No
    ``trim`` tasks, whatever their gradients, take the step out of the range of the others'. Where fewer than ``2 trim + 1``
    tasks are in a step, as many are trimmed as leave one, or two of which the mean is taken: with one or two tasks it is the
    mean, with ``trim`` large the median.

    Args:
        trim: entries trimmed on each side, >= 0.
    """

    scale = "mean"

    def __init__(self, trim: int = 1) -> None:
        super().__init__()
        if trim < 0:
            raise InputError(f"trim {trim}: expected a number of tasks >= 0")
        self.trim = trim

    def aggregate(self, jacobian: Tensor, losses: Mapping[str, float], block: int) -> Tensor:
        return aggregate(jacobian, self.trim)


def _sorted(jacobian: Tensor) -> Tensor:
    """Each column in rising order, ``(K, P)``."""
    if jacobian.device.type == "cpu" and jacobian.dtype in (torch.float32, torch.float64):
        # On the processor NumPy sorts short columns several times as fast.
        return torch.from_numpy(np.sort(jacobian.detach().numpy(), 0))
    return jacobian.sort(0).values
