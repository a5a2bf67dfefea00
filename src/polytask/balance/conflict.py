"""Conflict between tasks: the cosines of their gradients on the shared parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from polytask.balance.engine.task_gradients import TaskGradients


def gradient_cosines(losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> Tensor:
    """The cosine of every pair of task gradients on ``shared``, ``(K, K)`` in the order of ``losses``, on the CPU.

    Gradients accumulate nowhere (``.grad`` is untouched), and the graph of the losses is kept. A negative entry is a
    conflict; a row of NaN is a task whose gradient vanishes.
    """
    gradients = TaskGradients(shared, own=False)
    gradients.add(losses)
    return _cosines(gradients.gramian()).float()


def _cosines(gramian: Tensor) -> Tensor:
    """The cosine of every pair of gradients from their inner products, ``(K, K)``; NaN for a gradient of norm 0."""
    norms = gramian.diagonal().clamp(min=0).sqrt()
    return (gramian / norms[:, None] / norms).clamp(-1, 1)
