"""Scores of links by their common neighbours alone, without learning."""

from __future__ import annotations

from torch import Tensor

from polytask.nn.graph import CSR, common_neighbours


def common_count(graph: CSR, pairs: Tensor) -> Tensor:
    """``(B,)``: the number of common neighbours of each pair ``(B, 2)``."""
    return common_neighbours(graph, pairs).degrees.float()


def adamic_adar(graph: CSR, pairs: Tensor) -> Tensor:
    """``(B,)``: the sum over common neighbours of ``1 / log degree`` (Adamic and Adar, *Friends and neighbors*, 2003)."""
    return _weighed(graph, pairs, 1 / graph.degrees.clamp(min=2).float().log())


def resource_allocation(graph: CSR, pairs: Tensor) -> Tensor:
    """``(B,)``: the sum over common neighbours of ``1 / degree`` (Zhou, Lü and Zhang, 2009)."""
    return _weighed(graph, pairs, 1 / graph.degrees.clamp(min=1).float())


def _weighed(graph: CSR, pairs: Tensor, weights: Tensor) -> Tensor:
    return (common_neighbours(graph, pairs) @ weights[:, None])[:, 0]


HEURISTICS = {"cn": common_count, "aa": adamic_adar, "ra": resource_allocation}
"""By the names that the paper's tables have."""
