"""Hard sharing: one representation for all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from polytask.share._sharing import Pathway, Sharing, sharings


@sharings.add("hard")
@dataclass(frozen=True)
class Hard(Sharing):
    """Every head reads the encoder's features as they are (Caruana, *Multitask learning*, Machine Learning 28, 1997)."""

    name: ClassVar[str] = "hard"

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return HardPathway()


class HardPathway(Pathway):
    """Hands the same features to every task."""

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return iter(())
