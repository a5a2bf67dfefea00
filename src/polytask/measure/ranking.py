"""How high true links rank among false ones."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.errors import InputError


def hits_at(positive: Tensor, negative: Tensor, k: int) -> float:
    """HR@K: the share of positives whose score is strictly above the ``k``-th highest of all negatives.

    As in the Open Graph Benchmark (Hu et al., NeurIPS 2020): a tie is a miss, and with fewer than ``k`` negatives all hit.

    Args:
        positive: ``(P,)`` scores of true links, ``P >= 1``.
        negative: ``(M,)`` scores of false ones.
        k: >= 1.

    >>> hits_at(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.5, 2.0, 2.5]), k=2)
    0.3333333333333333
    """
    if k < 1 or positive.ndim != 1 or negative.ndim != 1 or len(positive) == 0:
        shapes = f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        raise InputError(f"hits at {k} of scores {shapes}, expected k >= 1, (P,) with P >= 1, and (M,)")
    if len(negative) < k:
        return 1.0
    bar = negative.topk(k).values[-1]
    return int((positive > bar).sum()) / len(positive)


def mean_reciprocal_rank(positive: Tensor, negative: Tensor) -> float:
    """MRR: the mean of ``1 / rank`` of each positive among negatives of its own; tied scores share the middle rank.

    Args:
        positive: ``(P,)`` scores of true links, ``P >= 1``.
        negative: ``(P, M)`` for each of them those of its false ones.

    >>> mean_reciprocal_rank(torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    0.75
    """
    if positive.ndim != 1 or negative.ndim != 2 or not 0 < len(positive) == len(negative):
        shapes = f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        raise InputError(f"reciprocal ranks of scores {shapes}, expected (P,) with P >= 1, and (P, M)")
    above = (negative > positive[:, None]).sum(1)
    level = (negative == positive[:, None]).sum(1)
    return float((1 / (1 + above.double() + level / 2)).mean())


def pooled(positive: Tensor, negative: Tensor) -> dict[str, float]:
    """``{"ap": ..., "auc": ...}`` of all scores together, not a mean over batches, which depends on the batch size.

    Args:
        positive: ``(P,)`` scores of true links, ``P >= 1``.
        negative: ``(M,)`` scores of false ones, ``M >= 1``.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if min(positive.numel(), negative.numel()) == 0:
        raise InputError(f"{positive.numel()} positive and {negative.numel()} negative scores, expected some of both")
    scores = torch.cat([positive.flatten(), negative.flatten()]).detach().cpu().double().numpy()
    labels = torch.cat([torch.ones(positive.numel()), torch.zeros(negative.numel())]).numpy()
    return {"ap": float(average_precision_score(labels, scores)), "auc": float(roc_auc_score(labels, scores))}
