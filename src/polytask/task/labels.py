"""Tasks whose targets are labels: binary, classification, multilabel, ordinal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.task._task import MISSING, MetricSpec, Task, class_names, complete

if TYPE_CHECKING:
    from torchmetrics import Metric


def _metric(name: str, **settings: Any) -> Metric:
    # torchmetrics is imported when a metric is built: it doubles the time that `import polytask` would take.
    import torchmetrics.classification as classification

    metric: Metric = getattr(classification, name)(**settings)
    return metric


def _logistic(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean logistic loss where the float ``target`` is present, each element times its ``weight``."""
    if complete(target):
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype), weight)
    present = target == target  # NaN is not equal to itself
    # The mask goes into the loss as a weight: an operation on the losses would cost as much as they do, there and back.
    mask = present.to(output.dtype)
    clean = torch.nan_to_num(target).to(output.dtype)
    total = F.binary_cross_entropy_with_logits(output, clean, mask if weight is None else mask * weight, reduction="sum")
    return total / present.sum().clamp(min=1)


class Binary(Task):
    """Yes or no: targets ``(N,)`` float, 0 or 1, NaN when missing; one logit, logistic loss.

    Args:
        classes: the names of the two classes, ``("0", "1")`` by default; the second is the positive one.
        positive_weight: the loss of a positive example counts this many times; ``"balanced"`` takes negatives / positives
            of the training labels (see `fitted`). Default 1.
        metric: ``auroc`` (default), ``average_precision``, ``accuracy``, ``f1``, ``log_loss``.
    """

    kind = "binary"

    def __init__(
        self,
        name: str,
        classes: Sequence[str] = ("0", "1"),
        positive_weight: float | str = 1.0,
        metric: str | None = None,
    ) -> None:
        super().__init__(name, metric=metric)
        self.classes = class_names(classes, 2, f"task {name!r}: classes")
        if len(self.classes) != 2:
            raise InputError(f"task {name!r}: {len(self.classes)} classes given, expected 2 for a binary task")
        if positive_weight != "balanced" and not (isinstance(positive_weight, int | float) and positive_weight > 0):
            raise InputError(f"task {name!r}: positive_weight {positive_weight!r}, expected a number > 0 or 'balanced'")
        self.positive_weight = positive_weight

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if isinstance(self.positive_weight, str):
            raise InputError(f"task {self.name!r}: balanced weights are not known yet, call task.fitted(labels) first")
        weight = torch.where(target == 1, self.positive_weight, 1.0) if self.positive_weight != 1 else None
        return _logistic(output.squeeze(-1), target, weight)

    def decode(self, output: Tensor) -> Tensor:
        return output.squeeze(-1).sigmoid()

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {
            "auroc": MetricSpec(partial(_own, "BinaryArea"), True),
            "average_precision": MetricSpec(partial(_own, "BinaryPrecision"), True),
            "accuracy": MetricSpec(partial(_metric, "BinaryAccuracy"), True),
            "f1": MetricSpec(partial(_metric, "BinaryF1Score"), True),
            "log_loss": MetricSpec(partial(_own, "LogLoss"), False),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        present = self.present(target)
        if bool(present.any()):
            metric.update(prediction[present].float(), target[present].long())

    def constant(self, target: Tensor) -> Tensor:
        return target[self.present(target)].float().mean().reshape(1)

    def fitted(self, target: Tensor) -> Task:
        if self.positive_weight != "balanced":
            return self
        positives = int((target == 1).sum())
        negatives = int((target == 0).sum())
        if not positives or not negatives:
            raise InputError(f"task {self.name!r}: {positives} positive and {negatives} negative labels, expected both")
        return type(self)(self.name, self.classes, negatives / positives, self.metric)

    def settings(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "positive_weight": self.positive_weight, "metric": self.metric}

    def names(self) -> list[str]:
        return [self.name, f"{self.name}_probability"]

    def table(self, prediction: Tensor) -> dict[str, Any]:
        label, probability = self.names()
        chosen = [self.classes[i] for i in (prediction > 0.5).long().tolist()]
        return {label: chosen, probability: prediction.float().numpy()}


class Classification(Task):
    """One label out of ``C``: targets ``(N,)`` int64, `MISSING` when missing; ``C`` logits, cross-entropy.

    Args:
        classes: the number of classes or their names, in the order of the labels.
        class_weights: one weight a class, or ``"balanced"`` for ``N / (C * count)`` on the training labels (scikit-learn's
            rule, see `fitted`); ``None`` weighs all alike. The loss is then a weighted mean, as in
            ``torch.nn.functional.cross_entropy``.
        label_smoothing: as in ``torch.nn.functional.cross_entropy``.
        metric: ``accuracy`` (default), ``f1`` (macro), ``auroc`` (macro, one against the rest), ``log_loss``.
    """

    kind = "classification"
    integer_labels = True

    def __init__(
        self,
        name: str,
        classes: int | Sequence[str],
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        metric: str | None = None,
    ) -> None:
        self.classes = class_names(classes, 2, f"task {name!r}: classes")
        super().__init__(name, metric=metric)
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise InputError(f"task {name!r}: class_weights {class_weights!r}, expected numbers or 'balanced'")
        if class_weights is not None and class_weights != "balanced" and len(class_weights) != len(self.classes):
            raise InputError(f"task {name!r}: {len(class_weights)} class weights for {len(self.classes)} classes")
        self.class_weights = class_weights if class_weights is None or class_weights == "balanced" else [*class_weights]
        self.label_smoothing = label_smoothing

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, len(self.classes))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.class_weights == "balanced":
            raise InputError(f"task {self.name!r}: balanced weights are not known yet, call task.fitted(labels) first")
        if self.class_weights is None and complete(target):
            return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        weight = None if self.class_weights is None else output.new_tensor(self.class_weights)
        total = F.cross_entropy(
            output, target, weight, ignore_index=MISSING, reduction="sum", label_smoothing=self.label_smoothing
        )
        count = self.count(target)
        # Labels are counted in whole numbers; class weights may add up to any number but 0.
        return total / (count.clamp(min=1) if weight is None else torch.where(count > 0, count, 1))

    def count(self, target: Tensor) -> Tensor:
        present = self.present(target)
        if self.class_weights is None:
            return present.sum()
        weight = torch.tensor(self.class_weights, device=target.device)
        return torch.where(present, weight[target.clamp(min=0)], 0).sum()

    def decode(self, output: Tensor) -> Tensor:
        return output.softmax(1)

    def metrics(self) -> Mapping[str, MetricSpec]:
        count = len(self.classes)
        return {
            "accuracy": MetricSpec(partial(_metric, "MulticlassAccuracy", num_classes=count, average="micro"), True),
            "f1": MetricSpec(partial(_metric, "MulticlassF1Score", num_classes=count, average="macro"), True),
            "auroc": MetricSpec(partial(_own, "MulticlassArea", num_classes=count), True),
            "log_loss": MetricSpec(partial(_own, "LogLoss"), False),
        }

    def constant(self, target: Tensor) -> Tensor:
        counts = target[self.present(target)].flatten().bincount(minlength=len(self.classes)).float()
        return (counts / counts.sum())[None]

    def fitted(self, target: Tensor) -> Task:
        if self.class_weights != "balanced":
            return self
        counts = target[self.present(target)].bincount(minlength=len(self.classes))
        if bool((counts == 0).any()):
            empty = self.classes[int((counts == 0).nonzero()[0])]
            raise InputError(f"task {self.name!r}: no training label of class {empty!r}, expected at least one each")
        weights = (counts.sum() / (len(self.classes) * counts)).tolist()
        return type(self)(self.name, self.classes, weights, self.label_smoothing, self.metric)

    def settings(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "class_weights": self.class_weights,
            "label_smoothing": self.label_smoothing,
            "metric": self.metric,
        }

    def names(self) -> list[str]:
        return [self.name, *(f"{self.name}_{c}" for c in self.classes)]

    def table(self, prediction: Tensor) -> dict[str, Any]:
        label, *each = self.names()
        chosen = [self.classes[i] for i in prediction.argmax(1).tolist()]
        return {label: chosen, **{name: prediction[:, i].float().numpy() for i, name in enumerate(each)}}


