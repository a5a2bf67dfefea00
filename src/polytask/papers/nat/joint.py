"""What two nodes' caches say of the nodes around both, and how a pair is made of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError

POOLS = ("attention", "sum")


class Slots(NamedTuple):
    """The filled slots of ``Q`` caches, ``T`` in all, in order of owner and slot.

    Attributes:
        owner: ``(T,)`` int64, which of the ``Q``.
        slot: ``(T,)`` int64, from 0 to ``S - 1``.
        hop: ``(T,)`` int64, of the slot.
        key: ``(T,)`` int64, a node's number plus 1.
        event: ``(T,)`` int64.
        time: ``(T,)`` float64.
        vector: ``(T, width)``.
        row: ``(Q, S)`` int64, which of the ``T``; -1 for an empty slot.
    """

    owner: Tensor
    slot: Tensor
    hop: Tensor
    key: Tensor
    event: Tensor
    time: Tensor
    vector: Tensor
    row: Tensor


class Joined(NamedTuple):
    """The distinct keys of ``P`` pairs' caches, ``G`` in all, in order of the pairs.

    Attributes:
        pair: ``(G,)`` int64.
        key: ``(G,)`` int64.
        code: ``(G,)`` int64: the sum of ``2^k`` for each hop ``k`` at which the first node has the key, and of ``2^(k + H)``
            for each at which the second has it, of ``H`` hops, hop 0 counted.
        times: ``(G,)`` int64: in how many dictionaries it is.
        vector: ``(G, width)``: the sum of its vectors there.
    """

    pair: Tensor
    key: Tensor
    code: Tensor
    times: Tensor
    vector: Tensor


def join(found: Slots, left: Tensor, right: Tensor, hops: int) -> Joined:
    """Join the caches at places ``left`` and ``right`` ``(P,)`` by key; ``hops`` are ``H``.

    A dictionary has a key at most once, so the sum of codes is a set of hops: for two hops and two nodes 0 to 63.
    """
    rows = torch.cat([found.row[left], found.row[right]], 1)
    width = rows.shape[1]
    flat = (rows >= 0).flatten().nonzero()[:, 0]
    row, pair, second = rows.flatten()[flat], flat // width, flat % width >= width // 2
    span = found.key.max() + 1
    distinct, inverse = torch.unique(pair * span + found.key[row], return_inverse=True)
    ones = torch.ones_like(inverse)
    bit = found.hop[row] + hops * second
    code, count = torch.zeros_like(distinct), torch.zeros_like(distinct)
    code.index_add_(0, inverse, ones << bit)
    count.index_add_(0, inverse, ones)
    vector = found.vector.new_zeros(len(distinct), found.vector.shape[1]).index_add(
        0, inverse, found.vector.index_select(0, row)
    )
    return Joined(distinct // span, distinct % span, code, count, vector)


class Pooling(nn.Module):
    """A vector for each pair, from the rows ``[features, vector, embedding of the code]`` of its keys.

    - ``"attention"``: ``sum_a softmax_a(LeakyReLU(w_h row_a)) W_h row_a + b``, the mean over heads ``h``.
    - ``"sum"``: ``sum_a W_h row_a + b``, which is what the authors' code computes, the softmax commented out.

    Rows are dropped out in both; then attention's weights, or the sum's projected rows. The exact form of the authors'
    attention is not known here.

    Args:
        width: of what comes out.
        vector_width: of the vectors.
        feature_width: of the nodes' features.
        codes: how many there are.
        position_width: of a code's embedding; 0: no code.
        heads: how many.
        dropout: probability.
        pool: one of the two.
    """

    def __init__(
        self,
        width: int,
        vector_width: int,
        feature_width: int = 0,
        codes: int = 64,
        position_width: int = 16,
        heads: int = 2,
        dropout: float = 0.1,
        pool: str = "attention",
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise InputError(f"pool {pool!r}, expected 'attention' or 'sum'")
        if heads < 1:
            raise InputError(f"{heads} heads, expected at least 1")
        inputs = feature_width + vector_width + position_width
        self.width, self.heads, self.dropout = width, heads, dropout
        self.position = nn.Embedding(codes, position_width) if position_width else None
        self.project = nn.Linear(inputs, heads * width, bias=False)
        self.attend = nn.Linear(inputs, heads, bias=False) if pool == "attention" else None
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_normal_(self.project.weight)

    def forward(self, joined: Joined, pairs: int, features: Tensor | None = None) -> Tensor:
        """``(pairs, width)``; ``features`` ``(N, feature_width)`` are all nodes'."""
        parts = [] if features is None else [joined.times[:, None] * features[joined.key - 1]]
        parts += [joined.vector] if self.position is None else [joined.vector, self.position(joined.code)]
        rows = F.dropout(torch.cat(parts, 1), self.dropout, self.training)
        if self.attend is not None:
            sums = self._attended(rows, joined.pair, pairs)
            weight = self.project.weight.view(self.heads, self.width, -1)
            mixed: Tensor = F.linear(sums.flatten(1), weight.transpose(0, 1).flatten(1) / self.heads, self.bias)
            return mixed
        if self.training and self.dropout:
            sums = _sums(F.dropout(self.project(rows), self.dropout), joined.pair, pairs)
        else:
            sums = self.project(_sums(rows, joined.pair, pairs))
        return sums.view(pairs, self.heads, -1).mean(1) + self.bias

    def _attended(self, rows: Tensor, owner: Tensor, count: int) -> Tensor:
        """``(count, heads, inputs)``: each head's mean of each owner's rows, which stand side by side, by attention."""
        assert self.attend is not None
        many = torch.bincount(owner, minlength=count)
        size = int(many.max())
        first = size * torch.arange(count, device=owner.device) - many.cumsum(0) + many
        place = torch.arange(len(owner), device=owner.device) + first[owner]
        apart = rows.new_zeros(count * size, rows.shape[1]).index_copy(0, place, rows).view(count, size, -1)
        absent = torch.arange(size, device=owner.device) >= many[:, None]
        scores = F.leaky_relu(self.attend(apart), 0.2).masked_fill(absent[:, :, None], -torch.inf)
        weights = F.dropout(scores.softmax(1), self.dropout, self.training)
        return weights.transpose(1, 2).to(apart.dtype) @ apart


def _sums(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, rows.shape[1]).index_add(0, owner, rows)
