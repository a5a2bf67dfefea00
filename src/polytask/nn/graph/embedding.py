"""A node's embedding at a time, from its state and the events around it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph.time import TimeEncoding


class Around(NamedTuple):
    """The last events of ``Q`` nodes.

    Attributes:
        states: ``(Q, K, width)`` of the neighbours.
        features: ``(Q, K, edge_width)`` of the events.
        since: ``(Q, K)`` the time since them.
        there: ``(Q, K)`` bool, which of the ``K`` there are.
    """

    states: Tensor
    features: Tensor
    since: Tensor
    there: Tensor


class IdentityEmbedding(nn.Module):
    """The state itself."""

    def forward(self, states: Tensor, since: Tensor, around: Around | None = None) -> Tensor:
        """``(Q, width)`` for ``states`` of that shape; ``since`` ``(Q,)`` is the time since each node's last event."""
        return states


class TimeProjection(nn.Module):
    """``(1 + w dt + b) * state``: a state that drifts with the time ``dt`` since the node's last event.

    Kumar, Zhang and Leskovec, *Predicting dynamic embedding trajectory in temporal interaction networks* (JODIE), KDD 2019.

    Args:
        width: of a state.
        gap: what ``dt`` is counted in: about the mean time between a node's events.
    """

    def __init__(self, width: int, gap: float = 1.0) -> None:
        super().__init__()
        if gap <= 0:
            raise InputError(f"a mean gap of {gap}, expected more than 0")
        self.gap = gap
        self.drift = nn.Linear(1, width)

    def forward(self, states: Tensor, since: Tensor, around: Around | None = None) -> Tensor:
        """As for `IdentityEmbedding`."""
        drifted: Tensor = states * (1 + self.drift((since / self.gap).to(states.dtype)[:, None]))
        return drifted


class AttentionEmbedding(nn.Module):
    """One layer of temporal attention over a node's last events, as TGN has it.

    The query is ``[s_i, TE(0)]``, keys and values are ``[s_j, e_ij, TE(t - t_ij)]``; what the heads give is joined with
    ``s_i`` by a perceptron of one hidden layer. A node without events attends to nothing, which is zero.

    Args:
        width: of a state, and of the embedding.
        encode: the encoding of time.
        edge_width: of the events' features.
        heads: of the attention; they divide the widths of state and encoding together.
        dropout: of the attention's weights.
    """

    def __init__(self, width: int, encode: TimeEncoding, edge_width: int = 0, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        inner = width + encode.width
        if heads < 1 or inner % heads:
            raise InputError(f"{heads} heads, expected a divisor of {inner}, the widths of state and time together")
        self.encode, self.heads, self.dropout = encode, heads, dropout
        self.query = nn.Linear(inner, inner)
        self.key, self.value = (nn.Linear(inner + edge_width, inner) for _ in range(2))
        self.out = nn.Linear(inner, inner)
        self.merge = nn.Sequential(nn.Linear(inner + width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, states: Tensor, since: Tensor, around: Around | None = None) -> Tensor:
        """As for `IdentityEmbedding`; ``around`` must be given."""
        assert around is not None
        count, heads = len(states), self.heads
        inputs = torch.cat([around.states, around.features.to(states.dtype), self.encode(around.since).to(states.dtype)], -1)
        query = self.query(torch.cat([states, self.encode(torch.zeros_like(since)).to(states.dtype)], -1))
        query = query.view(count, heads, -1) / math.sqrt(query.shape[1] / heads)
        # A key meets one query alone: q (W x + b) = (q W) x + q b, so that no product has a row for each neighbour; and the
        # values' mean is the value of the mean, times what dropout leaves of the weights.
        key, value = (layer.weight.view(heads, -1, inputs.shape[2]) for layer in (self.key, self.value))
        looked = torch.einsum("qhd,hdi->qhi", query, key)
        scores = looked @ inputs.transpose(1, 2) + (query * self.key.bias.view(heads, -1)).sum(-1, keepdim=True)
        some = around.there.any(1)
        mask = around.there | ~some[:, None]  # of nothing at all a softmax would not be a number
        weights = F.softmax(scores.masked_fill(~mask[:, None], -torch.inf), -1)
        weights = F.dropout(weights, self.dropout, self.training)
        found = torch.einsum("qhi,hdi->qhd", weights @ inputs, value)
        found = found + weights.sum(-1, keepdim=True) * self.value.bias.view(heads, -1)
        found = self.out(found.flatten(1)) * some[:, None]
        merged: Tensor = self.merge(torch.cat([found, states], -1))
        return merged
