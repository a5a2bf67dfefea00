"""A label for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from polytask.task._task import MetricSpec
from polytask.task.labels import Classification, _metric
from polytask.task.values import resized

if TYPE_CHECKING:
    from torchmetrics import Metric


class Segmentation(Classification):
    """A label for each pixel: targets ``(N, H, W)`` int64, `MISSING` for void pixels; cross-entropy.

    The head is a 1x1 convolution on features ``(N, width, h, w)``; logits are resized to the target's ``H x W`` (bilinear)
    when the encoder works at a lower resolution.

    Args:
        classes: the number of classes or their names.
        class_weights, label_smoothing: as for `Classification`.
        metric: ``miou`` (mean intersection over union over classes, default), ``pixel_accuracy``.
    """

    kind = "segmentation"

    def head(self, width: int) -> nn.Module:
        return nn.Conv2d(width, len(self.classes), 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(resized(output, target.shape[-2:]), target)

    def metrics(self) -> Mapping[str, MetricSpec]:
        count = len(self.classes)
        return {
            "miou": MetricSpec(partial(_metric, "MulticlassJaccardIndex", num_classes=count), True),
            "pixel_accuracy": MetricSpec(partial(_metric, "MulticlassAccuracy", num_classes=count, average="micro"), True),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        labels = resized(prediction, target.shape[-2:]).argmax(1)
        present = self.present(target)
        if bool(present.any()):
            metric.update(labels[present], target[present])

    def constant(self, target: Tensor) -> Tensor:
        return super().constant(target)[:, :, None, None]

    def table(self, prediction: Tensor) -> dict[str, Any]:
        return {self.name: prediction.argmax(1).numpy()}

    def names(self) -> list[str]:
        return [self.name]
