"""The encoder that all pretext tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph import CSR, GCNConv


class Encoder(nn.Module):
    """Graph convolutions, each with batch normalisation and a PReLU: ``(N, inputs)`` -> ``(N, widths[-1])``.

    Args:
        inputs: the number of features.
        widths: of the convolutions; the paper has (512, 256), and a third layer for ogbn-arxiv and ogbn-products.
        momentum: of the running statistics. At the paper's 0.99 they are all but those of the last view in training: hence
            `ParetoGNN.embed` measures them anew.
    """

    def __init__(self, inputs: int, widths: Sequence[int] = (512, 256), momentum: float = 0.99) -> None:
        super().__init__()
        if inputs < 1 or not widths or min(widths) < 1:
            raise InputError(f"an encoder of {inputs} features and widths {list(widths)}, expected at least 1 of each")
        sizes = [inputs, *widths]
        self.width = sizes[-1]
        self.convolutions = nn.ModuleList(map(GCNConv, sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, momentum=momentum) for width in widths)
        self.activations = nn.ModuleList(nn.PReLU() for _ in widths)

    def forward(self, graph: CSR, x: Tensor, sums: Tensor | None = None) -> Tensor:
        """Embeddings of all nodes of ``graph``; ``sums`` as for `polytask.nn.graph.propagate`."""
        for convolution, norm, activation in zip(self.convolutions, self.norms, self.activations, strict=True):
            x = activation(norm(convolution(graph, x, sums)))
        return x
