"""Tasks whose targets are numbers: regression, and regression for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.task._task import MetricSpec, Task, class_names, complete

if TYPE_CHECKING:
    from torchmetrics import Metric

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


def _metric(name: str, **settings: Any) -> Metric:
    import torchmetrics

    metric: Metric = getattr(torchmetrics, name)(**settings)
    return metric


class Regression(Task):
    """``D`` numbers: targets ``(N, D)`` float (``(N,)`` too when ``D`` is 1), NaN where missing.

    The head works in scaled units, ``(y - mean) / std``, and so does the loss; `decode` undoes the scale, so that
    predictions and metrics are in the target's own units.

    Args:
        outputs: the number of outputs or their names.
        robust: the loss on scaled targets: ``mse`` (default), ``mae``, or ``huber`` (quadratic within one standard
            deviation, linear beyond), the last two for targets with outliers.
        scale: ``"standard"`` takes mean and standard deviation from the training labels (see `fitted`); a pair
            ``(means, stds)``, each with ``D`` values, states them; ``None`` (default) leaves targets as they are.
        metric: ``rmse`` (default), ``mae``, ``r2``. With several outputs ``rmse`` and ``mae`` pool all of them, ``r2`` is
            the mean over outputs, on the rows where every output is known.
    """

    kind = "regression"

    def __init__(
        self,
        name: str,
        outputs: int | Sequence[str] = 1,
        robust: str = "mse",
        scale: str | Sequence[Sequence[float]] | None = None,
        metric: str | None = None,
    ) -> None:
        self.outputs = class_names(outputs, 1, f"task {name!r}: outputs")
        super().__init__(name, metric=metric)
        if robust not in LOSSES:
            raise InputError(f"task {name!r}: unknown loss {robust!r}: {suggest(robust, LOSSES)}")
        self.robust = robust
        if isinstance(scale, str) and scale != "standard":
            raise InputError(f"task {name!r}: scale {scale!r}, expected 'standard' or a pair (means, stds)")
        if scale is not None and not isinstance(scale, str):
            means, stds = ([float(v) for v in part] for part in scale)
            if len(means) != len(self.outputs) or len(stds) != len(self.outputs) or min(stds) <= 0:
                raise InputError(f"task {name!r}: scale {scale!r}, expected {len(self.outputs)} means and stds > 0")
            scale = (means, stds)
        self.scale = scale

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, len(self.outputs))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        target = self._scaled(target.reshape(output.shape))
        if complete(target):
            return LOSSES[self.robust](output, target.to(output.dtype))
        present = target == target  # NaN is not equal to itself
        # Where no label is known the output is its own target: loss and gradient are 0 there, at no operation on either.
        known = torch.where(present, target.to(output.dtype), output.detach())
        return LOSSES[self.robust](output, known, reduction="sum") / present.sum().clamp(min=1)

    def decode(self, output: Tensor) -> Tensor:
        if self.scale is None:
            return output
        mean, std = self._statistics(output)
        return output.to(torch.promote_types(output.dtype, torch.float32)) * std + mean

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {
            "rmse": MetricSpec(partial(_metric, "MeanSquaredError", squared=False), False),
            "mae": MetricSpec(partial(_metric, "MeanAbsoluteError"), False),
            "r2": MetricSpec(partial(_metric, "R2Score"), True),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        # R2 subtracts sums of squares: in single precision nothing is left of it where a target's mean is far from 0.
        prediction, target = prediction.double(), target.reshape(prediction.shape).double()
        present = self.present(target)
        if type(metric).__name__ == "R2Score":
            whole = present.flatten(1).all(1)
            if bool(whole.any()):
                metric.update(prediction[whole].squeeze(1), target[whole].squeeze(1))
        elif bool(present.any()):
            metric.update(prediction[present], target[present])

    def constant(self, target: Tensor) -> Tensor:
        return target.reshape(len(target), len(self.outputs)).float().nanmean(0, keepdim=True)

    def fitted(self, target: Tensor) -> Task:
        if self.scale != "standard":
            return self
        columns = target.reshape(len(target), len(self.outputs), -1).transpose(0, 1).flatten(1).double()
        means, stds = [], []
        for name, column in zip(self.outputs, columns, strict=True):
            known = column[~torch.isnan(column)]
            if len(known) == 0:
                raise InputError(f"task {self.name!r}: output {name!r} has no training label, expected at least one")
            means.append(float(known.mean()))
            # A constant target has nothing to scale; 1 keeps it finite.
            stds.append(float(known.std(correction=0)) or 1.0)
        return type(self)(self.name, self.outputs, self.robust, (means, stds), self.metric)

    def settings(self) -> dict[str, Any]:
        scale = self.scale if self.scale is None or isinstance(self.scale, str) else [list(s) for s in self.scale]
        return {"outputs": list(self.outputs), "robust": self.robust, "scale": scale, "metric": self.metric}

    def names(self) -> list[str]:
        return [self.name] if len(self.outputs) == 1 else [f"{self.name}_{output}" for output in self.outputs]

    def _statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        if isinstance(self.scale, str) or self.scale is None:
            raise InputError(f"task {self.name!r}: the target's scale is not known yet, call task.fitted(labels) first")
        means, stds = self.scale
        if len(means) == 1:
            return means[0], stds[0]
        shape = (1, -1, *(1 for _ in range(like.ndim - 2)))
        # Single precision at least: the mean of a large target does not fit half precision.
        dtype = torch.promote_types(like.dtype, torch.float32)
        mean = torch.tensor(means, dtype=dtype, device=like.device).reshape(shape)
        return mean, torch.tensor(stds, dtype=dtype, device=like.device).reshape(shape)

    def _scaled(self, target: Tensor) -> Tensor:
        if self.scale is None:
            return target
        mean, std = self._statistics(target)
        return (target - mean) / std


class PixelRegression(Regression):
    """``D`` numbers for each pixel (depth, normals, chroma): targets ``(N, D, H, W)`` float, NaN where missing.

    The head is a 1x1 convolution on features ``(N, width, h, w)``; outputs are resized to the target's ``H x W``
    (bilinear) when the encoder works at a lower resolution. Arguments as for `Regression`.
    """

    kind = "pixel_regression"

    def head(self, width: int) -> nn.Module:
        return nn.Conv2d(width, len(self.outputs), 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(resized(output, target.shape[-2:]), target)

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        prediction = resized(prediction, target.shape[-2:])
        if prediction.ndim == 4:  # pixels are rows of D outputs
            prediction, target = (t.reshape(prediction.shape).movedim(1, -1).flatten(0, -2) for t in (prediction, target))
        super().update(metric, prediction, target)

    def constant(self, target: Tensor) -> Tensor:
        columns = target.reshape(len(target), len(self.outputs), -1).transpose(0, 1).flatten(1).float()
        return columns.nanmean(1).reshape(1, -1, 1, 1)


def resized(output: Tensor, size: Sequence[int]) -> Tensor:
    """``output`` ``(N, C, h, w)`` at the spatial ``size`` ``(H, W)``, bilinear; itself when the size is right."""
    if tuple(output.shape[-2:]) == tuple(size):
        return output
    return F.interpolate(output, size=tuple(size), mode="bilinear", align_corners=False)
