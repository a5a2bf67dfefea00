"""Two models on the same rows, task by task: is the second one better, worse, or can these rows not tell?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.examples import Examples, to_device
from polytask.errors import InputError
from polytask.model import Model
from polytask.statistics import holm
from polytask.task import Task
from polytask.training.evaluate import batches, evaluating

if TYPE_CHECKING:
    from torchmetrics import Metric

Verdict: TypeAlias = Literal["better", "worse", "undecided"]

LEVEL = 0.95
"""The confidence of the intervals; verdicts hold for all tasks together at this level."""


@dataclass(frozen=True)
class TaskDifference:
    """One task under two models.

    Attributes:
        task, metric, higher_is_better: what is compared.
        labels: how many rows have a label for it.
        a, b: the metric of each model.
        difference: ``b - a``, in the metric's unit.
        low, high: its 95 % percentile bootstrap interval; NaN when the metric is undefined in every resample.
        p: the two-sided p value that the difference is zero, corrected for the number of tasks (Holm).
        verdict: on ``b``: ``better`` or ``worse`` when ``p < 0.05``, otherwise ``undecided``.
    """

    task: str
    metric: str
    higher_is_better: bool
    labels: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    verdict: Verdict


def diff(
    a: Model,
    b: Model,
    data_a: Examples,
    data_b: Examples | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[TaskDifference]:
    """Compare two models on the main metric of each task that both have, by a paired bootstrap over rows.

    Each resample draws rows with replacement, the same rows for both models and all tasks, and measures both models on
    them; what spreads is then the difference, not the difficulty of the rows. The interval covers the choice of rows, not
    what training each model again would change.

    Args:
        a, b: the model in use and its proposed successor.
        data_a, data_b: the same rows in the same order, as inputs of each model; one is enough when they share a schema.
        resamples: bootstrap samples. A p value is at least ``2 / (resamples + 1)``: with ``K`` tasks take ``40 K`` or more.
        seed: of the resampling.
        progress: called with the number of resamples done.

    Raises:
        InputError: the models share no task with labels here, or the data differ in length.
    """
    data_b = data_a if data_b is None else data_b
    if len(data_a) != len(data_b):
        raise InputError(f"the models' data have {len(data_a)} and {len(data_b)} rows, expected the same rows")
    names = [name for name in a.tasks if name in b.tasks and name in data_a.targets and name in data_b.targets]
    if not names:
        raise InputError(f"no common task with labels: {list(a.tasks)} and {list(b.tasks)}, labels {list(data_a.targets)}")
    if resamples < 40 * len(names):
        raise InputError(f"{resamples} resamples cannot decide {len(names)} tasks, expected at least {40 * len(names)}")
    pairs = {name: _pair(name, a, b) for name in names}
    columns = [_columns(model, data, names) for model, data in ((a, data_a), (b, data_b))]
    sides = {
        name: [
            (task, task.metrics()[task.metric].build(), *column[name]) for task, column in zip(pair, columns, strict=True)
        ]
        for name, pair in pairs.items()
    }

    def measure(name: str, rows: Tensor | slice) -> list[float]:
        return [_measure(task, metric, prediction[rows], target[rows]) for task, metric, prediction, target in sides[name]]

    rng = np.random.default_rng(seed)
    resampled = np.empty((len(names), resamples))
    for i in range(resamples):
        rows = torch.from_numpy(rng.integers(len(data_a), size=len(data_a)))
        for k, name in enumerate(names):
            before, after = measure(name, rows)
            resampled[k, i] = after - before
        progress(i + 1)
    intervals = [_interval(differences) for differences in resampled]
    corrected = holm([p for _, _, p in intervals])
    found = []
    for name, (low, high, _), p in zip(names, intervals, corrected, strict=True):
        task = a.tasks[name]
        before, after = measure(name, slice(None))
        found.append(
            TaskDifference(
                task=name,
                metric=task.metric,
                higher_is_better=task.higher_is_better,
                labels=int(task.present(data_a.targets[name]).sum()),
                a=before,
                b=after,
                difference=after - before,
                low=low,
                high=high,
                p=float(p),
                verdict=_verdict(after - before, float(p), task.higher_is_better),
            )
        )
    return found


def _pair(name: str, a: Model, b: Model) -> tuple[Task, Task]:
    first, second = a.tasks[name], b.tasks[name]
    if first.kind != second.kind or first.metric != second.metric:
        raise InputError(
            f"task {name!r}: {first.kind} by {first.metric} in one model, {second.kind} by {second.metric} in the other, "
            "expected the same kind and metric"
        )
    return first, second


def _columns(model: Model, data: Examples, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Predictions and targets of every row, by task."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(model) as device:
        for inputs, _ in batches(data, 4096):
            for name, prediction in model.predict(to_device(inputs, device), names).items():
                parts[name].append(prediction.cpu())
    return {name: (torch.cat(parts[name]), data.targets[name]) for name in names}


def _measure(task: Task, metric: Metric, prediction: Tensor, target: Tensor) -> float:
    metric.reset()
    task.update(metric, prediction, target)
    return float(metric.compute()) if metric.update_called else float("nan")


def _interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Percentile interval and two-sided p value; resamples in which the metric is undefined are left out."""
    known = differences[np.isfinite(differences)]
    if len(known) == 0:
        return float("nan"), float("nan"), 1.0
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below, above = int((known <= 0).sum()), int((known >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1))


def _verdict(difference: float, p: float, higher_is_better: bool) -> Verdict:
    if not p < 1 - LEVEL:
        return "undecided"
    return "better" if (difference > 0) == higher_is_better else "worse"
