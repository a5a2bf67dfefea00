"""NCN and NCNC: closed forms and invariants, and the claims' experiment on a small graph."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polytask as pt
from polytask.data.graph import GraphData, LinkBatches, split_links
from polytask.errors import InputError
from polytask.nn.graph import CSR, adjacency, cap_degrees, common_neighbours, neighbour_sets
from polytask.papers.ncn import (
    NCN,
    PAPER,
    PRESETS,
    Calibration,
    Encoder,
    LinkPredictor,
    adamic_adar,
    comparison,
    preset,
    resource_allocation,
)
from polytask.papers.ncn.picture import plot

PAIRS = torch.tensor([[0, 1], [4, 9], [7, 2], [3, 3], [11, 5]])


def small_graph(nodes: int = 14, edges: int = 40, seed: int = 0) -> CSR:
    pairs = torch.randint(nodes, (edges, 2), generator=torch.Generator().manual_seed(seed))
    return adjacency(pairs[pairs[:, 0] != pairs[:, 1]], nodes)


def predictor(depth: int = 0, calibration: Calibration | None = None, seed: int = 0, **settings: object) -> LinkPredictor:
    torch.manual_seed(seed)
    return LinkPredictor(6, depth=depth, calibration=calibration, **settings).eval()  # type: ignore[arg-type]


def embeddings(nodes: int = 14) -> Tensor:
    return torch.randn(nodes, 6, generator=torch.Generator().manual_seed(1))


def bare(width: int = 1) -> LinkPredictor:
    """A predictor whose logit is the sum over common neighbours itself."""
    model = LinkPredictor(width, transform=False)
    model.f_cn, model.f_out = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    model.f_ij = nn.Sequential(nn.Linear(width, width))
    nn.init.zeros_(model.f_ij[0].weight)
    nn.init.zeros_(model.f_ij[0].bias)
    return model


def test_parameters_at_the_papers_scale() -> None:
    counts = []
    for scale in PAPER.scales:
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in scale.build().parameters()))
    assert counts == [33_538, 1_412_098]


def test_with_identity_layers_the_sum_is_a_known_score() -> None:
    graph = small_graph()
    dense = graph @ torch.eye(14)
    ones = bare()(torch.ones(14, 1), graph, PAIRS)
    torch.testing.assert_close(ones, (dense @ dense)[PAIRS[:, 0], PAIRS[:, 1]])
    degrees = graph.degrees.clamp(min=2).float()[:, None]
    torch.testing.assert_close(bare()(1 / degrees.log(), graph, PAIRS), adamic_adar(graph, PAIRS))
    torch.testing.assert_close(bare()(1 / graph.degrees[:, None].float(), graph, PAIRS), resource_allocation(graph, PAIRS))


def test_scores_without_learning_are_networkxs() -> None:
    graph = small_graph()
    theirs = nx.Graph(torch.stack([graph.rows, graph.columns], 1).tolist())
    pairs = [tuple(pair) for pair in PAIRS.tolist() if pair[0] != pair[1]]
    for ours, function in ((adamic_adar, nx.adamic_adar_index), (resource_allocation, nx.resource_allocation_index)):
        expected = torch.tensor([score for *_, score in function(theirs, pairs)])
        torch.testing.assert_close(ours(graph, torch.tensor(pairs)), expected)


def test_calibration_at_its_limits() -> None:
    logits = torch.linspace(-8, 12, 9)
    plain = torch.sigmoid(4.3 * (logits - 2.8))
    torch.testing.assert_close(Calibration(pt=1.0, alpha=1.0)(logits), plain)
    discounted = Calibration(scale=4.3, offset=2.8, pt=0.5, alpha=0.8)(logits)
    torch.testing.assert_close(discounted, 0.8 * 0.5 * plain / (0.5 * plain + 1 - plain))
    at_offset = Calibration(offset=3.0, pt=0.25, alpha=0.9)(torch.tensor([3.0]))
    torch.testing.assert_close(at_offset, torch.tensor([0.9 * 0.25 / 1.25]))
    assert float(Calibration(pt=0.0)(torch.tensor([0.0, 12.0, 1e4])).sum()) == 0
    assert bool(Calibration()(torch.tensor([-1e4, 1e4])).isfinite().all())


def test_completion_that_imputes_nothing_is_ncn() -> None:
    graph, h = small_graph(), embeddings()
    plain, none = predictor(), predictor(1, Calibration(pt=0.0))
    torch.testing.assert_close(none(h, graph, PAIRS), plain(h, graph, PAIRS))
    completed = predictor(1, Calibration(1.0, 0.0))
    assert not torch.allclose(completed(h, graph, PAIRS), plain(h, graph, PAIRS))
    completed.depth = 0
    assert torch.equal(completed(h, graph, PAIRS), plain(h, graph, PAIRS))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("inner", ["plain", "transformed"])
def test_completion_by_a_loop(depth: int, inner: str) -> None:
    """Each sum over all nodes, weighed by 1 for common neighbours and by the imputed chance for those of one node."""
    graph, h = small_graph(), embeddings()
    model = predictor(depth, Calibration(1.0, 0.0, 0.6, 0.9), inner_features=inner)
    linked = (graph @ torch.eye(14)) > 0

    def logit(h: Tensor, i: int, j: int, depth: int) -> Tensor:
        moved = model.f_x(h) + h  # type: ignore[misc]
        below = h if inner == "plain" else moved
        total = torch.zeros(6)
        for u in range(14):
            if linked[i, u] and linked[j, u]:
                total = total + moved[u]
            elif depth and (linked[i, u] or linked[j, u]):
                missing = logit(below, j if linked[i, u] else i, u, depth - 1)
                total = total + model.calibration(missing) * moved[u]
        found: Tensor = model.f_out(model.f_ij(h[i] * h[j]) + model.beta * model.f_cn(total))[0]  # type: ignore[misc, operator]
        return found

    with torch.no_grad():
        expected = torch.stack([logit(h, *pair, depth) for pair in PAIRS.tolist()])  # type: ignore[call-arg]
        torch.testing.assert_close(model(h, graph, PAIRS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        *({"kind": kind} for kind in ("gae", "count", "ncn", "ncn2", "ncn_diff")),
        {"depth": 1},
        {"depth": 2},
        {"depth": 1, "learn_pt": True},
        {"tail": True, "two_layers": True, "norm": False},
    ],
    ids=str,
)
def test_scores_are_symmetric_and_need_no_common_neighbour(settings: dict[str, object]) -> None:
    model, h = predictor(**settings), embeddings()  # type: ignore[arg-type]
    empty = adjacency(torch.zeros(0, 2, dtype=torch.int64), 14)
    for graph in (small_graph(), empty):
        torch.testing.assert_close(model(h, graph, PAIRS), model(h, graph, PAIRS.flip(1)))
        assert model(h, graph, PAIRS[:0]).shape == (0,)
    model(h, small_graph(), PAIRS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_higher_order_terms_by_sets() -> None:
    graph, h = small_graph(), embeddings()
    linked = graph @ torch.eye(14) > 0
    far = ((graph @ (graph @ torch.eye(14))) > 0) & ~linked & ~torch.eye(14, dtype=torch.bool)
    i, j = PAIRS.unbind(1)
    masks = {"ncn2": [linked[i] & far[j], far[i] & linked[j]], "ncn_diff": [linked[i] & ~linked[j], ~linked[i] & linked[j]]}
    for kind, (one, other) in masks.items():
        model = predictor(kind=kind)
        sums = model._sums(h, graph, PAIRS, h[i] * h[j], 0)
        moved = model.f_x(h) + h  # type: ignore[misc]
        torch.testing.assert_close(sums[0], (linked[i] & linked[j]).float() @ moved)
        torch.testing.assert_close(sums[1] + sums[2], (one.float() + other.float()) @ moved)


def test_imputed_chances_have_no_gradient_and_a_learned_pt_has() -> None:
    graph, h = small_graph(), embeddings().requires_grad_()
    model = predictor(1, Calibration(1.0, 0.0), learn_pt=True)
    sets = neighbour_sets(graph, PAIRS)
    missing = torch.stack([PAIRS[:, 1][sets.first.rows], sets.first.columns], 1)
    chances = model._imputed(h, graph, missing, h[PAIRS[:, 0]] * h[PAIRS[:, 1]], sets.first.rows, 1)
    chances.sum().backward()
    assert model.f_pt is not None and model.f_pt.weight.grad is not None and float(model.f_pt.weight.grad.abs().sum()) > 0
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not name.startswith("f_pt"))


def test_capped_sets_are_right_in_expectation() -> None:
    graph = small_graph(14, 90)
    first = neighbour_sets(graph, torch.tensor([[0, 1], [2, 3]])).first
    capped = cap_degrees(first, 2)
    torch.testing.assert_close(capped.sums(), first.degrees.float())
    model = predictor(1, Calibration(1.0, 0.0), test_cap=100)
    torch.testing.assert_close(
        model(embeddings(), graph, PAIRS), predictor(1, Calibration(1.0, 0.0))(embeddings(), graph, PAIRS)
    )
    model.test_cap = 2
    assert bool(model(embeddings(), graph, PAIRS).isfinite().all())


class Seen(Encoder):
    """Keeps the graphs that it is given."""

    def __init__(self, **settings: object) -> None:
        super().__init__(5, hidden=6, **settings)  # type: ignore[arg-type]
        self.graphs: list[CSR] = []

    def forward(self, graph: CSR, x: Tensor | CSR, sums: Tensor | None = None) -> Tensor:
        self.graphs.append(graph)
        return super().forward(graph, x, sums)


def ring(nodes: int = 40) -> GraphData:
    places = torch.arange(nodes)
    edges = torch.cat([torch.stack([places, (places + step) % nodes], 1) for step in (1, 2, 3)])
    return GraphData("ring", nodes, edges, torch.randn(nodes, 5, generator=torch.Generator().manual_seed(0)))


def test_a_batchs_links_are_not_in_the_graph_that_it_sees() -> None:
    split, data = split_links(ring(), seed=0), ring()
    assert isinstance(data.features, Tensor)
    batch = next(LinkBatches(split, 20).epoch(0))
    for remove, evaluating, edges in ((True, False, 64), (False, False, 84), (True, True, 84)):
        encoder = Seen()
        model = NCN(encoder, predictor(), split.graph, data.features, remove_targets=remove).train(not evaluating)
        losses = model.losses(batch)
        (seen,) = encoder.graphs
        assert len(seen.columns) == 2 * edges and set(losses) == {"links", "others"}
        assert bool(seen.find(*batch.positive.unbind(1))[0].any()) != (remove and not evaluating)


@pytest.mark.parametrize(
    "settings", [{}, {"depth": 1}, {"depth": 2}, {"kind": "gae"}, {"kind": "ncn2"}, {"kind": "ncn_diff"}]
)
def test_sampling_all_neighbours_changes_nothing(settings: dict[str, object]) -> None:
    graph, x = small_graph(), torch.randn(14, 5)
    kind = {"gae": "puresum", "ncn2": "gcn"}.get(str(settings.get("kind")), "puregcn")
    encoder = Encoder(5, hidden=6, layers=2, kind=kind).eval()
    whole = NCN(encoder, predictor(**settings), graph, x).eval()  # type: ignore[arg-type]
    sampled = NCN(encoder, whole.predictor, graph, x, fanouts=[-1, -1]).eval()
    torch.testing.assert_close(sampled.score(PAIRS, chunk=2), whole.score(PAIRS))
    removed = torch.stack([graph.rows, graph.columns], 1)[:3]
    pairs = torch.cat([removed, PAIRS])
    torch.testing.assert_close(sampled(pairs, removed=removed), whole(pairs, removed=removed))
    torch.testing.assert_close(whole(pairs, removed=removed), whole(pairs, graph.without(removed)))
    assert bool(NCN(encoder, whole.predictor, graph, x, fanouts=[2, 2])(PAIRS).isfinite().all())


def test_the_encoders() -> None:
    graph, x = small_graph(), torch.randn(14, 5)
    step = (1 + graph.degrees).float().rsqrt()[:, None]
    norm = step * ((graph @ torch.eye(14)) + torch.eye(14)) * step.T
    pure = Encoder(5, hidden=6, layers=2, jumping=True).eval()
    first = pure.first(x)  # type: ignore[misc]
    assert pure.jump is not None
    expected = pure.jump[0] * (norm @ first) + pure.jump[1] * (norm @ norm @ first)
    torch.testing.assert_close(pure(graph, x), expected)
    summed = Encoder(nodes=14, hidden=20, kind="puresum", residual=True).eval()
    table = summed.table.weight  # type: ignore[union-attr]
    torch.testing.assert_close(table @ table.T, torch.eye(14), atol=1e-5, rtol=0)
    torch.testing.assert_close(summed(graph, torch.arange(14)), graph @ table + table)
    stack = Encoder(5, hidden=6, layers=3, kind="gcn", edge_dropout=0.5, residual=True)
    assert len(stack.norms) == 2 and stack(graph, x).shape == (14, 6)
    dense, sparse = graph @ torch.eye(14), Encoder(14, hidden=6).eval()
    torch.testing.assert_close(sparse(graph, graph), sparse(graph, dense))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'ncn_diff'"):
        LinkPredictor(4, "ncn-diff")
    with pytest.raises(InputError, match="depth 1 of kind 'gae'"):
        LinkPredictor(4, "gae", 1)
    with pytest.raises(InputError, match="unknown encoder 'gat'"):
        Encoder(4, kind="gat")
    with pytest.raises(InputError, match="features of 3 nodes, expected 14"):
        NCN(Encoder(4), predictor(), small_graph(), torch.ones(3, 4))
    with pytest.raises(InputError, match=r"fanouts \[2\], expected one for each of the encoder's 2"):
        NCN(Encoder(4, layers=2), predictor(), small_graph(), torch.ones(14, 4), fanouts=[2])
    with pytest.raises(InputError, match="unknown preset 'coral'"):
        preset("coral")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_trains_and_scores(name: str) -> None:
    split, data = split_links(ring(), seed=0), ring()
    features = torch.arange(40) if name in ("ppa", "ddi") else data.features
    assert features is not None
    for depth in (0, 1):
        model = PRESETS[name].build(split.graph, features, depth=depth, hidden=8)
        sum(model.losses(next(LinkBatches(split, 20).epoch(0))).values()).backward()  # type: ignore[union-attr]
        assert model.eval().score(PAIRS).shape == (5,)


def test_fit_selects_by_a_metric_of_the_modules_own() -> None:
    split, data = split_links(ring(), seed=0), ring()
    torch.manual_seed(0)
    model = preset("cora").build(split.graph, data.features, hidden=16)  # type: ignore[arg-type]
    fitted = pt.fit(model, LinkBatches(split, 40), split.validation, epochs=10, lr=0.01, monitor="links/auc")
    assert fitted.score == max(record["score"] for record in fitted.history)
    assert model.eval().evaluate(split.validation)["links"]["auc"] == pytest.approx(fitted.score)
    for monitor, words in (
        ("link/auc", "did you mean 'links'"),
        ("links/acc", "unknown metric 'acc'"),
        ("auc", "or 'TASK/"),
    ):
        with pytest.raises(InputError, match=words):
            pt.fit(model, LinkBatches(split, 40), split.validation, epochs=1, monitor=monitor)


def test_mixed_precision() -> None:
    from polytask.training import fabric

    split, data = split_links(ring(), seed=0), ring()
    model = preset("cora").build(split.graph, data.features, depth=1, hidden=16)  # type: ignore[arg-type]
    mixed = fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fitted = pt.fit(model, LinkBatches(split, 40), split.validation, epochs=3, lr=0.01, monitor="links/ap", fabric=mixed)
    assert fitted.steps == 6 and 0 < float(fitted.score or 0) <= 1


def test_the_comparison_on_a_small_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ring(150)
    (tmp_path / "planetoid").mkdir()
    for file in comparison.FILES:
        np.savez(tmp_path / file, edges=data.edges.numpy(), x=data.features.numpy())  # type: ignore[union-attr]
    monkeypatch.setattr(comparison, "HIDDEN", 8)
    monkeypatch.setattr(comparison, "BATCH", 150)
    measured = comparison.measure(0, tmp_path, epochs=2)
    assert {name for claim in PAPER.claims for name in claim.pair} <= set(measured)
    assert all(0 <= value <= 100 for value in measured.values())
    split = split_links(data, 0.1, 0.2, seed=0)
    counts = [common_neighbours(split.graph, pairs).degrees for pairs in split.test]
    bar = counts[1].sort(descending=True).values[min(99, len(counts[1]) - 1)]
    share = 1.0 if len(counts[1]) < 100 else float((counts[0] > bar).float().mean())
    assert measured["cora cn hits"] == pytest.approx(100 * share)
    assert len(plot({0: measured, 1: measured}).axes) == 2
