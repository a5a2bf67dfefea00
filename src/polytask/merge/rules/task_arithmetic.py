"""Task arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, per_model
from polytask.merge.rules._arithmetic import weighted_sum


@merge_rules.add("task_arithmetic")
@dataclass(frozen=True)
class TaskArithmetic(Rule):
    """The base plus the scaled sum of task vectors: ``theta_0 + s sum_k w_k (theta_k - theta_0)``.

    Ilharco et al., *Editing models with task arithmetic*, ICLR 2023. A weight below 0 makes the model forget a task; with
    ``s = 1 / K`` it is the average.

    Args:
        scale: ``s``; 0.3 is the paper's for eight vision tasks, where it is to be chosen on validation data.
        weight: ``w``.
    """

    scale: float = 0.3
    weight: PerModel = 1.0

    def merge(self, chunk: Chunk) -> Tensor:
        return chunk.plus_base(weighted_sum(chunk.rows, per_model(self.weight, len(chunk.rows), "weight")), self.scale)
