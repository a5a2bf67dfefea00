"""What frozen embeddings are worth on four tasks: classes, clusters, parts of the graph, links."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.data.graph import LinkSplit, non_edges
from polytask.data.stream import generator
from polytask.measure import cluster_nmi, hits_at, linear_probe, pooled
from polytask.measure.embedding import PENALTIES

TASKS = ("class", "cluster", "part", "link")
"""Accuracy of classes, NMI of clusters with classes, accuracy of parts, AUC of links."""


def evaluate_nodes(
    embeddings: Tensor,
    labels: Tensor,
    parts: Tensor,
    seed: int = 0,
    *,
    repeats: int = 10,
    penalties: Sequence[float] = PENALTIES,
) -> dict[str, float]:
    """``{"class": ..., "cluster": ..., "part": ...}``: the first three of `TASKS`, for embeddings in rows of length 1.

    Logistic regressions have a random 20 % of the nodes, by which they choose ``C`` (`polytask.measure.linear_probe`), and
    are tested on the others; the mean over splits.

    Args:
        embeddings: ``(N, D)``, of any length.
        labels: ``(N,)`` classes, -1 where one is missing.
        parts: ``(N,)``, as `spectral_partition` gives them. Pre-training must not have seen them.
        seed: of the splits.
        repeats: splits for each regression, and runs of k-means, of which there are at most 5.
        penalties: the values of ``C``.
    """
    rows = F.normalize(embeddings.float())
    found = {"class": 0.0, "cluster": cluster_nmi(rows, labels, seeds=min(repeats, 5)), "part": 0.0}
    for task, target in (("class", labels), ("part", parts)):
        known = (target >= 0).nonzero()[:, 0]
        for repeat in range(repeats):
            mixed = known[torch.randperm(len(known), generator=generator(seed, repeat))]
            train, test = mixed[: len(mixed) // 5], mixed[len(mixed) // 5 :]
            found[task] += linear_probe(rows, target, train, test, penalties, seed=repeat) / repeats
    return found


def evaluate_links(
    embeddings: Tensor,
    split: LinkSplit,
    seed: int = 0,
    *,
    hits: int = 20,
    steps: int = 200,
    patience: int = 50,
    lr: float = 0.01,
    weight_decay: float = 0.01,
) -> dict[str, float]:
    """``{"auc": ..., "hits@K": ...}`` of test links by a linear layer on ``x_u * x_v``, for rows of length 1.

    The layer is trained by Adam on all training edges and as many pairs that are not linked, from zero weights, and taken
    from where its AUC on validation links was best.

    Args:
        embeddings: ``(N, D)``, of a pre-training that saw ``split.graph`` alone: else test links have been seen.
        split: of the edges.
        seed: of the pairs.
        hits: ``K``.
        steps, patience: the most steps, and how many without a better AUC end it.
        lr, weight_decay: of Adam.
    """
    rows = F.normalize(embeddings.detach().float())
    negative = non_edges(split.graph, len(split.train), generator(seed, 0))
    inputs = torch.cat([_products(rows, split.train), _products(rows, negative)])
    target = torch.cat([torch.ones(len(split.train)), torch.zeros(len(negative))]).to(rows)
    layer = torch.nn.Linear(rows.shape[1], 1).to(rows.device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr, weight_decay=weight_decay)
    held, tested = ([_products(rows, pairs) for pairs in links] for links in (split.validation, split.test))
    best, since, scores = -1.0, 0, [rows.new_zeros(1)] * 2
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(F.binary_cross_entropy_with_logits(layer(inputs)[:, 0], target))
        optimizer.step()
        with torch.no_grad():
            auc = _auc(*(layer(pairs)[:, 0] for pairs in held))
            since += 1
            if auc > best:
                best, since, scores = auc, 0, [layer(pairs)[:, 0] for pairs in tested]
        if since >= patience:
            break
    return {"auc": pooled(*scores)["auc"], f"hits@{hits}": hits_at(scores[0], scores[1], hits)}


def _auc(positive: Tensor, negative: Tensor) -> float:
    """As `polytask.measure.pooled` has it, in a tenth of the time: this is asked for at each step."""
    ordered = negative.sort().values
    below, up_to = (torch.searchsorted(ordered, positive, right=right).double() for right in (False, True))
    return float((below + up_to).mean()) / (2 * len(negative))


def _products(rows: Tensor, pairs: Tensor) -> Tensor:
    return rows[pairs[:, 0]] * rows[pairs[:, 1]]
