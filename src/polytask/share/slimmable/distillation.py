"""How far a smaller network is from a larger one: in what its encoder represents, and in what it gives for a task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.task import Binary, Classification, Multilabel, Task


def representation_distance(student: Tensor, teacher: Tensor, compare: str = "direction") -> Tensor:
    """The mean squared difference of two representations, a scalar; the teacher gets no gradient.

    Args:
        student, teacher: features ``(N, C, ...)``; the dimensions after the second are positions.
        compare: ``"direction"``: each position's features, scaled to length 1, so that its squared difference is ``2 - 2
            cos``; ``"attention"``: the map ``sum_c F_c^2`` over positions, scaled to length 1; ``"relation"``: the cosines
            of all pairs of positions. The last two also compare features of different numbers of channels.

    >>> x = torch.randn(2, 8, 3, 3)
    >>> [round(float(representation_distance(3 * x, x, how)), 6) for how in REPRESENTATIONS]
    [0.0, 0.0, 0.0]
    """
    if compare not in REPRESENTATIONS:
        raise InputError(f"unknown comparison {compare!r} of representations: {suggest(compare, REPRESENTATIONS)}")
    if compare != "direction" and student.shape[2:].numel() == 1:
        raise InputError(f"features {tuple(student.shape)} have one position, {compare!r} needs several: use 'direction'")
    represent = REPRESENTATIONS[compare]
    return (represent(student) - represent(teacher.detach())).square().sum(1).mean()


def output_distance(task: Task, student: Tensor, teacher: Tensor) -> Tensor:
    """How far outputs are from a teacher's, which get no gradient: a scalar, 0 for the same outputs.

    The Kullback-Leibler divergence of the teacher's probabilities for one label of several and for yes or no, the mean
    absolute difference for every other kind of task.
    """
    teacher = teacher.detach()
    if isinstance(task, Classification):
        divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
        return divergence.sum(1).mean()
    if isinstance(task, Binary | Multilabel):
        entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid())
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid()) - entropy
    return F.l1_loss(student, teacher)


def _direction(features: Tensor) -> Tensor:
    return F.normalize(_positions(features), dim=1)


def _attention(features: Tensor) -> Tensor:
    return F.normalize(_positions(features).square().sum(1), dim=1)


def _relation(features: Tensor) -> Tensor:
    rows = _direction(features)
    # So that the sum over the one of a pair, and the mean over the other, are the mean over pairs.
    return torch.bmm(rows.transpose(1, 2), rows).div(rows.shape[2] ** 0.5)


REPRESENTATIONS = {"direction": _direction, "attention": _attention, "relation": _relation}


def _positions(features: Tensor) -> Tensor:
    """``(N, C, P)`` in single precision at least: squares of half-precision features may not be finite."""
    return features.reshape(*features.shape[:2], -1).to(torch.promote_types(features.dtype, torch.float32))
