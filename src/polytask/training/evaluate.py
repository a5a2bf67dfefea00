"""How good a model is on data: every task's metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polytask.data.examples import Examples, to_device
from polytask.model import Model
from polytask.task import Task

Metrics: TypeAlias = dict[str, dict[str, float]]
"""Metric values by task and metric name; NaN where a metric is undefined, as the AUROC of labels that are all alike."""


def evaluate(model: Model, data: Any, batch_size: int = 4096) -> Metrics:
    """Every task's metrics on ``data``.

    Args:
        model: predicts; its mode (training or not) is restored afterwards.
        data: `Examples`, a data loader of ``(inputs, {task: target})``, or a mapping from tasks to data of their own. Rows
            whose label is missing do not count; tasks without targets in the data are left out.
        batch_size: rows at a time, for `Examples`.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    training = model.training
    model.eval()
    try:
        meters: dict[str, _Meters] = {}
        for inputs, targets in batches(data, batch_size):
            known = {name: target for name, target in targets.items() if name in model.tasks}
            predictions = model.predict(to_device(inputs, device), tuple(known))
            for name, target in known.items():
                meter = meters.setdefault(name, _Meters(model.tasks[name]))
                meter.update(predictions[name].cpu(), target.cpu())
    finally:
        model.train(training)
    return {name: meters[name].compute() for name in model.tasks if name in meters}


def evaluate_constant(tasks: Mapping[str, Task], data: Any, batch_size: int = 4096) -> Metrics:
    """The metrics of the best prediction that ignores the inputs: the zero of `polytask.measure.skill`."""
    columns: dict[str, list[Tensor]] = {}
    for _, targets in batches(data, batch_size):
        for name, target in targets.items():
            columns.setdefault(name, []).append(target.cpu())
    values = {}
    for name, task in tasks.items():
        if name in columns:
            target = torch.cat(columns[name])
            row = task.constant(target)
            meters = _Meters(task)
            for part in torch.split(target, batch_size):
                # Dense kinds keep the target's height and width, all others have one row of the prediction an example.
                shape = (len(part), *row.shape[1:2], *part.shape[-2:]) if row.ndim == 4 else (len(part), *row.shape[1:])
                meters.update(row.expand(shape), part)
            values[name] = meters.compute()
    return values


def evaluate_losses(model: nn.Module, data: Any, batch_size: int = 4096) -> dict[str, float]:
    """The mean of each named loss over the batches of ``data``, for a model that has only ``losses(batch)``."""
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    training = model.training
    model.eval()
    source = (data[i : i + batch_size] for i in range(0, len(data), batch_size)) if isinstance(data, Examples) else data
    try:
        with torch.no_grad():
            for batch in source:
                for name, loss in model.losses(to_device(batch, device)).items():  # type: ignore[operator]
                    totals[name] = totals.get(name, 0.0) + float(loss)
                    counts[name] = counts.get(name, 0) + 1
    finally:
        model.train(training)
    return {name: total / counts[name] for name, total in totals.items()}


def batches(data: Any, batch_size: int) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """``data`` in batches of ``(inputs, {task: target})``, in order."""
    if isinstance(data, Examples):
        for start in range(0, len(data), batch_size):
            inputs, targets = data[start : start + batch_size]
            yield inputs, dict(targets)
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
