"""Independent component alignment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance._rank import rank
from polytask.balance.solvers import Array, cosines
from polytask.errors import InputError

SCALES = ("min", "median", "rmse")


def weights(gramian: Tensor, scale_mode: str = "min", shares: Array | None = None) -> Tensor:
    """``sigma V Lambda^(-1/2) V^T u`` for ``G = V Lambda V^T``, ``(K,)``; eigenvalues that are zero are left out.

    Args:
        gramian: inner products ``G`` of the task gradients, ``(K, K)``, float64.
        scale_mode: which singular value of the gradients all of them are brought to: ``"min"``, ``"median"`` or ``"rmse"``.
        shares: ``u``, ``(K,)``; ``1 / K`` each by default.
    """
    norms, matrix = cosines(gramian)
    shares = np.full(len(norms), 1 / len(norms)) if shares is None else shares
    largest = norms.max()
    if largest == 0:
        return torch.from_numpy(shares)
    norms = norms / largest
    # Gradients that merely differ in size are independent: the cosines tell how many directions there are.
    live = norms > 0
    count = rank(matrix[np.ix_(live, live)])
    values, vectors = np.linalg.eigh(matrix * norms[:, None] * norms)
    kept = (np.arange(len(values)) >= len(values) - count) & (values > len(values) * np.finfo(float).eps * values[-1])
    values, vectors = values[kept], vectors[:, kept]
    middle = values[(len(values) - 1) // 2]
    square = {"min": values[0], "median": middle, "rmse": values.mean()}[scale_mode]
    return torch.from_numpy(vectors @ (np.sqrt(square / values) * (vectors.T @ shares)))


@balancers.add("aligned")
class AlignedMTL(PreferringWeighting):
    """The task gradients are replaced by the nearest ones that are orthogonal and of one length, so that none dominates.

    With the singular value decomposition ``U S V^T`` of the gradients, ``(P, K)``, they become ``sigma U V^T``, whose
    condition number is 1, and the step is their preferred mean. Senushkin, Patakin, Kuznetsov and Konushin, *Independent
    component alignment for multi-task learning*, CVPR 2023, Algorithm 1, which has ``sigma`` the least singular value: no
    task is then stepped along faster than its gradient would have it.

    Args:
        scale_mode: ``sigma``: the ``"min"`` of the singular values that are not zero, their ``"median"`` (the lower one of
            two), or ``"rmse"``, the root of their mean square.
        preference: a number > 0 for each task; a task that is not named has 1. The mean is weighed with these.
    """

    scale = "own"

    def __init__(self, scale_mode: str = "min", preference: Mapping[str, float] | None = None) -> None:
        super().__init__(preference)
        if scale_mode not in SCALES:
            raise InputError(f"scale_mode {scale_mode!r}: expected one of {', '.join(SCALES)}")
        self.scale_mode = scale_mode

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.scale_mode, self.shares(losses))
