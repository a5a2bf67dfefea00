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
    target in every other row, and is scored on the rest.

    Args:
        schema: of the table.
        inputs: the training rows, transformed.
        targets: of the training rows, by task.
        tasks: the targets' tasks.
    """
    warnings = []
    rows = len(next(iter(inputs.values())))
    step = -(-rows // ROWS)
    features = list(_features(schema, {key: tensor[::step] for key, tensor in inputs.items()}))
    for task in tasks:
        target = targets[task.name][::step]
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
    """The columns, and the step or category that each row is in."""
    indicators = {number: i for i, number in enumerate(schema.missing_numbers)}
    for i, number in enumerate(schema.numbers):
        codes = ((inputs["numeric"][:, i] + 1) / 2 * BINS).long()
        yield number.column, codes + (BINS + 1) * inputs["missing"][:, indicators[i]].long() if i in indicators else codes
    for i, category in enumerate(schema.categories):
        yield category.column, inputs["categorical"][:, i].long()


def _alone(codes: Tensor, target: Tensor, task: Task) -> tuple[str, float]:
    """How well ``codes`` alone predict ``target`` in every other row, learned from the rest; and the name of the figure."""
    steps = int(codes.max()) + 1
    seen, unseen = codes[::2], codes[1::2]
    if isinstance(task, Binary | Regression):
        values = target.double() if isinstance(task, Binary) else _ranks(target)
        known, truth = values[::2], values[1::2]
        sums = torch.zeros(steps, dtype=torch.float64).index_add_(0, seen, known)
        # A hundredth of a row with the overall mean stands in for the rows of a step that was not seen.
        means = (sums + 0.01 * known.mean()) / (seen.bincount(minlength=steps) + 0.01)
        if isinstance(task, Binary):
            return "AUROC", _auroc(means[unseen], truth)
        error = ((means[unseen] - truth) ** 2).sum() / ((truth - known.mean()) ** 2).sum().clamp(min=1e-12)
        return "R2 of ranks", 1 - float(error)
    classes = int(target.max()) + 1
    known, truth = target[::2], target[1::2]
    counts = (seen * classes + known).bincount(minlength=steps * classes).reshape(steps, classes)
    accuracy = float((counts.argmax(1)[unseen] == truth).double().mean())
    base = float((truth == counts.sum(0).argmax()).double().mean())
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
