"""A yardstick that is not ours: scikit-learn's gradient-boosted trees, one model for each target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.examples import DataSet, Examples
from polytask.data.table import Schema
from polytask.errors import InputError
from polytask.task import Binary, Classification, Ordinal, Regression, Task

MOST_CATEGORIES = 255
"""Codes that scikit-learn's trees take as categories; a column with more is given as numbers."""

TEXT_BUCKETS = 64
"""Counts of hashed words that stand for a text."""


def gradient_boosting_yardstick(data: DataSet, seed: int = 0) -> dict[str, dict[str, float]]:
    """The test metrics of scikit-learn's HistGradientBoosting on a table, by task and metric.

    One model a target with scikit-learn's own defaults, fitted on the rows of the training part whose label is known, with
    the data's columns as polytask read them: categories as categories, missing numbers as missing. Early stopping watches
    the data's own validation part, as polytask's selection does.

    Args:
        data: what `polytask.data.table.load_table` gives.
        seed: of the trees.

    Raises:
        InputError: the data is no table, or a task is of a kind that trees do not predict.
    """
    if not isinstance(data.schema, Schema):
        raise InputError(f"{data.name}: is no table, the gradient boosting yardstick needs columns")
    parts = {part: _features(data, getattr(data, part)) for part in ("train", "validation", "test")}
    return {task.name: _scores(task, data, parts, seed) for task in data.tasks}


def _scores(task: Task, data: DataSet, parts: dict[str, NDArray[Any]], seed: int) -> dict[str, float]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    if not isinstance(task, Binary | Classification | Ordinal | Regression):
        raise InputError(f"task {task.name!r}: gradient boosting does not predict {task.kind}")
    kind = HistGradientBoostingRegressor if isinstance(task, Regression) else HistGradientBoostingClassifier
    trees = kind(categorical_features=_categorical(data), early_stopping=True, random_state=seed)
    train, validation = (_known(task, getattr(data, part), parts[part]) for part in ("train", "validation"))
    trees.fit(*train, X_val=validation[0], y_val=validation[1])
    prediction = _prediction(task, trees, parts["test"])
    target = data.test.targets[task.name]
    scores = {}
    for name, spec in task.metrics().items():
        metric = spec.build()
        task.update(metric, prediction, target)
        scores[name] = float(metric.compute())
    return scores


def _prediction(task: Task, trees: Any, features: NDArray[Any]) -> Tensor:
    """The trees' prediction as `Task.decode` would give it."""
    if isinstance(task, Regression):
        return torch.from_numpy(trees.predict(features)).float()[:, None]
    probabilities = torch.from_numpy(trees.predict_proba(features)).float()
    classes = torch.from_numpy(trees.classes_).long()
    whole = torch.zeros(len(features), 2 if isinstance(task, Binary) else len(task.classes))  # type: ignore[attr-defined]
    whole[:, classes] = probabilities
    return whole[:, 1] if isinstance(task, Binary) else whole


def _known(task: Task, examples: Examples, features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    target = examples.targets[task.name]
    present = task.present(target)
    return features[present.numpy()], target[present].numpy()


def _features(data: DataSet, examples: Examples) -> NDArray[np.float32]:
    """The inputs of a table as one array: numbers (NaN where missing), codes (NaN where missing), counts of words."""
    inputs = examples.inputs
    if isinstance(inputs, Tensor):
        raise InputError(f"{data.name}: is no table, the gradient boosting yardstick needs columns")
    columns = []
    if "numeric" in inputs:
        numbers = inputs["numeric"].clone()
        for i, column in enumerate(data.schema.missing_numbers):
            numbers[inputs["missing"][:, i] > 0, column] = torch.nan
        columns.append(numbers)
    if "categorical" in inputs:
        codes = inputs["categorical"]
        columns.append(torch.where(codes == 0, torch.nan, codes.float() - 1))
    if "text" in inputs:
        words = inputs["text"].long()
        counts = torch.zeros(len(words), words.shape[1], TEXT_BUCKETS)
        counts.scatter_add_(2, words % TEXT_BUCKETS, (words > 0).float())
        columns.append(counts.flatten(1))
    return torch.cat(columns, 1).numpy()


def _categorical(data: DataSet) -> list[int]:
    """Which columns of `_features` hold categories."""
    first = len(data.schema.numbers)
    return [first + i for i, category in enumerate(data.schema.categories) if category.size <= MOST_CATEGORIES]
