"""Embeddings as a map: near points have near embeddings, a colour for each label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from polytask.errors import InputError
from polytask.report.palette import LIGHT

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#a6761d", "#7570b3", "#999933")
"""Of the labels in order; with more than these they are taken again, with another mark."""
MARKS = "o^sx"


def embedding_map(
    embeddings: Tensor, labels: Tensor, names: Sequence[str] | None = None, *, most: int = 2000, seed: int = 0
) -> Figure:
    """A figure of embeddings in two dimensions, by t-SNE of rows of length 1: cosines count, lengths do not.

    What is near is near; how far apart groups are, and how large they look, means little (van der Maaten and Hinton,
    *Visualizing data using t-SNE*, JMLR 2008).

    Args:
        embeddings: ``(N, D)``, ``N`` at least 4.
        labels: ``(N,)`` whole numbers; rows with one below 0 are left out.
        names: of the labels, by number.
        most: rows that are drawn, at random, where there are more.
        seed: of rows and map.
    """
    from sklearn.manifold import TSNE

    known = (labels >= 0).nonzero()[:, 0].cpu().numpy()
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or len(known) < 4:
        shapes = f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}, {len(known)} of them known"
        raise InputError(f"{shapes}, expected (N, D) and (N,), at least 4 known")
    rows = np.sort(np.random.default_rng(seed).permutation(known)[:most])
    x, y = embeddings.detach().cpu().float().numpy()[rows], labels.cpu().numpy()[rows]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    places = TSNE(perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=seed).fit_transform(x)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained", facecolor=LIGHT["page"])
    ax = figure.subplots()
    for number in np.unique(y):
        chosen = places[y == number]
        mark = MARKS[number // len(COLOURS) % len(MARKS)]
        name = str(number) if names is None else names[number]
        colour = COLOURS[number % len(COLOURS)]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=9, color=colour, marker=mark, alpha=0.8, label=name)
    ax.set_axis_off()
    ax.set_aspect("equal", adjustable="datalim")
    figure.legend(
        loc="outside right upper", frameon=False, fontsize=9, labelcolor=LIGHT["ink"], markerscale=2, handletextpad=0.2
    )
    return figure
