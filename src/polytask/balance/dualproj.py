"""The mean gradient, projected so that it conflicts with no task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance.solvers import Array, at_least, nonnegative


def weights(gramian: Tensor, shares: Array | None = None) -> Tensor:
    """The ``v >= u`` that minimises ``v^T G v``, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        shares: ``u >= 0``, ``(K,)``; ``1 / K`` each by default.
    """
    return at_least(gramian, shares, lambda matrix, lengths: nonnegative(matrix, -matrix @ lengths))


@balancers.add("dualproj")
class DualProj(PreferringWeighting):
    """The preferred mean of the task gradients, projected onto the cone of steps that conflict with no task.

    The nearest vector ``d`` to ``sum_k u_k g_k`` with ``g_k^T d >= 0`` for all tasks is ``sum_k v_k g_k`` where ``v``
    minimises ``v^T G v`` over ``v >= u``. Lopez-Paz and Ranzato, *Gradient episodic memory for continual learning*,
    NeurIPS 2017, Eq. 11, where one gradient is projected and the others are those of earlier tasks; here all tasks take
    both parts.

    Args:
        preference: a number > 0 for each task; a task that is not named has 1. ``u`` is these divided by their sum.
    """

    scale = "mean"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.shares(losses))
