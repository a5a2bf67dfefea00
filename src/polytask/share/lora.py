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
from polytask.share._linear import add_to_weight, factory, weight_of
from polytask.share._low_rank import check_dropout, low_rank, low_rank_of_each
from polytask.share._select import single_task
from polytask.share._sharing import TaskModules
from polytask.share.insertion import Insertable, Part, insertables


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
        check_dropout(self.name, self.dropout)

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> LoRAPart:
        outputs, inputs = weight_of(module).shape
        factors = {task: Factors(inputs, outputs, self.rank, *factory(module)) for task in tasks}
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
            return own + self.scaling * low_rank(x, self.of(task).a, self.of(task).b.mT)
        every = [self.of(task) for task in self.tasks]
        a, b = torch.stack([factors.a for factors in every]), torch.stack([factors.b.mT for factors in every])
        return own + self.scaling * low_rank_of_each(x, a, b, self.tasks)

    def of(self, task: str) -> Factors:
        """The factors of one task."""
        return cast(Factors, self.factors[task])

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.factors.parameters_of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        a, b = self.of(self.tasks[0]).a, self.of(self.tasks[0]).b
        for task in tasks:
            self.factors[task] = Factors(a.shape[1], len(b), len(a), a.device, a.dtype)
        self.tasks = (*self.tasks, *tasks)

    def fold(self, module: nn.Module, task: str) -> None:
        add_to_weight(module, self.scaling * (self.of(task).b @ self.of(task).a))
