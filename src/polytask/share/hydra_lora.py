"""HydraLoRA: one factor that all share, and several heads behind it."""

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


@insertables.add("hydra_lora")
@dataclass(frozen=True)
class HydraLoRA(Insertable):
    """``W x + scaling * sum_e g_e(x) B_e A x``: one ``A`` for what is common, several ``B_e``, and gates for each token.

    Tian et al., *HydraLoRA: an asymmetric LoRA architecture for efficient fine-tuning*, NeurIPS 2024. The gates are a
    softmax over all heads.

    Args:
        heads: the number of ``B_e``; 3 by default.
        rank: 8 by default.
        alpha: ``scaling = alpha / rank``; 16 by default.
        dropout: of the input while training.
    """

    name: ClassVar[str] = "hydra_lora"
    heads: int = 3
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.heads < 1:
            raise InputError(f"hydra_lora: {self.heads} heads of rank {self.rank}, expected at least 1 each")
        check_dropout(self.name, self.dropout)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> RoutedLoRAPart:
        router = SoftmaxRouter(weight_of(module).shape[1], self.heads, self.heads)
        return RoutedLoRAPart(module, self.heads, self.rank, router, self.alpha / self.rank, self.dropout, one_a=True)
