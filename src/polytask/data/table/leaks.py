"""Features that give a target away: each predicts the target almost perfectly on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from polytask.data.table.schema import Schema
from polytask.task import Binary, Regression, Task

ROWS = 50_000
"""Training rows that are looked at."""

BINS = 64
"""Steps that a number is cut into."""

LIMITS = {"AUROC": 0.99, "R2 of ranks": 0.98, "accuracy above the most frequent class": 0.97}
"""What a feature must reach on its own to be named; the last is ``(a - b) / (1 - b)``, accuracy ``a``, base rate ``b``."""


def find_leaks(
    schema: Schema, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], tasks: Sequence[Task]
) -> list[str]:
    """One warning for each feature that predicts a target almost perfectly on its own, with the figure.

    A feature is cut into its categories or ``BINS`` steps; each step predicts the mean (or the most frequent class) of the
    target in half of the rows, and is scored on the other half.
    """
    warnings = []
    features = [(column, codes[:ROWS]) for column, codes in _features(schema, inputs)]
    for task in tasks:
        target = targets[task.name][:ROWS]
        present = task.present(target)
        if int(present.sum()) < 100:
            continue
        for column, codes in features:
            figure, value = _alone(codes[present], target[present], task)
            if value >= LIMITS[figure]:
                warnings.append(
                    f"column {column!r} predicts target {task.name!r} almost perfectly on its own ({figure} {value:.4f}): "
                    "if it is not known before the target is, leave it out"
                )
    return warnings


def _features(schema: Schema, inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    indicators = dict(zip(schema.missing_numbers, range(len(schema.missing_numbers)), strict=True))
    for i, number in enumerate(schema.numbers):
        codes = ((inputs["numeric"][:, i] + 1) / 2 * BINS).long()
        yield number.column, codes + (BINS + 1) * inputs["missing"][:, indicators[i]].long() if i in indicators else codes
    for i, category in enumerate(schema.categories):
        yield category.column, inputs["categorical"][:, i].long()


def _alone(codes: Tensor, target: Tensor, task: Task) -> tuple[str, float]:
    """How well ``codes`` alone predict ``target`` in the second half of the rows, and the name of the figure."""
    half = len(codes) // 2
    steps = int(codes.max()) + 1
    if isinstance(task, Binary | Regression):
        target = target.double()
        ranked = target if isinstance(task, Binary) else _ranks(target)
        overall = ranked[:half].mean()
        sums = torch.zeros(steps, dtype=torch.float64).index_add_(0, codes[:half], ranked[:half])
        # A hundredth of a row with the overall mean stands in for the rows of a step that the first half does not have.
        means = (sums + 0.01 * overall) / (codes[:half].bincount(minlength=steps) + 0.01)
        prediction, truth = means[codes[half:]], ranked[half:]
        if isinstance(task, Binary):
            return "AUROC", _auroc(prediction, truth)
        error = ((prediction - truth) ** 2).sum() / ((truth - overall) ** 2).sum().clamp(min=1e-12)
        return "R2 of ranks", 1 - float(error)
    classes = int(target.max()) + 1
    counts = (codes[:half] * classes + target[:half]).bincount(minlength=steps * classes).reshape(steps, classes)
    accuracy = float((counts.argmax(1)[codes[half:]] == target[half:]).double().mean())
    base = float((target[half:] == counts.sum(0).argmax()).double().mean())
    return "accuracy above the most frequent class", (accuracy - base) / max(1 - base, 1e-12)


def _ranks(values: Tensor) -> Tensor:
    """Ranks in (0, 1], equal values sharing the mean of theirs."""
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = ((counts.cumsum(0) - (counts - 1) / 2) / len(values)).double()[index]
    return ranks


def _auroc(score: Tensor, label: Tensor) -> float:
    """The probability that a positive scores above a negative; 0.5 when either is absent."""
    positives = label.sum()
    negatives = len(label) - positives
    if positives == 0 or negatives == 0:
        return 0.5
    ranks = _ranks(score) * len(score)
    return float((ranks[label == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
