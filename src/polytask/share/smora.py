"""SMoRA: each rank of a LoRA is an expert, and each token uses a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from polytask.errors import InputError
from polytask.share._linear import weight_of
from polytask.share._low_rank import check_dropout
from polytask.share.gate import Gates, routing_logits
from polytask.share.insertion import Insertable, insertables
from polytask.share.routed_lora import RoutedLoRAPart

EPSILON = 1e-12


@insertables.add("smora")
@dataclass(frozen=True)
class SMoRA(Insertable):
    """``W x + alpha / k * sum_i g_i(x) B_i A_i x`` over the ``k`` of ``r`` ranks that a token's scores choose.

    Zhao et al., *Each rank could be an expert: single-ranked mixture of experts LoRA for multi-task learning*, KDD 2026.
    Scores are ``s = sigmoid(G x) + b``, in float32; the gates of the ``k`` largest are ``g_i = k s_i / sum_j s_j``, so that
    they are 1 on average. While training, each pass moves the bias ``b`` of every rank that was chosen less than the mean by
    ``balance`` up, of every one chosen more down: no loss is needed, and no gradient reaches it. With ``partition`` ranks to
    an expert this is a mixture of ``rank / partition`` LoRAs, and one dense LoRA where that is all ranks.

    Args:
        rank: ``r``; 64 by default.
        active: ``k`` ranks a token, a multiple of ``partition``; 8 by default.
        partition: ranks of each expert; 1 by default. The experts of several ranks have one bias each, where the authors'
            code has one for each rank, which may tear an expert apart.
        alpha: 16 by default.
        balance: the step of the bias, 1e-5 by default; 0 switches balancing off.
        bias_in_gates: the gates' values contain ``b``, as in the authors' code (default); else it enters the choice alone,
            as Wang et al., *Auxiliary-loss-free load balancing strategy for mixture-of-experts*, 2024, have it.
        dropout: of the input while training.
    """

    name: ClassVar[str] = "smora"
    rank: int = 64
    active: int = 8
    partition: int = 1
    alpha: float = 16.0
    balance: float = 1e-5
    bias_in_gates: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.rank:
            raise InputError(f"smora: {self.active} active ranks, expected from 1 to {self.rank}, the rank")
        if self.partition < 1 or self.rank % self.partition or self.active % self.partition:
            divided = f"{self.rank}, the rank, and of {self.active}, the active ranks"
            raise InputError(f"smora: partition {self.partition}, expected a divisor of {divided}")
        if self.balance < 0:
            raise InputError(f"smora: balance {self.balance}, expected at least 0")
        check_dropout(self.name, self.dropout)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> RoutedLoRAPart:
        experts, active = self.rank // self.partition, self.active // self.partition
        router = SigmoidRouter(weight_of(module).shape[1], experts, active, self.balance, self.bias_in_gates)
        return RoutedLoRAPart(module, experts, self.partition, router, self.alpha / self.active, self.dropout)


class SigmoidRouter(nn.Module):
    """Gates of the ``k`` largest of ``sigmoid(G x) + b``, which add up to ``k``; 0 for the others.

    The bias is a whole number of steps, and kept as that: a single one is below the resolution of half precision. Scores and
    choice are in float32 at least. Under data parallel training the choices of all processes are counted, so that all take
    the same step; they have to make the same passes. What activation checkpointing computes again counts once.

    Args:
        inputs: the width of ``x``.
        experts: ``E``.
        k: how many are chosen.
        balance: the step of the bias.
        bias_in_gates: whether the gates' values contain the bias.
    """

    steps: Tensor

    def __init__(self, inputs: int, experts: int, k: int, balance: float = 1e-5, bias_in_gates: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(inputs, experts, bias=False).weight.detach())
        self.register_buffer("steps", torch.zeros(experts, dtype=torch.int64))
        self.k, self.balance, self.bias_in_gates = k, balance, bias_in_gates

    @property
    def bias(self) -> Tensor:
        """``b (E,)``."""
        return self.balance * self.steps

    def forward(self, x: Tensor) -> Tensor:
        scores = routing_logits(x, self.weight).sigmoid()
        biased = scores + self.bias
        chosen = biased.topk(self.k, -1)
        values = chosen.values if self.bias_in_gates else scores.gather(-1, chosen.indices)
        values = values.clamp(min=EPSILON)  # a large bias can make them negative
        gates = Gates(self.k * values / values.sum(-1, keepdim=True), chosen.indices).dense(len(self.steps))
        if self.training and self.balance:
            torch.ops.polytask.even_out(self.steps, chosen.indices)
        return gates


# An operator, so that compiled code too looks when it runs whether it runs inside a backward pass.
@torch.library.custom_op("polytask::even_out", mutates_args=("steps",), schema="(Tensor(a!) steps, Tensor chosen) -> ()")
def _even_out(steps: Tensor, chosen: Tensor) -> None:
    """Move the experts that were chosen less than the mean a step up, those chosen more a step down."""
    if torch._C._current_graph_task_id() != -1:  # activation checkpointing computes again what has been counted
        return
    chosen = chosen.flatten()
    counts = torch.zeros_like(steps).scatter_add_(0, chosen, torch.ones_like(chosen))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(counts)
    steps += (counts.sum() - len(counts) * counts).sign()


@_even_out.register_fake
def _(steps: Tensor, chosen: Tensor) -> None:
    pass
