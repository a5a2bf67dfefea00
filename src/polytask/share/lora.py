"""Low-rank adapters, one for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.scope import task_index
from polytask.share._select import one_hot, single_task
from polytask.share._sharing import TaskModules
from polytask.share.insertion import Insertable, Part, insertables

WIDEST = 256
"""Ranks of all tasks together up to which a mixed batch is multiplied with all factors, and what is not an example's own set
to 0: one large product is faster than many small ones."""


@insertables.add("lora")
@dataclass(frozen=True)
class LoRA(Insertable):
    """``W x + scaling * B_t A_t x`` with factors of rank ``r`` for each task ``t``, beside a layer's weight ``W``.

    Hu et al., *LoRA: low-rank adaptation of large language models*, ICLR 2022. ``A_t (r, in)`` starts at random (Kaiming
    uniform, as in PEFT) and ``B_t (out, r)`` at 0, so that nothing changes at first. Factors are in float32 where the layer
    is in half precision, and their product is taken in the input's dtype.

    Args:
        rank: ``r``; 8 by default.
        alpha: ``scaling = alpha / r``, or ``alpha / sqrt(r)`` with ``rslora``; 16 by default.
        dropout: of the input of ``A`` while training.
        rslora: Kalajdzievski, *A rank stabilization scaling factor for fine-tuning with LoRA*, 2023.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora: rank {self.rank}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora: dropout {self.dropout}, expected from 0 to below 1")

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> LoRAPart:
        assert isinstance(module, nn.Linear)
        weight = module.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        size = (module.in_features, module.out_features, self.rank)
        factors = {task: Factors(*size, weight.device, dtype) for task in tasks}
        return LoRAPart(factors, self.scaling, self.dropout)


class Factors(nn.Module):
    """``A (r, in)`` and ``B (out, r)`` of one task."""

    def __init__(self, inputs: int, outputs: int, rank: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))


class LoRAPart(Part):
    """The factors of all tasks beside one linear layer; inputs ``(N, ..., in)``, examples along the first dimension."""

    def __init__(self, factors: dict[str, Factors], scaling: float, dropout: float) -> None:
        super().__init__()
        self.tasks = tuple(factors)
        self.factors = TaskModules(dict(factors))
        self.scaling, self.dropout = scaling, dropout

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        own: Tensor = run(x)
        x = F.dropout(x, self.dropout, self.training and self.dropout > 0)
        if (task := single_task(self.tasks)) is not None:
            factors = self.of(task)
            return own + self.scaling * F.linear(F.linear(x, factors.a.to(x.dtype)), factors.b.to(x.dtype))
        every = [self.of(task) for task in self.tasks]
        rank = len(every[0].a)
        if rank * len(every) <= WIDEST:
            a, b = torch.cat([f.a for f in every]).to(x.dtype), torch.cat([f.b for f in every], 1).to(x.dtype)
            mine = one_hot(x, self.tasks).repeat_interleave(rank, 1)
            hidden = F.linear(x, a) * mine.view(len(x), *[1] * (x.dim() - 2), -1)
            return own + self.scaling * F.linear(hidden, b)
        index = task_index(x, self.tasks)
        a, b = (torch.stack([getattr(f, part) for f in every])[index].to(x.dtype) for part in "ab")
        rows = x.reshape(len(x), -1, x.shape[-1])
        return own + self.scaling * (rows @ a.mT @ b.mT).view_as(own)

    def of(self, task: str) -> Factors:
        """The factors of one task."""
        return cast(Factors, self.factors[task])

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.factors.parameters_of(task)

    def fold(self, module: nn.Module, task: str) -> None:
        factors, weight = self.of(task), module.weight
        assert isinstance(weight, Tensor)
        delta = self.scaling * (factors.b @ factors.a)
        weight.copy_((weight.to(delta.dtype) + delta).to(weight.dtype))
