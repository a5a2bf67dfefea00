"""A graph cut into parts of one size with few edges between them: what an embedding should know of the graph's shape."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import CSR

DENSE = 64
"""Up to so many nodes all eigenvectors are found, which is faster there, and always converges."""


def spectral_partition(graph: CSR, parts: int = 10) -> Tensor:
    """``(N,)`` int64: a part from 0 to ``parts - 1`` for each node, in sizes that differ by as little as they can.

    By recursive spectral bisection (Pothen, Simon and Liou, *Partitioning sparse matrices with eigenvectors of graphs*, SIAM
    Journal on Matrix Analysis and Applications 1990), with the second eigenvector of the normalised adjacency. Connected
    components stay whole where they can: the smallest fill the first side, and the one that is left over is cut. ParetoGNN
    takes METIS's parts, which this stands for: the same aim, sizes and number, by another method, without a package that has
    to be compiled.

    Args:
        graph: a symmetric adjacency; values do not matter.
        parts: how many, from 1 to ``N``.
    """
    if not 1 <= parts <= graph.height:
        raise InputError(f"{parts} parts of {graph.height} nodes, expected 1 to {graph.height}")
    found = np.zeros(graph.height, dtype=np.int64)
    waiting = [(np.arange(graph.height), 0, parts)]
    while waiting:
        nodes, first, count = waiting.pop()
        if count == 1:
            found[nodes] = first
            continue
        left = count // 2
        order = nodes[_order(graph.pattern[nodes][:, nodes], len(nodes) * left // count)]
        cut = len(nodes) * left // count
        waiting += [(np.sort(order[:cut]), first, left), (np.sort(order[cut:]), first + left, count - left)]
    return torch.from_numpy(found)


def _order(matrix: object, cut: int) -> NDArray[np.int64]:
    """Places in an order of which the first ``cut`` have few edges to the others."""
    from scipy.sparse.csgraph import connected_components

    _, component = connected_components(matrix, directed=False)
    sizes = np.bincount(component)
    rank = np.empty_like(sizes)
    rank[sizes.argsort(kind="stable")] = np.arange(len(sizes))
    order: NDArray[np.int64] = rank[component].argsort(kind="stable")
    across = component[order[cut]]
    inside = np.flatnonzero(component == across)
    order[rank[component[order]] == rank[across]] = inside[_second(matrix[inside][:, inside]).argsort(kind="stable")]  # type: ignore[index]
    return order


def _second(matrix: object) -> NDArray[np.float64]:
    """The second eigenvector of the random walk on a connected graph: of ``D^-1 A``, by that of ``D^-1/2 A D^-1/2``."""
    from scipy.sparse import csr_matrix, diags
    from scipy.sparse.linalg import eigsh

    plain = csr_matrix(matrix, dtype=np.float64)
    size = plain.shape[0]
    if size < 3:
        return np.arange(size, dtype=np.float64)
    scale = np.maximum(np.asarray(plain.sum(1)).ravel(), 1) ** -0.5
    normal = diags(scale) @ plain @ diags(scale)
    if size <= DENSE:
        vector = np.linalg.eigh(normal.toarray())[1][:, -2]
    else:
        start = np.random.default_rng(0).standard_normal(size)
        values, vectors = eigsh(normal, k=2, which="LA", v0=start, tol=1e-4, ncv=40, maxiter=20 * size)
        vector = vectors[:, values.argsort()[0]]
    second: NDArray[np.float64] = vector * scale
    return second
