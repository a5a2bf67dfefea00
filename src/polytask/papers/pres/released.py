"""What the authors' code does in the place of the paper's correction and coherence, for comparison."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.nn.graph import NodeTable, TemporalMemory, Updated


class ReleasedMemory(TemporalMemory):
    """The correction of the authors' code, which differs from the paper's:

    - the gate is fixed, and 0.9 is the prediction's weight, not the measurement's;
    - a prediction adds the sum of a node's increments so far, with all nodes' sums brought to [-1, 1] by their least and
      their largest entry; time and the number of increments do not enter, and there is one component;
    - what is corrected is embedded, and what is kept is the cell's output.

    Each batch looks at all nodes.

    Args:
        nodes, width, settings: as for `polytask.nn.graph.TemporalMemory`.
        weight: of the prediction.
    """

    def __init__(self, nodes: int, width: int = 172, *, weight: float = 0.9, **settings: Any) -> None:
        super().__init__(nodes, width, **settings)
        self.weight = weight
        self.increments = NodeTable(nodes, total=((width,), torch.float32))
        self._measured: Tensor | None = None

    @property
    def tables(self) -> tuple[NodeTable, ...]:
        return *super().tables, self.increments

    def forward(self, nodes: Tensor) -> Updated:
        updated = super().forward(nodes)
        self._measured = updated.states
        total = self.increments.column("total")
        low, high = total.aminmax()
        scaled = 2 * (total[nodes] - low) / (high - low).clamp(min=1e-12) - 1
        return updated._replace(states=torch.lerp(updated.states, updated.before + scaled * (high > low), self.weight))

    def advance(self, updated: Updated, source: Tensor, destination: Tensor, *events: Any, **settings: Any) -> None:
        assert self._measured is not None
        updated = updated._replace(states=self._measured.detach())
        rows = updated.rows(torch.unique(torch.cat([source, destination])))
        self.increments.column("total")[updated.nodes[rows]] += updated.states[rows] - updated.before[rows]
        super().advance(updated, source, destination, *events, **settings)


@torch.no_grad()
def released_incoherence(before: Tensor, after: Tensor, nodes: int) -> Tensor:
    """The authors' code's loss of coherence, which has no gradient: over each coordinate ``1 - cos`` of its values at all
    nodes before and after, summed and divided by the number of nodes, which the states ``(M, width)`` need not all be of.
    """
    return (1 - F.cosine_similarity(before, after, 0)).sum() / nodes
