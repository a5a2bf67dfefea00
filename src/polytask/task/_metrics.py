"""Metrics that torchmetrics does not have, or defines where they are not defined."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    MulticlassAUROC,
    MultilabelAUROC,
    MultilabelAveragePrecision,
)
from torchmetrics.utilities import dim_zero_cat


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


def _defined(positives: Tensor, rows: Tensor) -> Tensor:
    """Which classes have both an example and a counterexample: without them no curve is defined."""
    return (positives > 0) & (positives < rows)


class BinaryArea(BinaryAUROC):  # type: ignore[misc]
    """The area under the ROC curve; NaN, where torchmetrics says 0, when all labels are alike."""

    def compute(self) -> Tensor:
        target = dim_zero_cat(self.target)
        defined = bool(_defined(target.sum(), torch.tensor(len(target))))
        return super().compute() if defined else torch.tensor(torch.nan)


class MulticlassArea(MulticlassAUROC):  # type: ignore[misc]
    """The mean over classes of the area under the ROC curve of one against the rest, of classes for which it is defined."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:
        target = dim_zero_cat(self.target)
        return _mean_of(super().compute, _defined(target.bincount(minlength=self.num_classes), torch.tensor(len(target))))


class MultilabelArea(MultilabelAUROC):  # type: ignore[misc]
    """The mean over labels of the area under the ROC curve, of labels for which it is defined."""

    def __init__(self, num_labels: int, ignore_index: int) -> None:
        super().__init__(num_labels, average=None, ignore_index=ignore_index)

    def compute(self) -> Tensor:
        target = dim_zero_cat(self.target)
        return _mean_of(super().compute, _defined((target == 1).sum(0), (target >= 0).sum(0)))


class MultilabelPrecision(MultilabelAveragePrecision):  # type: ignore[misc]
    """The mean over labels of the average precision, of labels that some row has."""

    def __init__(self, num_labels: int, ignore_index: int) -> None:
        super().__init__(num_labels, average=None, ignore_index=ignore_index)

    def compute(self) -> Tensor:
        return _mean_of(super().compute, (dim_zero_cat(self.target) == 1).any(0))


class BinaryPrecision(BinaryAveragePrecision):  # type: ignore[misc]
    """The average precision; NaN when no label is positive."""

    def compute(self) -> Tensor:
        defined = bool((dim_zero_cat(self.target) == 1).any())
        return super().compute() if defined else torch.tensor(torch.nan)


class RoundedPrecision(Metric):  # type: ignore[misc]
    """The average precision of probabilities ``(N,)`` rounded down to a step of 1/4096; NaN when no label is positive.

    It counts labels by step, so that its memory does not grow with the number of predictions.
    """

    STEPS = 4096
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, self.STEPS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        step = (prediction * self.STEPS).long().clamp(max=self.STEPS - 1) + self.STEPS * target.long()
        self.counts += step.bincount(minlength=2 * self.STEPS).reshape(2, self.STEPS)

    def compute(self) -> Tensor:
        negatives, positives = self.counts.flip(1).double().cumsum(1)
        precision = positives / (positives + negatives).clamp(min=1)
        gained = positives.diff(prepend=positives.new_zeros(1))
        return torch.dot(gained, precision).div(positives[-1]).float()


def _mean_of(compute: Callable[[], Tensor], defined: Tensor) -> Tensor:
    if not bool(defined.any()):
        return torch.tensor(torch.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples")
        return compute()[defined].mean()
