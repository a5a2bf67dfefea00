"""Fast adaptive multi-task optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import Learned, PerTask, Places, positive, positive_setting
from polytask.errors import InputError


def slopes(logits: Tensor, gains: Tensor) -> Tensor:
    """What the logits descend along: the softmax's Jacobian times ``gains``, ``z_k (g_k - z^T g)``, ``(K,)``.

    Args:
        logits: ``(K,)``, with softmax ``z``.
        gains: by how much the logarithm of each loss has fallen, ``(K,)``.
    """
    z = logits.softmax(0)
    return z * (gains - z @ gains)


@balancers.add("famo")
class FAMO(PerTask, LossWeighting):
    """Learned weights under which the logarithms of all losses fall at about the same rate, in one backward pass.

    The step follows the gradient of ``c sum_k z_k log L_k`` with ``z`` the softmax of learned logits and ``c`` the constant
    ``1 / sum_k (z_k / L_k)``: a convex combination of the task gradients. The logits descend along the softmax's Jacobian
    times ``log L_k(before) - log L_k(after)``, so that a task whose loss falls fast loses weight. Liu, Feng, Stone and Liu,
    *FAMO: fast adaptive multitask optimization*, NeurIPS 2023.

    In the paper's algorithm *after* is the loss of the same batch once the optimizer has stepped, for one more forward pass.
    Here it is the loss of the next batch, which costs nothing, needs no batch to be kept for a run that is resumed, and is
    the same in expectation but for the noise between batches. So each accumulated batch is a step for the logits. Losses
    have to be positive; one that is exactly 0 is left out.

    Args:
        lr: the learning rate of the logits, with Adam.
        decay: their weight decay.
    """

    scale = "mean"
    before: Tensor

    def __init__(self, lr: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__()
        positive_setting(lr=lr)
        if not 0 <= decay < float("inf"):
            raise InputError(f"decay {decay}: expected a finite number >= 0")
        self.lr = lr
        self.decay = decay

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.logits = Learned(torch.zeros(len(tasks)), self.lr, self.decay)
        self.register_buffer("before", torch.full((len(tasks),), torch.nan))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        every = torch.stack(tuple(losses.values()))
        left, values = positive(tuple(losses), every, "famo")
        self._learn(*self.agree(losses))
        if not left:
            return every.mean()
        z = self.logits.value[self.places(left)].softmax(0).to(values)
        # The smallest loss is taken out of c, so that neither part overflows.
        held = values.detach()
        least = held.min()
        c = least / (z @ (least / held))
        return c * (z @ values.log())

    def _learn(self, at: Places, losses: Tensor) -> None:
        """Descend by how the losses have changed since each task was last seen, and remember them."""
        now = losses.clamp(min=1e-30).log()
        gains = self.before[at] - now
        gradient = slopes(self.logits.value[at], gains.nan_to_num())  # 0 for a task that is new
        known = ~gains.isnan()
        self.before[at] = now
        if not bool(known.all()):
            at, gradient = torch.arange(len(self.before), device=now.device)[at][known].tolist(), gradient[known]
        if len(gradient):
            self.logits.descend(at, gradient)
