"""Layers of graph networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytask.nn.graph.csr import CSR
from polytask.nn.graph.normalise import propagate


def linear(layer: nn.Linear, x: Tensor | CSR) -> Tensor:
    """A linear layer on dense features ``(N, F)``, or on sparse ones, such as words of documents, at the cost of entries."""
    if isinstance(x, Tensor):
        out: Tensor = layer(x)
        return out
    out = x @ layer.weight.t().contiguous()
    return out if layer.bias is None else out + layer.bias


class GCNConv(nn.Module):
    """``D^-1/2 (A + I) D^-1/2 X W + b``, ``(N, inputs)`` -> ``(N, outputs)``: Kipf and Welling, ICLR 2017.

    The weights begin by Glorot's rule, the bias at zero. Self loops are added, whether or not the graph has some.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, graph: CSR, x: Tensor | CSR, sums: Tensor | None = None) -> Tensor:
        """``sums`` as for `propagate`."""
        return propagate(graph, linear(self.linear, x), sums) + self.bias
