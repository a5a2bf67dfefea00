"""What frozen embeddings know: clusters that agree with classes, and classes that a line can tell apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError

PENALTIES = tuple(2.0**power for power in range(-10, 11))
"""The values of C among which the probe chooses."""


def cluster_nmi(embeddings: Tensor, labels: Tensor, seeds: int = 5) -> float:
    """Normalised mutual information of k-means clusters, as many as classes, with the labels; the mean over ``seeds`` runs.

    By the arithmetic mean of the entropies, which is the V-measure.

    Args:
        embeddings: ``(N, D)``, used as they are: normalise rows first where their length should not count.
        labels: ``(N,)`` classes; rows with a label below 0 are left out.
        seeds: runs of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    x, y = _known(embeddings, labels)
    runs = [KMeans(len(np.unique(y)), n_init=1, random_state=seed).fit_predict(x) for seed in range(seeds)]
    return float(np.mean([normalized_mutual_info_score(y, found) for found in runs]))


def linear_probe(
    embeddings: Tensor, labels: Tensor, train: Tensor, test: Tensor, penalties: Sequence[float] = PENALTIES, seed: int = 0
) -> float:
    """The test accuracy of one-vs-rest logistic regression on frozen embeddings.

    ``C`` is chosen by five random halvings of the training rows, never by test rows; then all training rows are fitted.

    Args:
        embeddings: ``(N, D)``.
        labels: ``(N,)`` classes; rows with a label below 0 are left out.
        train, test: rows.
        penalties: the values of ``C``, the inverse strength of the penalty.
        seed: of the halvings.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, ShuffleSplit
    from sklearn.multiclass import OneVsRestClassifier

    x, y = _known(embeddings[train], labels[train])
    held_x, held_y = _known(embeddings[test], labels[test])
    search = GridSearchCV(
        OneVsRestClassifier(LogisticRegression(solver="liblinear")),
        {"estimator__C": list(penalties)},
        cv=ShuffleSplit(5, test_size=0.5, random_state=seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(x, y)
    return float((search.predict(held_x) == held_y).mean())


def _known(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if embeddings.ndim != 2 or labels.ndim != 1 or len(embeddings) != len(labels):
        raise InputError(f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}, expected (N, D) and (N,)")
    rows = labels >= 0
    if len(torch.unique(labels[rows])) < 2:
        raise InputError("labels of fewer than two classes, expected at least two")
    return embeddings[rows].detach().cpu().float().numpy(), labels[rows].cpu().numpy()
