"""Linear heads of many tasks on the same features, each with a value for every action."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError


class HeadBank(nn.Module):
    """``q_i(x, a) = w_{i,a} x + c_{i,a}`` for ``m`` tasks ``i`` and ``A`` actions ``a``: all of them in one linear layer.

    Values of the actions that were taken, and means over actions, are computed from the weights that they need: those of the
    other actions cost nothing.

    Args:
        width: of the features.
        tasks: ``m``.
        actions: ``A``.

    >>> bank = HeadBank(8, tasks=100, actions=18)
    >>> features = torch.randn(4, 8)
    >>> bank(features).shape, bank.taken(features, torch.tensor([0, 3, 3, 17])).shape, bank.mean(features).shape
    (torch.Size([4, 100, 18]), torch.Size([4, 100]), torch.Size([4, 100]))
    """

    def __init__(self, width: int, tasks: int, actions: int) -> None:
        super().__init__()
        if min(width, tasks, actions) < 1:
            raise InputError(f"heads of width {width} for {tasks} tasks and {actions} actions, expected at least 1 of each")
        self.width, self.tasks, self.actions = width, tasks, actions
        self.linear = nn.Linear(width, actions * tasks)  # rows by action, so that those of an action are one block
        bound = math.sqrt(6 / (width + actions))  # Xavier's, of each task's head alone
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)

    @property
    def weight(self) -> Tensor:
        """``(A, m, width)``."""
        return self.linear.weight.view(self.actions, self.tasks, self.width)

    @property
    def bias(self) -> Tensor:
        """``(A, m)``."""
        return self.linear.bias.view(self.actions, self.tasks)

    def forward(self, features: Tensor) -> Tensor:
        """``(N, m, A)``: the values of all actions, of features ``(N, width)``."""
        values: Tensor = self.linear(features)
        return values.view(-1, self.actions, self.tasks).mT

    def taken(self, features: Tensor, action: Tensor) -> Tensor:
        """``(N, m)``: the values of one action for each example, ``action`` ``(N,)`` int64.

        Raises:
            InputError: an action that the heads do not have.
        """
        if len(action) and not 0 <= int(action.min()) <= int(action.max()) < self.actions:
            found = f"{int(action.min())} to {int(action.max())}"
            raise InputError(f"actions {found}, expected 0 to {self.actions - 1}")
        order = action.argsort()
        counts = torch.bincount(action, minlength=self.actions).tolist()
        blocks = zip(torch.split(features.index_select(0, order), counts), self.weight, self.bias, strict=True)
        values = torch.cat([F.linear(rows, weight, bias) for rows, weight, bias in blocks])
        return values.index_select(0, order.argsort())

    def mean(self, features: Tensor) -> Tensor:
        """``(N, m)``: the means over all actions, by the mean weights."""
        return F.linear(features, self.weight.mean(0), self.bias.mean(0))
