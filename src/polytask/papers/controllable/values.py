"""How good configurations are, in the unit of a network that was trained by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polytask.data.examples import DataSet, Examples
from polytask.measure import hypervolume
from polytask.model import Model
from polytask.papers.controllable.models import stand_alone
from polytask.share.slimmable import Configuration, Supernet, Widths
from polytask.training import evaluate_constant

Values = dict[str, float]
"""A number for each task."""


class Unit:
    """Measures models in the unit of the network of width 1 that was trained by itself."""

    def __init__(self, scenes: DataSet, reference: Model) -> None:
        self.scenes, self.tasks = scenes, {task.name: task for task in scenes.tasks}
        self.reference = {split: self.metrics(reference, split) for split in ("validation", "test")}
        constant = evaluate_constant(self.tasks, scenes.test)
        self.constant = {name: constant[name][task.metric] for name, task in self.tasks.items()}

    def metrics(self, model: Model, split: str) -> Values:
        """The main metric of each task, without the others that `polytask.evaluate` has."""
        examples: Examples = getattr(self.scenes, split)
        inputs, targets = examples[:]
        found = {}
        for name, prediction in model.predict(inputs).items():
            task = self.tasks[name]
            metric = task.metrics()[task.metric].build()
            task.update(metric, prediction, targets[name])
            found[name] = float(metric.compute())
        return found

    def values(self, model: Model, split: str) -> Values:
        return self.relative(self.metrics(model, split), split)

    def relative(self, metrics: Values, split: str) -> Values:
        """Metrics in percent of the reference's, its share of them for an error."""
        pairs = {name: (value, self.reference[split][name]) for name, value in metrics.items()}
        return {n: 100 * (v / r if self.tasks[n].higher_is_better else r / v) for n, (v, r) in pairs.items()}

    def skills(self, model: Model, split: str) -> Values:
        return self.skill(self.metrics(model, split))

    def skill(self, metrics: Values) -> Values:
        """Test metrics on the way from the best constant, 0, to the reference, 1."""
        zero, one = self.constant, self.reference["test"]
        return {name: (value - zero[name]) / (one[name] - zero[name]) for name, value in metrics.items()}


class Table:
    """The metrics of all configurations of a supernet: those of a task depend on the encoder and its own decoder alone."""

    def __init__(self, supernet: Supernet, unit: Unit, split: str) -> None:
        self.supernet, self.unit, self.split = supernet, unit, split
        self.metrics: dict[tuple[Widths, float], Values] = {}

    def __call__(self, configuration: Configuration) -> Values:
        """Each task's value at a configuration."""
        return self.unit.relative(self._of(configuration), self.split)

    def skills(self, configuration: Configuration) -> Values:
        """Each task's skill at a configuration."""
        return self.unit.skill(self._of(configuration))

    def _of(self, configuration: Configuration) -> Values:
        found = {}
        for name, width in configuration.decoders.items():
            key = configuration.encoder, width
            if key not in self.metrics:
                even = Configuration(configuration.encoder, dict.fromkeys(self.supernet.tasks, width))
                self.metrics[key] = self.unit.metrics(stand_alone(self.supernet, even), self.split)
            found[name] = self.metrics[key][name]
        return found


def covered(points: Sequence[Values]) -> float:
    """The hypervolume of skills over that of the best constants."""
    rows = [list(point.values()) for point in points]
    return hypervolume(rows, [0.0] * len(rows[0]))


def mean(values: Mapping[str, float] | Sequence[float]) -> float:
    """The mean of numbers, or of a mapping's."""
    return float(np.mean(list(values.values() if isinstance(values, Mapping) else values)))
