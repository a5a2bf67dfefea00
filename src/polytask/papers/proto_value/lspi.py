"""Linear values of actions by least squares, for small data: policy iteration that solves each policy's values exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.data.control import Transition
from polytask.errors import InputError


class LinearValues:
    """``q(x, a) = w_a (x, 1)``: features ``(N, width)`` to values ``(N, A)``; ``weight`` is ``(A, width + 1)`` float64."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, features: Tensor) -> Tensor:
        return with_one(features) @ self.weight.T


def lspi(
    batch: Transition, actions: int, gamma: float = 0.99, ridge: float = 1e-3, iterations: int = 20
) -> tuple[LinearValues, int]:
    """Least-squares policy iteration (Lagoudakis and Parr, JMLR 2003) on transitions whose observations are features.

    For the greedy policy of the last values, ``w`` solves ``sum phi(x, a) (phi(x, a) - discount phi(x', pi(x')))^T w = sum
    phi(x, a) r``, the first policy being that of no values. Ends when no action changes.

    Args:
        batch: of any policy.
        actions: ``A``.
        gamma: the discount.
        ridge: what is added on the diagonal, of the features' mean square times the number of transitions.
        iterations: at most.

    Returns:
        The values, and the iterations that were made.
    """
    if ridge < 0 or iterations < 1:
        raise InputError(f"ridge {ridge}, iterations {iterations}: expected at least 0 and 1")
    x, ahead = with_one(batch.observation), with_one(batch.next) * batch.discount(gamma).double()[:, None]
    width, own = x.shape[1], [batch.action == a for a in range(actions)]
    gram: Tensor = torch.block_diag(*(x[rows].T @ x[rows] for rows in own))  # type: ignore[no-untyped-call]
    gram += ridge * len(x) * float(x.square().mean()) * torch.eye(len(gram), dtype=torch.float64)
    paid = torch.cat([x[rows].T @ batch.reward[rows].double() for rows in own])
    values = LinearValues(torch.zeros(actions, width, dtype=torch.float64))
    policy = values(batch.next).argmax(1)
    for made in range(1, iterations + 1):  # noqa: B007
        following = torch.zeros_like(gram)
        for a, rows in enumerate(own):
            for b in range(actions):
                both = rows & (policy == b)
                following[a * width : (a + 1) * width, b * width : (b + 1) * width] = x[both].T @ ahead[both]
        values = LinearValues(torch.linalg.solve(gram - following, paid).view(actions, width))
        changed = values(batch.next).argmax(1)
        if torch.equal(changed, policy):
            break
        policy = changed
    return values, made


def with_one(features: Tensor) -> Tensor:
    """``(N, width + 1)`` float64: the features, flat, and a one."""
    flat = features.flatten(1).double()
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
