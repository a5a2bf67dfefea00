"""Where everything is known exactly: walks on graphs and in four rooms, and the successor representation's subspaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.control import Transition

ROOMS = """
#############
#     #     #
#     #     #
#           #
#     #     #
#     #     #
## ####     #
#     ### ###
#     #     #
#     #     #
#           #
#     #     #
#############
"""
"""The four rooms of Sutton, Precup and Singh, *Between MDPs and semi-MDPs*, 1999: 104 cells."""


class Walk(NamedTuple):
    """A world of ``S`` states in which an action leads to a known state.

    Attributes:
        following: ``(S, A)`` int64, where each action leads.
        cells: ``(S, 2)`` int64, row and column of each state on a map; ``None`` where there is no map.
    """

    following: Tensor
    cells: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """``(S, S)`` float64: the transitions of the uniform random policy."""
        states, actions = self.following.shape
        matrix = torch.zeros(states, states, dtype=torch.float64)
        return matrix.scatter_add_(1, self.following, torch.full((states, actions), 1 / actions, dtype=torch.float64))

    def transitions(self) -> Transition:
        """Every state with every action, once; observations are numbers of states, and nothing is ever done."""
        states, actions = self.following.shape
        count = states * actions
        return Transition(
            torch.arange(states).repeat_interleave(actions),
            torch.arange(actions).repeat(states),
            torch.zeros(count),
            self.following.flatten(),
            torch.zeros(count, dtype=torch.bool),
            torch.ones(count, dtype=torch.int64),
        )


def rooms(plan: str = ROOMS) -> Walk:
    """A map as a world: cells that are no wall (``#``); up, down, left and right, and where a wall is nothing happens."""
    lines = plan.strip().splitlines()
    cells = [(r, c) for r, line in enumerate(lines) for c, sign in enumerate(line) if sign != "#"]
    number = {cell: k for k, cell in enumerate(cells)}
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    following = [[number.get((r + dr, c + dc), k) for dr, dc in moves] for k, (r, c) in enumerate(cells)]
    return Walk(torch.tensor(following), torch.tensor(cells))


def successor(matrix: Tensor, gamma: float) -> Tensor:
    """``(I - gamma P)^-1`` of ``(S, S)`` transitions: how often, discounted, each state is met from each state."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    found: Tensor = torch.linalg.solve(eye - gamma * matrix, eye)
    return found


def leading(matrix: Tensor, count: int) -> Tensor:
    """``(S, count)``: the left singular vectors with the largest singular values."""
    vectors: Tensor = torch.linalg.svd(matrix).U
    return vectors[:, :count]


def subspace_error(features: Tensor, basis: Tensor) -> float:
    """How much of an orthonormal ``basis`` ``(S, d)`` the span of ``features`` ``(S, d)`` misses.

    The mean of the squared sines of the principal angles: 0 for the same span, 1 for one at right angles.

    >>> eye = torch.eye(4)
    >>> subspace_error(eye[:, :2] * 3, eye[:, :2]), subspace_error(eye[:, 1:3], eye[:, :2])
    (0.0, 0.5)
    """
    spanned = torch.linalg.qr(features.double()).Q
    return max(0.0, 1 - float((spanned.T @ basis.double()).square().sum()) / basis.shape[1])
