"""How good a model is on data: every task's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polytask.data.examples import Examples, to_device
from polytask.data.stream import Stream
from polytask.errors import InputError
from polytask.model import Model
from polytask.nn import modes
from polytask.task import Task

Metrics: TypeAlias = dict[str, dict[str, float]]
"""Metric values by task and metric name; NaN where a metric is undefined, as the AUROC of labels that are all alike."""


def evaluate(model: Model, data: Any, batch_size: int = 512) -> Metrics:
    """Every task's metrics on ``data``.

    Args:
        model: predicts; its mode (training or not) is restored afterwards.
        data: `Examples`, a data loader of ``(inputs, {task: target})``, or a mapping from tasks to data of their own. Rows
            whose label is missing do not count; tasks without targets in the data are left out.
        batch_size: rows at a time, for `Examples`; more are slower once their activations leave the processor's cache.
    """
    return evaluate_predictions(model, data, model.predict, batch_size)


def evaluate_predictions(model: Model, data: Any, predict: Callable[..., Any], batch_size: int = 512) -> Metrics:
    """`evaluate` with another function for ``model.predict``, as for a model in pieces on several machines."""
    meters: dict[str, _Meters] = {}
    with evaluating(model) as device, torch.no_grad():
        for inputs, targets in batches(data, batch_size):
            known = {name: target for name, target in targets.items() if name in model.tasks}
            predictions = predict(to_device(inputs, device), tuple(known))
            for name, target in known.items():
                meter = meters.setdefault(name, _Meters(model.tasks[name]))
                meter.update(predictions[name].cpu(), target.cpu())
    return {name: meters[name].compute() for name in model.tasks if name in meters}


def evaluate_constant(tasks: Mapping[str, Task], data: Any, batch_size: int = 512) -> Metrics:
    """The metrics of the best prediction that ignores the inputs: the zero of `polytask.measure.skill`."""
    return constant_metrics(tasks, labels(data, batch_size), batch_size)


def labels(data: Any, batch_size: int = 512) -> dict[str, Tensor]:
    """All targets in ``data`` by task."""
    columns: dict[str, list[Tensor]] = {}
    for _, targets in batches(data, batch_size):
        for name, target in targets.items():
            columns.setdefault(name, []).append(target.cpu())
    return {name: torch.cat(parts) for name, parts in columns.items()}


def constant_metrics(tasks: Mapping[str, Task], columns: Mapping[str, Tensor], batch_size: int = 512) -> Metrics:
    """`evaluate_constant` on all targets by task."""
    values = {}
    for name, task in tasks.items():
        if name in columns:
            row = task.constant(columns[name])
            meters = _Meters(task)
            for part in torch.split(columns[name], batch_size):
                # Dense kinds keep the target's height and width, all others have one row of the prediction an example.
                shape = (len(part), *row.shape[1:2], *part.shape[-2:]) if row.ndim == 4 else (len(part), *row.shape[1:])
                meters.update(row.expand(shape), part)
            values[name] = meters.compute()
    return values


def evaluate_losses(
    model: nn.Module, data: Any, batch_size: int = 512, losses: Callable[..., Any] | None = None
) -> dict[str, float]:
    """The mean of each named loss over ``data``, for a model that may have only ``losses(batch)``.

    Over the labels when the model has ``label_counts``, over the batches when it has not.

    Args:
        model, data, batch_size: as for `evaluate`.
        losses: another function for ``model.losses``.
    """
    losses = losses or model.losses  # type: ignore[assignment]
    assert losses is not None
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    whole = isinstance(data, Examples | Mapping) or isinstance(model, Model)
    with evaluating(model) as device, torch.no_grad():
        for batch in batches(data, batch_size) if whole else data:
            batch = to_device(batch, device)
            weights = model.label_counts(batch) if hasattr(model, "label_counts") else {}  # type: ignore[operator]
            for name, loss in losses(batch).items():
                weight = float(weights.get(name, 1))
                totals[name] = totals.get(name, 0.0) + float(loss) * weight
                counts[name] = counts.get(name, 0.0) + weight
    return {name: total / counts[name] if counts[name] else float("nan") for name, total in totals.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode, and its device; each module's mode is restored afterwards."""
    parameter = next(model.parameters(), None)
    with modes.evaluating(model):
        yield parameter.device if parameter is not None else torch.device("cpu")


def batches(data: Any, batch_size: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """``data`` in batches of ``(inputs, {task: target})``, in order."""
    if isinstance(data, Examples):
        for start in range(0, len(data), batch_size):
            inputs, targets = data[start : start + batch_size]
            yield inputs, dict(targets)
    elif isinstance(data, Stream):
        raise InputError(
            f"a {type(data).__name__} repeats or leaves out examples, expected Examples, a data loader, or a mapping of them"
        )
    elif isinstance(data, Mapping):
        for name, source in data.items():
            for inputs, target in batches(source, batch_size):
                yield inputs, {name: target[name] if isinstance(target, Mapping) else target}
    else:
        for inputs, target in data:
            yield inputs, target


class _Meters:
    """All metrics of one task, updated together."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.metrics = {name: spec.build() for name, spec in task.metrics().items()}

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for metric in self.metrics.values():
            self.task.update(metric, prediction, target)

    def compute(self) -> dict[str, float]:
        return {
            name: float(metric.compute()) if metric.update_called else float("nan") for name, metric in self.metrics.items()
        }
