"""Weight averaging."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, per_model
from polytask.merge.rules._arithmetic import weighted_sum


@merge_rules.add("average")
@dataclass(frozen=True)
class Average(Rule):
    """The weighted mean of the models, ``sum_k w_k theta_k / sum_k w_k``; no base is needed.

    Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time*, ICML 2022.

    Args:
        weight: ``w``, of any size.
        normalize: whether to divide by the sum of the weights.
    """

    weight: PerModel = 1.0
    normalize: bool = True

    vectors = False
    needs_base = False

    def weights(self, count: int) -> list[float]:
        """What each of ``count`` models is taken times."""
        weights = per_model(self.weight, count, "weight")
        total = sum(weights)
        if self.normalize and total == 0:
            raise InputError(f"the weights {weights} add up to 0, and cannot be normalised")
        return [w / total for w in weights] if self.normalize else weights

    def merge(self, chunk: Chunk) -> Tensor:
        return weighted_sum(chunk.rows, self.weights(len(chunk.rows)))
