"""How good the model of a run is by now: one number, higher is better, whatever it monitors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from polytask.data.stream import Stream
from polytask.errors import InputError, suggest
from polytask.measure import delta_m, skill
from polytask.model import Model
from polytask.training import checkpoint
from polytask.training.evaluate import (
    Metrics,
    constant_metrics,
    evaluate_losses,
    evaluate_predictions,
    evaluating,
    labels,
)


class Judge:
    """Scores a model on the validation data; higher is better whatever it monitors. Checks that it can, at once."""

    def __init__(self, model: Any, data: Any, monitor: str | None, baseline: Mapping[str, float] | None) -> None:
        self.data = data
        self.baseline = baseline or {}
        self.tasks = model.tasks if isinstance(model, Model) else {}
        self.own = not self.tasks and hasattr(model, "evaluate")
        default = "loss" if not self.tasks else "delta_m" if baseline else "skill"
        self.monitor = monitor or default
        if data is None:
            if monitor or baseline:
                raise InputError(f"monitor {self.monitor!r} needs validation data, and none is given")
            return
        if self.monitor == "loss":
            if isinstance(data, Stream) and not isinstance(data, Iterable):
                raise InputError(
                    f"validation data is a {type(data).__name__}, whose losses change what the model remembers: monitor a "
                    "metric of the model's own evaluate, 'TASK/METRIC'"
                )
            return
        task, _, metric = self.monitor.partition("/")
        if self.own and metric:
            return
        if not self.tasks:
            raise InputError(
                f"monitor {self.monitor!r} needs a polytask.Model; any other module can monitor 'loss' alone, or "
                "'TASK/METRIC' where it has evaluate(data)"
            )
        if self.monitor not in ("skill", "delta_m"):
            if task not in self.tasks:
                known = ["skill", "delta_m", "loss", *self.tasks]
                raise InputError(f"unknown monitor {self.monitor!r}: {suggest(task, known)}")
            if metric and metric not in self.tasks[task].metrics():
                known = list(self.tasks[task].metrics())
                raise InputError(f"unknown metric {metric!r} of task {task!r}: {suggest(metric, known)}")
        with checkpoint.same_random_state(torch.device("cpu")):  # a loader draws a number even when it reads in order
            columns = labels(data)
        # The tasks that the validation data has a label for.
        self.judged = [n for n in self.tasks if n in columns and bool(self.tasks[n].present(columns[n]).any())]
        if not self.judged or (task in self.tasks and task not in self.judged):
            missing_label = f"task {task!r}" if task in self.tasks else "any task"
            raise InputError(f"the validation data has no label for {missing_label}, expected some")
        if self.monitor == "delta_m":
            missing = [name for name in self.judged if name not in self.baseline]
            if missing:
                raise InputError(f"monitor 'delta_m' needs a baseline for every task, and {missing[0]!r} has none")
            self._delta_m(self.baseline)
        if self.monitor == "skill":
            self.reference = constant_metrics(self.tasks, columns)

    def __call__(self, model: Any, losses: Callable[..., Any], predict: Callable[..., Any]) -> dict[str, Any]:
        if self.data is None:
            return {"validation": {}, "score": None}
        if self.monitor == "loss":
            means = evaluate_losses(model, self.data, losses=losses)
            return {"validation": {name: {"loss": loss} for name, loss in means.items()}, "score": -sum(means.values())}
        if self.own:
            with evaluating(model), torch.no_grad():
                metrics = model.evaluate(self.data)
            return {"validation": metrics, "score": self._own_score(metrics)}
        metrics = evaluate_predictions(model, self.data, predict)
        return {"validation": metrics, "score": self._score(metrics)}

    def _own_score(self, metrics: Metrics) -> float:
        task, _, metric = self.monitor.partition("/")
        if task not in metrics:
            raise InputError(f"unknown monitor {self.monitor!r}: {suggest(task, metrics)}")
        if metric not in metrics[task]:
            raise InputError(f"unknown metric {metric!r} of task {task!r}: {suggest(metric, metrics[task])}")
        return metrics[task][metric]

    def _score(self, metrics: Metrics) -> float:
        main = {name: metrics[name][self.tasks[name].metric] for name in self.judged}
        if self.monitor == "delta_m":
            return self._delta_m(main)
        if self.monitor == "skill":
            scores = []
            for name, value in main.items():
                task = self.tasks[name]
                zero = self.reference[name][task.metric]
                # A score that is undefined for a constant prediction (as a correlation is) counts from 0.
                zero = zero if math.isfinite(zero) else 0.0
                scores.append(skill(value, zero, task.metrics()[task.metric].perfect))
            return sum(scores) / len(scores)
        name, _, metric = self.monitor.partition("/")
        task = self.tasks[name]
        metric = metric or task.metric
        sign = 1 if task.metrics()[metric].higher_is_better else -1
        return sign * metrics[name][metric]

    def _delta_m(self, values: Mapping[str, float]) -> float:
        return delta_m(
            {name: values[name] for name in self.judged},
            self.baseline,
            {name: self.tasks[name].higher_is_better for name in self.judged},
        )
