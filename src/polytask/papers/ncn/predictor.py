"""From the embeddings of all nodes to the logits of links: the family of predictors on common neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.nn.graph import CSR, cap_degrees, common_neighbours, drop_edges, neighbour_sets

KINDS = ("gae", "count", "ncn", "ncn2", "ncn_diff")


@dataclass(frozen=True)
class Calibration:
    """How a logit becomes the probability that stands for a missing edge: ``alpha pt p / (pt p + 1 - p)`` with
    ``p = sigmoid(scale (logit - offset))``. ``pt`` from 0 to 1 discounts the odds.

    The defaults are the paper's for Cora.
    """

    scale: float = 4.3
    offset: float = 2.8
    pt: float = 0.75
    alpha: float = 1.0

    def __call__(self, logits: Tensor, pt: Tensor | float | None = None) -> Tensor:
        pt = self.pt if pt is None else pt
        odds = pt * torch.sigmoid(self.scale * (logits - self.offset))
        return self.alpha * odds / (odds + torch.sigmoid(-self.scale * (logits - self.offset))).clamp(min=1e-30)


class LinkPredictor(nn.Module):
    """``logit = f_out(f_ij(h_i * h_j) + beta f_cn(sum over common neighbours of h_u))``, symmetric in ``i`` and ``j``.

    ``beta`` is learned, 1 at first. In the sum alone, ``h`` is ``h + f_x(h)`` with ``transform``. With ``depth`` above 0
    (NCNC), a neighbour ``u`` of ``i`` alone counts too, by the probability of the edge ``(j, u)``, and one of ``j`` alone by
    that of ``(i, u)``; the module itself gives these, with ``depth - 1``, without gradient.

    Args:
        width: of the embeddings.
        kind: ``"ncn"``; ``"gae"``: ``f_out(f_ij(h_i * h_j))``; ``"count"``: with the number of common neighbours in the
            sum's place; ``"ncn2"``: with another term, of neighbours of one that are at distance 2 from the other;
            ``"ncn_diff"``: with another term, of the neighbours of one alone.
        depth: rounds of completion, for ``"ncn"``.
        calibration: of the probabilities.
        transform: use ``f_x`` (``xlin`` in the paper's code).
        norm: layer normalisation within the parts (``lnnn``).
        tail: end ``f_cn`` and ``f_ij`` with a linear layer, which the paper's code leaves out by ``tailact``.
        two_layers: one more layer in ``f_out`` (``twolayerlin``).
        dropout: within the parts (``predp``).
        edge_dropout: the share of edges that the sums in training leave out (``preedp``).
        learn_pt: predict ``pt`` from ``h_i * h_j`` instead, by a linear layer and a sigmoid; the paper's own choice of that
            network is not known.
        inner_features: what completion computes probabilities from: ``"plain"`` embeddings, or, as the paper's code has it,
            ``"transformed"`` ones, to which ``f_x`` is then applied once more.
        train_cap, test_cap: more neighbours of one node alone than this are drawn from, with weights; ``None`` takes all.

    "At distance 2" is read as: joined by a path of two edges, not by one, and another node; the definition that the paper
    has of its higher-order overlap is not known.
    """

    def __init__(
        self,
        width: int = 256,
        kind: str = "ncn",
        depth: int = 0,
        calibration: Calibration | None = None,
        *,
        transform: bool = True,
        norm: bool = True,
        tail: bool = False,
        two_layers: bool = False,
        dropout: float = 0.0,
        edge_dropout: float = 0.0,
        learn_pt: bool = False,
        inner_features: Literal["plain", "transformed"] = "plain",
        train_cap: int | None = None,
        test_cap: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"unknown link predictor {kind!r}: {suggest(kind, KINDS)}")
        if depth < 0 or (depth and kind != "ncn"):
            raise InputError(f"depth {depth} of kind {kind!r}, expected 0, or a whole number above it for 'ncn'")
        self.kind, self.depth, self.calibration = kind, depth, calibration or Calibration()
        self.edge_dropout, self.inner_features = edge_dropout, inner_features
        self.train_cap, self.test_cap = train_cap, test_cap

        def lines(count: int, inputs: int = width, tail: bool = tail) -> nn.Sequential:
            """``count`` linear layers with dropout and ReLU, the last of them normalised."""
            layers: list[nn.Module] = []
            for number in range(count):
                layers.append(nn.Linear(inputs if number == 0 else width, width))
                layers += [nn.LayerNorm(width)] if norm and number == count - 1 else []
                layers += [nn.Dropout(dropout), nn.ReLU()]
            return nn.Sequential(*layers, *([nn.Linear(width, width)] if tail else []))

        summed = kind in ("ncn", "ncn2", "ncn_diff")
        self.f_x = lines(2, tail=False) if summed and transform else None
        self.f_cn = lines(2, 1 if kind == "count" else width) if kind != "gae" else None
        self.f_more = lines(2) if kind in ("ncn2", "ncn_diff") else None
        self.f_ij = lines(1)
        self.f_out = nn.Sequential(*(lines(1, tail=False) for _ in range(1 + two_layers)), nn.Linear(width, 1))
        self.f_pt = nn.Linear(width, 1) if learn_pt else None
        self.beta = nn.Parameter(torch.ones(())) if kind != "gae" else None

    @property
    def reach(self) -> int:
        """How many steps from a pair the nodes are that its logit depends on, beside their embeddings."""
        return {"gae": 0, "ncn2": 2}.get(self.kind, max(self.depth, 1))

    def forward(self, h: Tensor, graph: CSR, pairs: Tensor) -> Tensor:
        """``(B,)`` logits of ``pairs`` ``(B, 2)``, from embeddings ``(N, width)`` and the adjacency ``(N, N)``."""
        if self.training and self.edge_dropout:
            graph = drop_edges(graph, self.edge_dropout, rescale=graph.values is not None)
        return self._logits(h, graph, pairs, self.depth)

    def _logits(self, h: Tensor, graph: CSR, pairs: Tensor, depth: int) -> Tensor:
        product = h[pairs[:, 0]] * h[pairs[:, 1]]
        z: Tensor = self.f_ij(product)
        if self.kind == "count":
            common = common_neighbours(graph, pairs).degrees[:, None].to(h.dtype)
            z = z + self.beta * self.f_cn(common)  # type: ignore[misc]
        elif self.kind != "gae":
            sums = self._sums(h, graph, pairs, product, depth)
            z = z + self.beta * self.f_cn(sums[0])  # type: ignore[misc]
            if self.f_more is not None:
                z = z + self.f_more(sums[1] + sums[2])
        logits: Tensor = self.f_out(z)[:, 0]
        return logits

    def _sums(self, h: Tensor, graph: CSR, pairs: Tensor, product: Tensor, depth: int) -> list[Tensor]:
        """The sum over common neighbours, completed with ``depth``; and the two sums of the kinds with another term."""
        if self.kind == "ncn2":
            far = _two_steps(graph)
            return self._products(h, common_neighbours(graph, pairs), _both(graph, far, pairs), _both(far, graph, pairs))
        if self.kind == "ncn_diff":
            return self._products(h, *neighbour_sets(graph, pairs))
        if depth == 0:
            return self._products(h, common_neighbours(graph, pairs))
        common, *sides = neighbour_sets(graph, pairs)
        inner = h if self.inner_features == "plain" else self.transformed(h)
        cap = self.train_cap if self.training else self.test_cap
        weighed = []
        for alone, other in zip(sides, (pairs[:, 1], pairs[:, 0]), strict=True):
            drawn = alone if cap is None else cap_degrees(alone, cap)
            missing = torch.stack([other[drawn.rows], drawn.columns], 1)
            chances = self._imputed(inner, graph, missing, product, drawn.rows, depth)
            weighed.append(drawn.with_values(chances if drawn.values is None else chances * drawn.values))
        return [torch.stack(self._products(h, common, *weighed)).sum(0)]

    def transformed(self, h: Tensor) -> Tensor:
        """The embeddings that sums are over, of the same shape."""
        return h if self.f_x is None else h + self.f_x(h)

    def _products(self, h: Tensor, *sets: CSR) -> list[Tensor]:
        """Each set's sums of transformed embeddings, which are computed for nodes in some set alone."""
        nodes, place = torch.unique(torch.cat([each.columns for each in sets]), return_inverse=True)
        transformed = self.transformed(h[nodes])
        places = place.split([len(each.columns) for each in sets])
        return [
            CSR(each.offsets, columns, len(nodes), each.values) @ transformed
            for each, columns in zip(sets, places, strict=True)
        ]

    def _imputed(self, h: Tensor, graph: CSR, missing: Tensor, product: Tensor, pair: Tensor, depth: int) -> Tensor:
        """The probability of each missing edge ``(M, 2)``, each of them computed once; ``pair`` is whose it is."""
        with torch.no_grad():
            keys, place = torch.unique(missing.min(1).values * graph.width + missing.max(1).values, return_inverse=True)
            edges = torch.stack([keys // graph.width, keys % graph.width], 1)
            logits = self._logits(h, graph, edges, depth - 1)[place] if len(edges) else h.new_zeros(0)
        pt = None if self.f_pt is None else torch.sigmoid(self.f_pt(product))[pair, 0]
        return self.calibration(logits, pt)


def _two_steps(graph: CSR) -> CSR:
    """The nodes at distance 2 from each."""
    owner, entries = graph.entries_of(graph.columns)
    rows, columns = graph.rows[owner], graph.columns[entries]
    new = (rows != columns) & ~graph.find(rows, columns)[0]
    return CSR.from_entries(rows[new], columns[new], graph.shape)


def _both(one: CSR, other: CSR, pairs: Tensor) -> CSR:
    """What ``one`` lists for ``i`` and ``other`` lists for ``j``, ``(B, nodes)``."""
    owner, entries = one.entries_of(pairs[:, 0])
    nodes = one.columns[entries]
    found = other.find(pairs[:, 1][owner], nodes)[0]
    return CSR.from_entries(owner[found], nodes[found], (len(pairs), one.width))
