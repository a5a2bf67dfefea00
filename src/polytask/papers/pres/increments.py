"""How fast each node's state moves: running moments of its increments."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import NodeTable


class Increments(NodeTable):
    """For each of ``N`` nodes a mixture of Gaussians over the increment of its state in a unit of time, with a diagonal
    covariance: from the number ``n`` of what was observed of a component, its sum and its sum of squares, ``mean = sum / n``
    and ``variance = squares / n - mean^2``; a component's weight is its share of the observations.

    Args:
        nodes: ``N``.
        width: of a state.
        components: of the mixture.
    """

    def __init__(self, nodes: int, width: int, components: int = 2) -> None:
        if components < 1:
            raise InputError(f"a mixture of {components} components, expected at least 1")
        moment = ((components, width), torch.float32)
        super().__init__(nodes, count=((components,), torch.float32), total=moment, squares=moment)
        self.components = components
        self.count: Tensor
        self.total: Tensor
        self.squares: Tensor

    def add(self, nodes: Tensor, observed: Tensor, component: Tensor) -> None:
        """Increments ``(M, width)`` in a unit of time were observed of ``nodes`` ``(M,)``, distinct, in these components."""
        self.count[nodes, component] += 1
        self.total[nodes, component] += observed
        self.squares[nodes, component] += observed.square()

    def moments(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The components' means and variances, each ``(M, components, width)``; 0 of what was never observed."""
        count = self.count[nodes].clamp(min=1)[..., None]
        mean = self.total[nodes] / count
        return mean, (self.squares[nodes] / count - mean.square()).clamp(min=0)

    def mean(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture's mean ``(M, width)``, and whether anything was observed of the node, ``(M,)`` bool."""
        count = self.count[nodes].sum(1)
        return self.total[nodes].sum(1) / count.clamp(min=1)[:, None], count > 0
