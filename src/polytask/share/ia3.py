"""(IA)^3: a vector for each task that scales activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share._linear import factory, weight_of
from polytask.share.insertion import Insertable, Part, insertables
from polytask.share.task_parameters import TaskParameters


@insertables.add("ia3")
@dataclass(frozen=True)
class IA3(Insertable):
    """``l_t * (W x)``: what a linear layer gives, or what it takes, is scaled by a vector ``l_t`` of the task, at first 1.

    Liu et al., *Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning*, NeurIPS 2022.
    There keys and values are scaled, and what goes into the second layer of each feed-forward network: insert one ``IA3()``
    into the layers of the former, and one ``IA3(on="input")``, under another name, into those of the latter.

    Args:
        on: ``"output"`` (default) or ``"input"``.
    """

    name: ClassVar[str] = "ia3"
    on: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        if self.on not in ("output", "input"):
            raise InputError(f"ia3: on {self.on!r}, expected 'output' or 'input'")

    def build(self, module: nn.Module, tasks: Sequence[str]) -> IA3Part:
        width = weight_of(module).shape[0 if self.on == "output" else 1]
        device, dtype = factory(module)
        start = torch.ones(width, device=device, dtype=dtype)
        return IA3Part(TaskParameters(dict.fromkeys(tasks, start)), self.on)


class IA3Part(Part):
    """The vectors of all tasks at one linear layer; inputs ``(N, ..., in)``, examples along the first dimension."""

    def __init__(self, scales: TaskParameters, on: Literal["output", "input"]) -> None:
        super().__init__()
        self.scales, self.on = scales, on

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        if self.on == "input":
            x = x * self.scales(x)
        output: Tensor = run(x)
        return output * self.scales(output) if self.on == "output" else output

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.scales.of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        start = torch.ones_like(next(self.scales.parameters()))
        self.scales.add(dict.fromkeys(tasks, start))

    def fold(self, module: nn.Module, task: str) -> None:
        weight = weight_of(module)
        scale = self.scales[task].to(weight.dtype)
        if self.on == "input":
            weight.mul_(scale)
            return
        weight.mul_(scale[:, None])
        if isinstance(module.bias, Tensor):
            module.bias.mul_(scale)
