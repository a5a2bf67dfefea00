"""How fast each node's state moves: running moments of its increments."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import NodeTable, Snapshot


class Increments(NodeTable):
    """For each of ``N`` nodes a mixture of Gaussians over the increment of its state in a unit of time, with a diagonal
    covariance: from the number ``n`` of what was observed of a component, its sum and its sum of squares, ``mean = sum / n``
    and ``variance = squares / n - mean^2``; a component's weight is its share of the observations.

    Args:
        nodes: ``N``.
        width: of a state.
        components: of the mixture.
        anchors: ``(A,)`` distinct nodes of which alone anything is kept, in ``A`` rows; ``None``: all.
    """

    def __init__(self, nodes: int, width: int, components: int = 2, anchors: Tensor | None = None) -> None:
        if components < 1:
            raise InputError(f"a mixture of {components} components, expected at least 1")
        if anchors is not None:
            distinct = torch.unique(anchors)
            if not 1 <= len(anchors) == len(distinct):
                raise InputError(
                    f"{len(anchors)} anchors, {len(distinct)} of them distinct, expected at least 1, all distinct"
                )
            low, high = int(distinct[0]), int(distinct[-1])
            if low < 0 or high >= nodes:
                raise InputError(f"anchors from {low} to {high}, expected nodes from 0 to {nodes - 1}")
        moment = ((components, width), torch.float32)
        rows = nodes if anchors is None else len(anchors)
        super().__init__(rows, count=((components,), torch.float32), total=moment, squares=moment)
        self.components = components
        self.count: Tensor
        self.total: Tensor
        self.squares: Tensor
        self.place: Tensor | None
        place = None if anchors is None else torch.full((nodes,), -1).index_copy(0, anchors, torch.arange(rows))
        self.register_buffer("place", place)

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of ``nodes`` ``(M,)``, and which of them have one, ``None`` where all do."""
        if self.place is None:
            return nodes, None
        rows = self.place[nodes]
        return rows.clamp(min=0), rows >= 0

    def add(self, nodes: Tensor, observed: Tensor, component: Tensor, seen: Tensor | None = None) -> None:
        """Increments ``(M, width)`` in a unit of time were observed of ``nodes`` ``(M,)``, distinct, in these components.

        Where ``seen`` ``(M,)`` is given, only of those for which it is true: ``observed`` is 0 for the others.
        """
        rows, kept = self.rows(nodes)
        if kept is not None:
            rows, observed, component = rows[kept], observed[kept], component[kept]
            seen = None if seen is None else seen[kept]
        place = rows * self.components + component
        one = torch.ones_like(place, dtype=self.count.dtype) if seen is None else seen.to(self.count.dtype)
        self.count.view(-1).index_add_(0, place, one)
        self.total.flatten(0, 1).index_add_(0, place, observed)
        self.squares.flatten(0, 1).index_add_(0, place, observed.square())

    def counted(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes' rows, and how often each component was observed of them, ``(M, components)``."""
        rows, kept = self.rows(nodes)
        count = self.count.index_select(0, rows)
        return rows, count if kept is None else count * kept[:, None]

    def moments(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The components' means and variances, each ``(M, components, width)``; 0 of what was never observed."""
        rows, count = self.counted(nodes)
        seen, count = count[..., None] > 0, count.clamp(min=1)[..., None]
        mean = self.total[rows] / count * seen
        return mean, (self.squares[rows] / count * seen - mean.square()).clamp(min=0)

    def mean(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture's mean ``(M, width)``, and whether anything was observed of the node, ``(M,)`` bool."""
        rows, count = self.counted(nodes)
        whole = count.sum(1)
        return self.total.index_select(0, rows).sum(1) / whole.clamp(min=1)[:, None], whole > 0

    def draw(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """An increment from each node's mixture, ``(M, width)``: a component by its weight, then from its Gaussian."""
        mean, variance = self.moments(nodes)
        _, count = self.counted(nodes)
        known = count.sum(1) > 0
        component = torch.multinomial(count + ~known[:, None], 1)[:, :, None].expand(-1, 1, mean.shape[2])
        chosen = [each.gather(1, component)[:, 0] for each in (mean, variance.sqrt())]
        return chosen[0] + chosen[1] * torch.randn_like(chosen[0]), known

    def snapshot(self, nodes: Tensor | None = None) -> Snapshot:
        if nodes is not None:
            rows, kept = self.rows(nodes)
            nodes = rows if kept is None else rows[kept]
        return super().snapshot(nodes)
