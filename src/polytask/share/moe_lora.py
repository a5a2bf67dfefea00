"""Mixtures of low-rank experts: each token is adapted by those that its router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from polytask.errors import InputError
from polytask.share._linear import weight_of
from polytask.share._low_rank import check_dropout
from polytask.share.insertion import Insertable, insertables
from polytask.share.routed_lora import RoutedLoRAPart, SoftmaxRouter


@insertables.add("moe_lora")
@dataclass(frozen=True)
class MoELoRA(Insertable):
    """``W x + scaling * sum_e g_e(x) B_e A_e x``, with gates ``g`` for each token: the ``k`` largest of a softmax, or all.

    The form of Zadouri et al., *Pushing mixture of experts to the limit* (MoLORA), ICLR 2024, which mixes all experts, and
    of the baselines of Zhao et al., *Each rank could be an expert*, KDD 2026, which choose one or two. ``scaling = alpha /
    r``. While training, the choice of a single expert is relaxed: a softmax with Gumbel noise at a temperature of 0.1.

    Args:
        experts: ``E``; 8 by default.
        rank: ``r`` of each expert; 8 by default.
        top_k: ``k``, whose gates add up to 1; ``None`` takes all; 2 by default.
        alpha: 16 by default.
        dropout: of the input while training.
    """

    name: ClassVar[str] = "moe_lora"
    experts: int = 8
    rank: int = 8
    top_k: int | None = 2
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.experts < 1:
            raise InputError(f"moe_lora: {self.experts} experts of rank {self.rank}, expected at least 1 each")
        if self.top_k is not None and not 1 <= self.top_k <= self.experts:
            raise InputError(f"moe_lora: top_k {self.top_k}, expected from 1 to {self.experts}, the number of experts")
        check_dropout(self.name, self.dropout)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> RoutedLoRAPart:
        router = SoftmaxRouter(weight_of(module).shape[1], self.experts, self.top_k or self.experts)
        return RoutedLoRAPart(module, self.experts, self.rank, router, self.alpha / self.rank, self.dropout)
