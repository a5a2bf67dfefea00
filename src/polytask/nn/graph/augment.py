"""Views of a graph: edges dropped, features masked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph.csr import CSR


def drop_edges(graph: CSR, rate: float, rescale: bool = False, generator: torch.Generator | None = None) -> CSR:
    """Each entry goes with chance ``rate``, the two directions of an edge apart; DropEdge of Rong et al., ICLR 2020.

    Args:
        graph: any sparse matrix; that of features too.
        rate: from 0 up to, but not including, 1.
        rescale: divide the values of what is left by ``1 - rate``, so that sums are kept in expectation.
        generator: of the draws; torch's own by default.
    """
    _check(rate)
    if rate == 0:
        return graph
    columns = graph.columns
    left = graph.keep(torch.rand(columns.shape, generator=generator, device=columns.device) >= rate)
    if not rescale:
        return left
    values = torch.ones(len(left.columns), device=columns.device) if left.values is None else left.values
    return left.with_values(values / (1 - rate))


def mask_features(x: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Features ``(N, F)`` with each column set to 0, for all nodes, with chance ``rate``, as in GRACE (Zhu et al., 2020)."""
    _check(rate)
    return x * (torch.rand(x.shape[1], generator=generator, device=x.device) >= rate)


def dropout(x: Tensor | CSR, rate: float, training: bool = True) -> Tensor | CSR:
    """Dropout on dense features, or on the entries of sparse ones, which comes to the same: zeros stay zero."""
    if isinstance(x, Tensor):
        return F.dropout(x, rate, training)
    return drop_edges(x, rate, rescale=True) if training else x


def _check(rate: float) -> None:
    if not 0 <= rate < 1:
        raise InputError(f"rate {rate}, expected at least 0 and less than 1")