class Ordinal(Task):
    """Ordered labels ``0 < 1 < ... < C-1``: targets ``(N,)`` int64, `MISSING` when missing; cumulative logits.

    The head gives one score ``s`` and the model is ``P(y > c) = sigmoid(s - t_c)`` with thresholds ``t_0 < t_1 < ...`` that
    are learned (the proportional-odds model: McCullagh, *Regression models for ordinal data*, JRSS B 42, 1980). The loss is
    the negative log-likelihood of the label.

    Args:
        classes: the number of classes or their names, lowest first.
        metric: ``kappa`` (quadratic weights, default), ``mae`` (in steps of the scale), ``accuracy``.
    """

    kind = "ordinal"
    integer_labels = True

    def __init__(self, name: str, classes: int | Sequence[str], metric: str | None = None) -> None:
        self.classes = class_names(classes, 3, f"task {name!r}: ordered classes")
        super().__init__(name, metric=metric)

    def head(self, width: int) -> nn.Module:
        return CumulativeLogits(width, len(self.classes))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        # log P(y = c) = log(sigmoid(a) - sigmoid(b)) with a = logit P(y > c-1), b = logit P(y > c), a > b
        # = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)): no difference of nearly equal numbers.
        infinite = output.new_full((len(output), 1), torch.inf)
        edges = torch.cat([infinite, output, -infinite], 1)
        label = target.clamp(min=0)[:, None]
        upper, lower = edges.gather(1, label).squeeze(1), edges.gather(1, label + 1).squeeze(1)
        gap = (upper - lower).clamp(min=1e-6)
        losses = -(F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-gap)))
        present = target != MISSING
        return torch.where(present, losses, 0).sum() / present.sum().clamp(min=1)

    def decode(self, output: Tensor) -> Tensor:
        edges = F.pad(F.pad(output.sigmoid(), (1, 0), value=1.0), (0, 1))
        return edges[:, :-1] - edges[:, 1:]

    def metrics(self) -> Mapping[str, MetricSpec]:
        count = len(self.classes)
        return {
            "kappa": MetricSpec(partial(_metric, "MulticlassCohenKappa", num_classes=count, weights="quadratic"), True),
            "mae": MetricSpec(_steps_off, False),
            "accuracy": MetricSpec(partial(_metric, "MulticlassAccuracy", num_classes=count, average="micro"), True),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        present = self.present(target)
        if bool(present.any()):
            # The median is the label that minimises the expected number of steps.
            median = (prediction[present].cumsum(1) < 0.5).sum(1).clamp(max=len(self.classes) - 1)
            metric.update(median, target[present])

    def constant(self, target: Tensor) -> Tensor:
        counts = target[self.present(target)].bincount(minlength=len(self.classes)).float()
        return (counts / counts.sum())[None]

    def settings(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "metric": self.metric}

    def names(self) -> list[str]:
        return [self.name, *(f"{self.name}_{c}" for c in self.classes)]

    def table(self, prediction: Tensor) -> dict[str, Any]:
        label, *each = self.names()
        median = (prediction.cumsum(1) < 0.5).sum(1).clamp(max=len(self.classes) - 1)
        chosen = [self.classes[i] for i in median.tolist()]
        return {label: chosen, **{name: prediction[:, i].float().numpy() for i, name in enumerate(each)}}


class CumulativeLogits(nn.Module):
    """``(..., width)`` -> ``(..., C-1)`` logits of ``P(y > c)``, decreasing in ``c`` by construction."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        # Softplus gaps keep the thresholds ordered for every value of the parameters; ln(e-1) makes each gap 1.
        self.first = nn.Parameter(torch.tensor([-(classes - 2) / 2]))
        self.gaps = nn.Parameter(torch.full((classes - 2,), 0.5413))

    def forward(self, features: Tensor) -> Tensor:
        thresholds = torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])
        logits: Tensor = self.score(features) - thresholds
        return logits


class Multilabel(Task):
    """Any number of ``L`` labels at once: targets ``(N, L)`` float, 0 or 1, NaN where missing; logistic loss each.

    Args:
        labels: the number of labels or their names.
        metric: ``average_precision`` (macro, default), ``auroc`` (macro), ``f1`` (macro).
    """

    kind = "multilabel"

    def __init__(self, name: str, labels: int | Sequence[str], metric: str | None = None) -> None:
        self.labels = class_names(labels, 1, f"task {name!r}: labels")
        super().__init__(name, metric=metric)

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, len(self.labels))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return _logistic(output, target)

    def decode(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def metrics(self) -> Mapping[str, MetricSpec]:
        settings = {"num_labels": len(self.labels), "ignore_index": MISSING}
        return {
            "average_precision": MetricSpec(partial(_own, "MultilabelPrecision", **settings), True),
            "auroc": MetricSpec(partial(_own, "MultilabelArea", **settings), True),
            "f1": MetricSpec(partial(_metric, "MultilabelF1Score", **settings), True),
        }

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        metric.update(prediction.float(), torch.nan_to_num(target, nan=MISSING).long())

    def constant(self, target: Tensor) -> Tensor:
        return target.float().nanmean(0, keepdim=True)

    def settings(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "metric": self.metric}

    def names(self) -> list[str]:
        return [f"{self.name}_{label}" for label in self.labels]


def _own(name: str, **settings: Any) -> Metric:
    from polytask.task import _metrics

    metric: Metric = getattr(_metrics, name)(**settings)
    return metric


def _steps_off() -> Metric:
    from torchmetrics import MeanAbsoluteError

    metric: Metric = MeanAbsoluteError()
    return metric
