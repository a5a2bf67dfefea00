"""Gradient sign dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import JacobianAggregator, balancers
from polytask.errors import InputError, suggest


def aggregate(jacobian: Tensor, draws: Tensor, leak: Tensor) -> Tensor:
    """The sum of the entries of the sign that was drawn in each column, and a share ``leak`` of the others, ``(P,)``.

    Args:
        jacobian: task gradients, ``(K, P)``.
        draws: uniform random numbers in [0, 1), ``(P,)``.
        leak: ``(K,)``, in [0, 1].
    """
    leak = leak.to(jacobian)
    sums = torch.stack([torch.ones_like(leak), 1 - leak])  # of what there is, and of what may be dropped
    all_positive, positive = sums @ jacobian.clamp(min=0)
    all_negative, negative = sums @ jacobian.clamp(max=0)
    purity = all_positive / (all_positive - all_negative).clamp(min=torch.finfo(jacobian.dtype).tiny)
    return leak @ jacobian + torch.where(draws < purity, positive, negative)


@balancers.add("graddrop")
class GradDrop(JacobianAggregator):
    """In each coordinate one sign is drawn, and only gradients of that sign are added up.

    The positive sign has the probability ``P = (1 + sum_k g_k / sum_k |g_k|) / 2``. Chen, Ngiam, Huang, Luong, Kretzschmar,
    Chai and Anguelov, *Just pick a sign: optimizing deep multitask models with gradient sign dropout*, NeurIPS 2020,
    Algorithm 1 with the identity for ``f``. They drop gradients on activations, with signs relative to those; here it is
    gradients on the shared parameters, where the other balancers work.

    Args:
        leak: for each task, the share of its gradient that is never dropped, in [0, 1]; a task that is not named has 0.
    """

    scale = "sum"

    def __init__(self, leak: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.leak = dict(leak or {})
        for name, value in self.leak.items():
            if not 0 <= value <= 1:
                raise InputError(f"leak {value} for task {name!r}: expected a number from 0 to 1")

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in self.leak:
            if name not in tasks:
                raise InputError(f"leak names an unknown task {name!r}: {suggest(name, tasks)}")

    def aggregate(self, jacobian: Tensor, losses: Mapping[str, float], block: int) -> Tensor:
        leak = torch.tensor([self.leak.get(name, 0.0) for name in losses])
        return aggregate(jacobian, torch.rand_like(jacobian[0]), leak)
