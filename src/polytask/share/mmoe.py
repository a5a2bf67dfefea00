"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share._experts import Experts, mix
from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings


@sharings.add("mmoe")
@dataclass(frozen=True)
class MMoE(Sharing):
    """Experts that all tasks share, mixed for each task by a gate of its own.

    ``f_k(x) = sum_e softmax(W_k x)_e E_e(x)`` (Ma et al., *Modeling task relationships in multi-task learning with
    multi-gate mixture-of-experts*, KDD 2018, Eqs. 5 to 7), on the encoder's features ``x``. An expert is one hidden layer
    and one output layer with ReLU after each, as wide as the features unless ``hidden`` says otherwise.

    Args:
        experts: the number of experts; 8 as in the paper.
        hidden: the width of each expert's hidden layer; ``None`` (default) takes the features' width.
    """

    name: ClassVar[str] = "mmoe"
    experts: int = 8
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise InputError(f"mmoe: {self.experts} experts, expected at least 1")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return MMoEPathway(width, self.hidden or width, self.experts, tasks)


class MMoEPathway(Pathway):
    """A bank of experts, and a linear gate for each task."""

    def __init__(self, width: int, hidden: int, experts: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.experts = Experts(experts, width, hidden)
        self.gates = TaskModules({task: nn.Linear(width, experts) for task in tasks})

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        rows = features.reshape(-1, features.shape[-1])
        outputs = self.experts(rows)
        return {task: mix(self.gates[task](rows).softmax(1), outputs).reshape(features.shape) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.gates[task].parameters()
