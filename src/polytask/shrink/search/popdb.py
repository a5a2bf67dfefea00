"""PopDB: a smaller space, out of what a finished search visited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytask.errors import InputError
from polytask.shrink.search.space import Space


def reduce_space(
    space: Space,
    configurations: Sequence[Mapping[str, Any]],
    min_cluster_size: int = 50,
    min_samples: int = 10,
    threshold: float = 0.01,
) -> Space:
    """The part of ``space`` whose options a search went to, to search again in it: Sarah et al., arXiv 2202.12954, 2022.

    The configurations are clustered by HDBSCAN, those that belong to no cluster are left out, and of each gene the options
    go that fewer than ``threshold`` of the others have which use it. Clusters are of the features; what the paper clusters
    is not known. Where there are no clusters, all may be one: HDBSCAN is asked again whether they are.

    Args:
        configurations: what was visited; the paper takes 100,000 that predictors rated. HDBSCAN's time grows with the
            square of their number.
        min_cluster_size, min_samples: of HDBSCAN; the paper's.
        threshold: the least share, the paper's 1 %.

    Raises:
        InputError: there are fewer than ``min_cluster_size`` configurations.
    """
    from sklearn.cluster import HDBSCAN

    if len(configurations) < min_cluster_size or not 0 <= threshold < 1:
        raise InputError(
            f"{len(configurations)} configurations and a threshold of {threshold}, expected at least {min_cluster_size} "
            "and a threshold from 0 up to 1"
        )
    rows = np.stack([space.row(configuration) for configuration in configurations])
    features = space.features(rows)
    for single in (False, True):
        clusters = HDBSCAN(
            min_cluster_size=min_cluster_size, min_samples=min_samples, allow_single_cluster=single, copy=True
        )
        inside = clusters.fit_predict(features) >= 0
        if inside.any():
            break
    rows, kept = rows[inside], {}
    for (name, options), column in zip(space.genes.items(), rows.T, strict=True):
        counts = np.bincount(column[column >= 0], minlength=len(options))
        often = counts >= threshold * counts.sum()
        kept[name] = [option for option, keep in zip(options, often, strict=True) if keep]
    return space.restricted(kept)
