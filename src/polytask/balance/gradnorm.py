"""Gradient normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balance._balancer import balancers
from polytask.balance._per_task import Learned, PerTask, Places, positive_setting
from polytask.balance.engine.passes import Backward
from polytask.errors import InputError


def slopes(weights: Tensor, norms: Tensor, ratios: Tensor, alpha: float) -> Tensor:
    """The derivative by the weights of ``sum_k |w_k n_k - m r_k^alpha|``, ``(K,)``, where the target is held constant.

    Args:
        weights: ``w``, ``(K,)``.
        norms: ``n``, the norms of the gradients of the losses, ``(K,)``; ``m`` is the mean of ``w_k n_k``.
        ratios: each loss over its first value, ``(K,)``; ``r`` are these over their mean.
        alpha: how strongly a task that lags is to be sped up.
    """
    weighted = weights * norms
    target = weighted.mean() * (ratios / ratios.mean().clamp(min=1e-30)) ** alpha
    return (weighted - target).sign() * norms


@balancers.add("gradnorm")
class GradNorm(PerTask):
    """Learned weights that bring the tasks' gradients to the norms at which the tasks train at similar rates.

    The step follows the gradient of ``sum_k w_k L_k``. After it the weights descend on ``sum_k |G_k - m r_k^alpha|``, with
    ``G_k`` the norm of the gradient of ``w_k L_k``, ``m`` their mean, and ``r_k`` the loss over its first value, over the
    mean of these ratios: a task that has come less far than others is to have a larger gradient. Chen, Badrinarayanan, Lee
    and Rabinovich, *GradNorm: gradient normalization for adaptive loss balancing in deep multitask networks*, ICML 2018.
    The weights start at 1 and keep a mean of 1 over all tasks.

    As in the paper, norms are taken on the last shared layer alone, which needs only the top of each backward pass: the last
    shared parameter of two dimensions or more. Weights are kept above 1e-6. Each accumulated batch is a step for them.

    Args:
        alpha: 0 for gradients of one norm; the greater, the more those that lag are sped up.
        lr: the learning rate of the weights, with Adam.
    """

    first: Tensor

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha {alpha}: expected a finite number >= 0")
        positive_setting(lr=lr)
        self.alpha = alpha
        self.lr = lr

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.weights = Learned(torch.ones(len(tasks)), self.lr)
        self.register_buffer("first", torch.zeros(len(tasks)))

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        values = torch.stack(tuple(losses.values()))
        weights = self.weights.value[self.places(losses)].to(values)
        norms = self._norms(losses, shared)
        backward((weights * values).sum())
        at, agreed = self.agree(losses)
        self._learn(at, agreed, self.agree(norms)[1])

    def _norms(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        trained = [p for p in shared if p.requires_grad]
        layer = ([p for p in trained if p.ndim > 1] or trained)[-1:]
        norms = {}
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True) if layer else ()
            norms[name] = torch.zeros_like(loss) if None in found or not found else found[0].norm()
        return norms

    def _learn(self, at: Places, losses: Tensor, norms: Tensor) -> None:
        first = torch.where(self.first[at] == 0, losses, self.first[at])
        self.first[at] = first
        ratios = torch.where(first == 0, torch.ones_like(losses), losses / first).clamp(0, 1e6)
        self.weights.descend(at, slopes(self.weights.value[at], norms, ratios, self.alpha))
        value = self.weights.value.clamp_(min=1e-6)
        value *= len(value) / value.sum()
