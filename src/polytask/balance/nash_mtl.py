"""Multi-task learning as a bargaining game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance.solvers import Array, cosines, fair
from polytask.errors import InputError


def weights(gramian: Tensor, exponents: Array | None = None) -> Tensor:
    """The ``w > 0`` with ``G w = p / w``, entry by entry, ``(K,)``; 0 for a gradient that vanishes.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        exponents: ``p > 0``, ``(K,)``; all 1 by default.
    """
    norms, matrix = cosines(gramian)
    exponents = np.ones(len(norms)) if exponents is None else exponents
    live = norms > 0
    w = np.zeros_like(norms)
    w[live] = fair(matrix[np.ix_(live, live)], exponents[live], 1.0) / norms[live] if live.any() else 0
    return torch.from_numpy(w)


@balancers.add("nash")
class NashMTL(PreferringWeighting):
    """The Nash bargaining solution: the step in a ball that maximises ``prod_k (g_k^T d)^p_k``.

    It is ``d = sum_k w_k g_k`` with ``G w = p / w``, whatever the scale of each loss. Navon, Shamsian, Achituve, Maron,
    Kawaguchi, Chechik and Fetaya, *Multi-task learning as a bargaining game*, ICML 2022, where all exponents are 1, and the
    equation is solved roughly by a sequence of convex programs; here exactly. As in the paper's code the weights are found
    anew every ``update_every`` steps, and the step on the shared parameters, whose norm would be the root of ``sum_k p_k``,
    is cut at ``max_norm``. Where no step helps all tasks there is no solution, and the step all but vanishes. One task alone
    has weight 1.

    Args:
        preference: the exponent ``p_k > 0`` of each task; a task that is not named has 1.
        update_every: for how many steps weights serve; a task without weights yet has 1.
        max_norm: the greatest norm of the step on the shared parameters; 0 for any.
    """

    scale = "own"
    found: Tensor
    turn: Tensor

    def __init__(self, preference: Mapping[str, float] | None = None, update_every: int = 1, max_norm: float = 1.0) -> None:
        super().__init__(preference)
        if update_every < 1:
            raise InputError(f"update_every {update_every}: expected 1 or more")
        if not 0 <= max_norm < float("inf"):
            raise InputError(f"max_norm {max_norm}: expected a finite number >= 0")
        self.update_every = update_every
        self.max_norm = max_norm

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks and self.update_every > 1:
            raise InputError("nash keeps a weight for each task: give the model an attribute 'tasks' with their names")
        self.register_buffer("found", torch.ones(len(tasks), dtype=torch.float64))
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        if len(losses) == 1:
            return torch.ones(1, dtype=gramian.dtype)
        w = self._weights(gramian, losses)
        norm = max(float(w @ gramian @ w), 0.0) ** 0.5
        return w * (self.max_norm / norm) if norm > self.max_norm > 0 else w

    def _weights(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        if self.update_every == 1:
            return weights(gramian, self.preferences(losses))
        at = [self.tasks.index(name) for name in losses]
        if int(self.turn) % self.update_every == 0:
            self.found[at] = weights(gramian, self.preferences(losses)).to(self.found)
        self.turn += 1
        return self.found[at].to(gramian)
