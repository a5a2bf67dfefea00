"""Clusters of directions: k-means on the sphere (Dhillon and Modha, 2001)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def spherical_means(vectors: Floats, count: int, *, steps: int = 8, seed: int = 0) -> Floats:
    """Directions ``(count, width)`` of clusters of vectors of length 1, ``(N, width)``, by inner product.

    It begins from vectors drawn at random; a cluster that loses all its vectors takes one at random again. There are no
    more clusters than vectors.
    """
    rng = np.random.default_rng(seed)
    count = min(count, len(vectors))
    centroids = vectors[rng.permutation(len(vectors))[:count]].copy()
    for _ in range(steps if count > 1 else 1):
        own = nearest(vectors, centroids)
        order = np.argsort(own, kind="stable")
        filled, starts = np.unique(own[order], return_index=True)
        if len(filled):
            centroids[filled] = np.add.reduceat(vectors[order], starts, axis=0)
        empty = np.setdiff1d(np.arange(count), filled)
        centroids[empty] = vectors[rng.integers(len(vectors), size=len(empty))] if len(empty) else 0
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    return centroids


def nearest(vectors: Floats, centroids: Floats, piece: int = 4096) -> NDArray[np.int64]:
    """For each vector the centroid of highest inner product, ``(N,)``."""
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), piece):
        found[start : start + piece] = (vectors[start : start + piece] @ centroids.T).argmax(1)
    return found
