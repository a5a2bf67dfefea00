"""Random graphs for tests, and what they are as dense matrices."""

import torch
from torch import Tensor

from polytask.nn.graph import CSR, adjacency


def random_graph(nodes: int = 12, edges: int = 30, seed: int = 0, weighted: bool = False) -> CSR:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(nodes, (edges, 2), generator=generator)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    values = torch.rand(len(pairs), generator=generator, dtype=torch.float64) + 0.5 if weighted else None
    return adjacency(pairs, nodes, values)


def dense(matrix: CSR) -> Tensor:
    """The matrix by a loop over its entries."""
    out = torch.zeros(matrix.shape, dtype=torch.float64)
    for row in range(matrix.height):
        for entry in range(int(matrix.offsets[row]), int(matrix.offsets[row + 1])):
            out[row, matrix.columns[entry]] += 1.0 if matrix.values is None else float(matrix.values[entry])
    return out
