"""A bank of low-rank factors beside a linear layer, of which a router chooses for each token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.share._linear import factory, weight_of
from polytask.share.gate import routing_logits, top_gates
from polytask.share.insertion import Part

TEMPERATURE = 0.1


class RoutedLoRAPart(Part):
    """``W x + scaling * sum_e g_e(x) B_e A_e x`` for inputs ``(..., in)``; the router gives ``g(x) (..., E)``.

    All of the small products are computed, and each is weighed by its gate: two large products instead of many small ones.
    Factors are in float32 where the layer is in half precision, and products are taken in the input's dtype. Every parameter
    is shared: no task has any of its own, and no task scope is needed, unless the router asks for one.

    Args:
        layer: the linear layer.
        experts: ``E``, the number of ``B_e (r, out)``, which begin at 0.
        rank: ``r``.
        router: any module from ``(..., in)`` to ``(..., E)``.
        scaling: of what is added.
        dropout: of the input of router and ``A`` while training.
        one_a: all experts have the same ``A``.
    """

    by_task = False

    def __init__(
        self,
        layer: nn.Module,
        experts: int,
        rank: int,
        router: nn.Module,
        scaling: float,
        dropout: float = 0.0,
        one_a: bool = False,
    ) -> None:
        super().__init__()
        outputs, inputs = weight_of(layer).shape
        device, dtype = factory(layer)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a = nn.Parameter(torch.empty(1 if one_a else experts, rank, inputs, **like))
        self.b = nn.Parameter(torch.zeros(experts, rank, outputs, **like))
        nn.init.kaiming_uniform_(self.a.data.flatten(0, 1), a=math.sqrt(5))
        self.router = router.to(**like)
        self.scaling, self.dropout = scaling, dropout

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        own: Tensor = run(x)
        x = F.dropout(x, self.dropout, self.training and self.dropout > 0)
        hidden = F.linear(x, self.a.flatten(0, 1).to(x.dtype))
        gates: Tensor = self.router(x)
        weighed = hidden.view(*hidden.shape[:-1], *self.a.shape[:2]) * gates.to(hidden.dtype)[..., None]
        return own + self.scaling * (weighed.flatten(-2) @ self.b.flatten(0, 1).to(hidden.dtype))

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return iter(())

    def add_tasks(self, tasks: Sequence[str]) -> None:
        """Nothing is a task's own."""


class SoftmaxRouter(nn.Module):
    """The ``k`` largest of ``softmax(G x)``, brought to a sum of 1; 0 for the others.

    The gate of a single expert would then be 1, and no gradient would reach ``G``. While training it is therefore relaxed: a
    softmax of all logits with Gumbel noise, at a temperature of 0.1, as in the code of Zhao et al. (KDD 2026).
    """

    def __init__(self, inputs: int, experts: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(inputs, experts, bias=False).weight.detach())
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        logits = routing_logits(x, self.weight)
        if self.k == 1 and self.training:
            return F.gumbel_softmax(logits, tau=TEMPERATURE)
        return top_gates(logits, self.k, renormalise=True).dense(len(self.weight))
