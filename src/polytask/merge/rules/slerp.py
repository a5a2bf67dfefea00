"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Products, Rule, merge_rules, share
from polytask.merge.rules._arithmetic import weighted_sum


def weights(products: Tensor, t: float) -> tuple[float, float]:
    """What the two models are multiplied by.

    ``sin((1 - t) w) / sin w`` and ``sin(t w) / sin w`` with ``w`` the angle between them; ``1 - t`` and ``t`` where they
    are nearly parallel, ``|cos w| > 0.9995``, or one is 0.

    Args:
        products: inner products of the two, ``(2, 2)``.
        t: from 0, the first, to 1, the second.
    """
    size = math.sqrt(float(products[0, 0]) * float(products[1, 1]))
    cosine = float(products[0, 1]) / size if size > 0 else 1.0
    if abs(cosine) > 0.9995:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@merge_rules.add("slerp")
@dataclass(frozen=True)
class SLERP(Rule):
    """Two models, mixed along the arc between them, tensor by tensor; the ends keep their lengths.

    Shoemake, *Animating rotation with quaternion curves*, SIGGRAPH 1985, on flattened tensors as merging tools do it: the
    angle is that between the two, which are not brought to one length.

    Args:
        t: from 0, the first model, to 1, the second.
    """

    t: float = 0.5

    vectors = False
    needs_base = False
    models = 2

    def __post_init__(self) -> None:
        share(self.t, "t")

    def statistics(self, count: int) -> Sequence[Products]:
        return (Products("products"),)

    def merge(self, chunk: Chunk) -> Tensor:
        return weighted_sum(chunk.rows, weights(chunk.found["products"], self.t))
