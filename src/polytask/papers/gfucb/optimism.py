"""Choosing for all tasks at once from one confidence set: the largest sum of values that some function in it has."""

from __future__ import annotations

import torch
from torch import Tensor


def joint_value(means: Tensor, directions: Tensor, actions: Tensor, beta: float) -> Tensor:
    """``sum_i m_i + sqrt(beta) |sum_i d_i|``: the largest sum of values of these actions over the ball of radius ``beta``.

    The ball is ``|Z^(1/2) (theta - theta_0)|^2 <= beta``, around functions ``m + g (theta - theta_0)``; a direction is
    ``Z^(-1/2) g``. Tasks that share no parameter have orthogonal directions: the bonus is then the square root of the sum of
    their squared widths, less than the sum of the widths that balls of their own would give.

    Args:
        means: ``(M, A)``, of each task and action.
        directions: ``(M, A, p)``.
        actions: ``(M,)``.
    """
    tasks = torch.arange(len(means), device=means.device)
    value: Tensor = means[tasks, actions].sum() + beta**0.5 * directions[tasks, actions].sum(0).norm()
    return value


def separable_choice(means: Tensor, directions: Tensor, beta: float) -> Tensor:
    """Each task's best action by ``m + sqrt(beta) |d|``, ``(M,)``, as if it had the whole ball for itself."""
    actions: Tensor = (means + beta**0.5 * directions.norm(dim=2)).argmax(1)
    return actions


def joint_choice(means: Tensor, directions: Tensor, beta: float, sweeps: int = 20) -> Tensor:
    """Actions ``(M,)`` of a large `joint_value`, by coordinate ascent from the separable choice; shapes as there.

    Each task in turn takes its best action given the others' until none changes. All ``A^M`` choices are not looked at, so
    that the largest of all may be missed; exact for one task, and at ``beta = 0``.
    """
    actions = separable_choice(means, directions, beta)
    tasks = torch.arange(len(means), device=means.device)
    total = directions[tasks, actions].sum(0)
    for _ in range(sweeps):
        before = actions.clone()
        for i in range(len(means)):
            others = total - directions[i, actions[i]]
            actions[i] = (means[i] + beta**0.5 * (others + directions[i]).norm(dim=1)).argmax()
            total = others + directions[i, actions[i]]
        if torch.equal(actions, before):
            break
    return actions
