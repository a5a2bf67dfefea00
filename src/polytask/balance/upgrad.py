"""Unconflicting projection of gradients."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance.solvers import Array, at_least, projections


def weights(gramian: Tensor, shares: Array | None = None) -> Tensor:
    """The sum over tasks ``k`` of the ``v >= u_k e_k`` that minimises ``v^T G v``, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        shares: ``u >= 0``, ``(K,)``; ``1 / K`` each by default.
    """
    # The length of the projected gradient scales the solution, so that one of unit length stands for all.
    return at_least(gramian, shares, lambda matrix, lengths: projections(matrix) @ lengths)


@balancers.add("upgrad")
class UPGrad(PreferringWeighting):
    """Each task gradient is projected onto the cone of steps that conflict with no task, and the projections are averaged.

    The projection of ``g_k`` is the nearest vector ``d`` with ``g_i^T d >= 0`` for all tasks ``i``; it is ``sum_i v_i g_i``
    where ``v`` minimises ``v^T G v`` over ``v >= e_k``. The step conflicts with no task, and in proportion to its length
    each gradient keeps its influence. Quinton and Rey, *Jacobian descent for multi-objective optimization*, 2024
    (arXiv:2406.16232), Proposition 1 for the dual form.

    Args:
        preference: a number > 0 for each task; a task that is not named has 1. The projections are averaged with these.
    """

    scale = "mean"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.shares(losses))
