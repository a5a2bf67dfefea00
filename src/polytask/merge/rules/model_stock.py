"""Model stock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Products, Rule, merge_rules
from polytask.merge.rules._arithmetic import weighted_sum


def ratio(products: Tensor) -> float:
    """How far to go from the base to the average: ``K c / (1 + (K - 1) c)``, from 0 to 1.

    ``c`` is the mean cosine between task vectors, and 0 where it is below.

    Args:
        products: inner products of the task vectors, ``(K, K)``, float64.
    """
    count = len(products)
    if count == 1:
        return 1.0
    lengths = products.diagonal().clamp(min=0).sqrt()
    cosines = products / (lengths[:, None] * lengths).clamp(min=1e-300)
    mean = max(float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))), 0.0)
    return count * mean / (1 + (count - 1) * mean)


@merge_rules.add("model_stock")
@dataclass(frozen=True)
class ModelStock(Rule):
    """Between the base and the average of the models, by how well the task vectors agree, tensor by tensor.

    ``theta_0 + t mean_k tau_k`` with ``t = K c / (1 + (K - 1) c)`` and ``c`` the mean cosine between the task vectors. Jang,
    Yun and Han, *Model stock: all we need is just a few fine-tuned models*, ECCV 2024.
    """

    def statistics(self, count: int) -> Sequence[Products]:
        return (Products("products"),)

    def merge(self, chunk: Chunk) -> Tensor:
        count = len(chunk.rows)
        return chunk.plus_base(weighted_sum(chunk.rows, [ratio(chunk.found["products"]) / count] * count))
