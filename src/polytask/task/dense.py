"""A label for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from polytask.task._task import MetricSpec
from polytask.task.labels import Binary, Classification, _metric, _own
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


class PixelBinary(Binary):
    """Yes or no for each pixel (a boundary, a mask): targets ``(N, H, W)`` float, 0 or 1, NaN where missing; logistic loss.

    The head is a 1x1 convolution to one logit on features ``(N, width, h, w)``; logits and probabilities, ``(N, 1, h, w)``,
    are resized to the target's ``H x W`` (bilinear) when the encoder works at a lower resolution.

    Args:
        classes, positive_weight: as for `Binary`.
        metric: ``average_precision`` (default; of probabilities rounded to one of 4096 steps, so that no number of pixels
            takes more memory), ``f1``, ``log_loss``.
    """

    kind = "pixel_binary"

    def head(self, width: int) -> nn.Module:
        return nn.Conv2d(width, 1, 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        # `Binary` takes the last dimension for that of its one logit.
        return super().loss(resized(output, target.shape[-2:]).movedim(1, -1), target)

    def decode(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {
            "average_precision": MetricSpec(partial(_own, "RoundedPrecision"), True),
            "f1": MetricSpec(partial(_metric, "BinaryF1Score"), True),
            "log_loss": MetricSpec(partial(_own, "LogLoss"), False),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        super().update(metric, resized(prediction, target.shape[-2:]).squeeze(1), target)

    def constant(self, target: Tensor) -> Tensor:
        return super().constant(target).reshape(1, 1, 1, 1)

    def table(self, prediction: Tensor) -> dict[str, Any]:
        label, probability = self.names()
        return {label: (prediction > 0.5).squeeze(1).long().numpy(), probability: prediction.squeeze(1).float().numpy()}
