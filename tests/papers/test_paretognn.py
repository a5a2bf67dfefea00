"""ParetoGNN: closed forms of losses and weights, what each task sees, and the claims' experiment on a small graph."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import polytask as pt
from polytask.balance import LossMGDA, mgda
from polytask.data.graph import GraphData, split_links
from polytask.errors import InputError
from polytask.nn.graph import CSR, adjacency, k_hop, subgraph, symmetric
from polytask.papers.paretognn import (
    PAPER,
    PRESETS,
    Encoder,
    Induced,
    LinkReconstruction,
    Neighbourhood,
    NodeGraph,
    NodeSubgraph,
    ParetoGNN,
    PretextBatches,
    comparison,
    evaluate_links,
    evaluate_nodes,
    pareto_gnn,
    preset,
    spectral_partition,
)
from polytask.papers.paretognn.picture import plot
from polytask.papers.paretognn.pretext import (
    Decorrelation,
    FeatureReconstruction,
    contrast,
    decorrelation,
    scaled_cosine_error,
)
from polytask.papers.paretognn.pretext.decorrelation import standardise


def communities(size: int = 30, count: int = 4, seed: int = 0) -> GraphData:
    """``count`` groups of ``size`` nodes with many edges inside and few across; words tell the groups in part."""
    key = torch.Generator().manual_seed(seed)
    group = torch.arange(size * count) // size
    chance = torch.where(group[:, None] == group, 0.25, 0.01)
    edges = (torch.rand(chance.shape, generator=key) < chance).triu(1).nonzero()
    words = (torch.rand(size * count, 40, generator=key) < 0.1 + 0.4 * (group[:, None] == torch.arange(40) // 10)).float()
    return GraphData("communities", size * count, edges, words, {"class": group})


def small(pretexts: tuple[str, ...] = ("link", "recon", "ming", "minsg", "decor"), **settings: object) -> ParetoGNN:
    data = communities()
    assert isinstance(data.features, Tensor)
    torch.manual_seed(0)
    return pareto_gnn(data.adjacency(), data.features, pretexts=pretexts, widths=(16, 8), hidden=8, **settings)  # type: ignore[arg-type]


# The weights


def test_orthonormal_gradients_share_the_weight() -> None:
    w = mgda.weights(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(w, torch.full((5,), 0.2, dtype=torch.float64))
    assert float(w @ w) == pytest.approx(0.2)


def test_opposite_gradients_are_stationary() -> None:
    g = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    rows = torch.stack([g, -g])
    w = mgda.weights(rows @ rows.T)
    torch.testing.assert_close(w, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert float((w @ rows).norm()) < 1e-12


def test_of_parallel_gradients_the_shorter_has_all_the_weight_unless_they_are_normalised() -> None:
    g = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    rows = torch.stack([g, 3 * g])
    losses = {"a": 1.0, "b": 1.0}
    torch.testing.assert_close(mgda.weights(rows @ rows.T), torch.tensor([1.0, 0.0], dtype=torch.float64))
    balancer = LossMGDA(normalise="l2")
    balancer.prepare(["a", "b"])
    w = balancer.weigh(rows @ rows.T, losses)
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert float(w.sum()) == pytest.approx(1) and float((w @ unit).norm()) == pytest.approx(1)  # any weights: a tie


def test_the_weights_of_a_step_are_optimal() -> None:
    """Of normalised gradients of the encoder alone: ``g_k . d = |d|^2`` where ``w_k > 0``, and no less elsewhere."""
    model = small()
    batch = next(PretextBatches(model.graph.matrix, 40).epoch(0))
    torch.manual_seed(1)
    losses = model.losses(batch)
    shared = list(model.shared_parameters())
    assert {id(p) for p in shared} == {id(p) for p in model.encoder.parameters()}
    grads = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()]
    unit = F.normalize(torch.stack([torch.cat([part.flatten() for part in grad]) for grad in grads]).double())
    w = mgda.weights(unit @ unit.T)
    gains, least = unit @ (w @ unit), float((w @ unit).square().sum())
    torch.testing.assert_close(gains[w > 1e-9], torch.full_like(gains[w > 1e-9], least), rtol=1e-6, atol=1e-9)
    assert float(gains.min()) >= least - 1e-9
    # The step that the balancer leaves is the gradient of the weighted losses, on heads too.
    expected = torch.autograd.grad(torch.stack([*losses.values()]) @ w.float(), list(model.parameters()), allow_unused=True)
    balancer = LossMGDA(normalise="l2")
    balancer.prepare(model.tasks)
    torch.manual_seed(1)
    balancer.step([lambda: model.losses(batch)], shared, Tensor.backward)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


# The losses


def test_the_scaled_cosine_error() -> None:
    x = torch.randn(5, 7)
    assert float(scaled_cosine_error(x, 3 * x)) == pytest.approx(0, abs=1e-9)
    assert float(scaled_cosine_error(x, -x)) == pytest.approx(8)
    assert float(scaled_cosine_error(torch.eye(4), torch.eye(4).roll(1, 0))) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("nodes", [1, 2, 6])
def test_the_contrast_of_identical_views_of_orthogonal_nodes(nodes: int, temperature: float) -> None:
    z = torch.eye(6)[:nodes] * 3
    expected = math.log(1 + 2 * (nodes - 1) * math.exp(-1 / temperature))
    assert float(contrast(z, z, temperature)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_contrast_by_its_sums() -> None:
    u, v, t = torch.randn(5, 3), torch.randn(5, 3), 0.5
    total = 0.0
    for one, other in ((u, v), (v, u)):
        for i in range(5):
            near = [math.exp(float(F.cosine_similarity(one[i], other[j], 0)) / t) for j in range(5)]
            own = [math.exp(float(F.cosine_similarity(one[i], one[j], 0)) / t) for j in range(5)]
            total -= math.log(near[i] / (sum(own) - own[i] + sum(near)))
    assert float(contrast(u, v, t)) == pytest.approx(total / 10, rel=1e-4)


def test_decorrelation_is_zero_for_equal_views_with_orthonormal_columns_alone() -> None:
    hadamard = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    z = hadamard.clone().requires_grad_()
    loss = decorrelation(z, z)
    loss.backward()
    assert float(loss.detach()) == 0 and z.grad is not None and bool(z.grad.isfinite().all())
    repeated = torch.stack([hadamard[:, 0]] * 2, 1)  # |I - 1 1'| = sqrt(2), twice
    assert float(decorrelation(repeated, repeated, 0.5)) == pytest.approx(math.sqrt(2))
    assert float(decorrelation(hadamard, -hadamard)) == pytest.approx(2 * math.sqrt(12) / 4)


def test_a_dead_column_has_a_gradient() -> None:
    x = torch.stack([torch.arange(4.0), torch.ones(4)], 1).requires_grad_()
    z = standardise(x)
    decorrelation(z, standardise(2 * x + 1)).backward()
    assert bool((z[:, 1] == 0).all()) and x.grad is not None and bool(x.grad.isfinite().all())
    torch.testing.assert_close(z[:, 0].std(), torch.tensor(1.0))


class Seen(nn.Module):
    """An encoder that passes features through, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[CSR, Tensor]] = []

    def forward(self, graph: CSR, x: Tensor, sums: Tensor | None = None) -> Tensor:
        self.calls.append((graph, x))
        return x


def test_links_by_hand() -> None:
    task, h = LinkReconstruction(3, 5), torch.randn(4, 3)
    positive, negative = torch.tensor([[0, 1]]), torch.tensor([[2, 3], [0, 2]])
    r = task.transform(h / h.norm(dim=1, keepdim=True))
    chance = [torch.sigmoid(task.output(r[i] * r[j])) for i, j in (*positive.tolist(), *negative.tolist())]
    expected = -(chance[0].log() + (1 - chance[1]).log() + (1 - chance[2]).log()) / 3
    torch.testing.assert_close(task.error(h, positive, negative), expected[0])


def test_masked_nodes_have_the_token_and_are_hidden_from_the_decoder() -> None:
    data, x = communities(), torch.randn(120, 6)
    task, encoder = FeatureReconstruction(6, 6, drop=0.0), Seen()
    nn.init.constant_(task.token, 7.0)
    torch.manual_seed(3)
    loss = task(encoder, data.adjacency(), x)
    masked = (encoder.calls[0][1] == 7.0).all(1)
    assert int(masked.sum()) == 60
    decoded = symmetric(data.adjacency()) @ (
        task.between(x.masked_fill(masked[:, None], 0.0)) @ task.decoder.linear.weight.T
    )
    torch.testing.assert_close(loss, scaled_cosine_error(decoded[masked], x[masked]))


def test_node_and_graph_by_hand() -> None:
    data, x = communities(), torch.randn(120, 6)
    task, encoder = NodeGraph(6), Seen()
    loss = task(encoder, data.adjacency(), x)
    weight, (true, false) = task.discriminator.weight, (call[1] for call in encoder.calls)
    assert not torch.equal(true, false) and torch.equal(true.sort(0).values, false.sort(0).values)
    assert float(weight.abs().max()) <= 6**-0.5
    chance = [torch.sigmoid(h @ weight @ true.mean(0).sigmoid()) for h in (true, false)]
    torch.testing.assert_close(loss, -chance[0].log().mean() - (1 - chance[1]).log().mean())


@pytest.mark.parametrize("make", [lambda: NodeSubgraph(6, 8, 0.3), lambda: Decorrelation(0.2)])
def test_views_drop_edges_and_mask_columns(make: object) -> None:
    data, x = communities(), torch.rand(120, 6) + 1
    encoder = Seen()
    task = make()  # type: ignore[operator]
    task(encoder, data.adjacency(), x)
    whole = len(data.adjacency().columns)
    for graph, features in encoder.calls:
        assert 0.5 * whole < len(graph.columns) < 0.95 * whole
        kept = (features != 0).all(0)
        assert bool(((features != 0).any(0) == kept).all())
    assert len(encoder.calls) == 2


# What a step sees


def test_parts_of_a_graph() -> None:
    graph, nodes = communities().adjacency(), torch.tensor([5, 70])
    assert Neighbourhood(above=120)(graph, nodes) is None and Induced(120)(graph, nodes) is None
    part = Neighbourhood(hops=1, above=119)(graph, nodes)
    assert part is not None and part.seeds == 2 and part.nodes[:2].tolist() == [5, 70]
    assert part.nodes.tolist() == k_hop(graph, nodes, 1).tolist()
    limited = Neighbourhood(hops=3, limit=4)(graph, nodes)
    assert limited is not None and len(limited.nodes) == 2 + 3 * 4
    induced = Induced(50)(graph, nodes)
    assert induced is not None and induced.seeds == 50 == len(induced.nodes.unique())


def test_a_loss_of_a_part_is_that_of_its_first_nodes() -> None:
    """Two hops around the seeds hold all that two convolutions without batch norm see of them."""
    graph, x, nodes = communities().adjacency(), torch.randn(120, 6), torch.tensor([5, 70, 20])
    encoder = nn.Module()
    propagation = symmetric(graph) @ torch.eye(120)

    def embed(part: CSR, features: Tensor) -> Tensor:
        return symmetric(part) @ features

    task = NodeSubgraph(6, 8, rate=0.0)
    part = k_hop(graph, nodes, 2)
    found = task(embed, subgraph(graph, part), x[part], 3)
    h = task.head((propagation @ x)[nodes])
    torch.testing.assert_close(found, contrast(h, h))
    assert not list(encoder.parameters())


def test_batches_are_nodes_in_order_edges_and_pairs() -> None:
    graph = communities().adjacency()
    batches = PretextBatches(graph, 50, edges=40, negatives=2, seed=3)
    found = list(batches.epoch(1))
    assert len(batches) == 2 == len(found)
    assert len(torch.cat([batch.nodes for batch in found]).unique()) == 100
    for batch in found:
        assert (
            batch.positive.shape == (40, 2) and batch.negative.shape == (80, 2) and len(batch.positive.unique(dim=0)) == 40
        )
        assert bool(graph.find(*batch.positive.unbind(1))[0].all())
        assert torch.equal(batch.negative[::2, 0], batch.positive[:, 0])
    again = next(batches.epoch(1, skip=1))
    assert all(torch.equal(a, b) for a, b in zip(again, found[1], strict=True))
    halves = [next(PretextBatches(graph, 50, 40, seed=3, rank=rank, world=2).epoch(1)) for rank in range(2)]
    assert sorted(torch.cat([half.nodes for half in halves]).tolist()) == sorted(found[0].nodes.tolist())
    assert not torch.equal(halves[0].positive, halves[1].positive)
    assert PretextBatches(graph, 50, 10**9).edges == len(graph.columns) // 2


def test_no_task_sees_a_held_out_link() -> None:
    data = communities()
    split = split_links(data, seed=0)
    assert isinstance(data.features, Tensor)
    model = pareto_gnn(split.graph, data.features, widths=(16, 8), hidden=8)
    held = torch.cat([split.validation.positive, split.test.positive])
    assert not bool(model.graph.matrix.find(*held.unbind(1))[0].any())
    for batch in PretextBatches(split.graph, 40).epoch(0):
        assert bool(split.graph.find(*batch.positive.unbind(1))[0].all())


# The model


def test_parameters_at_the_papers_scale() -> None:
    counts = []
    for scale in PAPER.scales:
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in scale.build().parameters()))
    assert counts == [389_378, 132_097 + 194_536 + 65_536 + 262_912]
    with torch.device("meta"):
        heads = [LinkReconstruction(256), FeatureReconstruction(256, 500), NodeGraph(256), NodeSubgraph(256)]
        sizes = [sum(parameter.numel() for parameter in head.parameters()) for head in heads]
    assert sizes == [132_097, 65_536 + 256 * 500 + 500 + 500, 65_536, 262_912]


def test_the_encoder_by_hand() -> None:
    graph, x = communities().adjacency(), torch.randn(120, 6)
    encoder = Encoder(6, (5, 4))
    matrix, h = symmetric(graph) @ torch.eye(120), x
    for layer, width in zip(encoder.convolutions, (5, 4), strict=True):
        h = matrix @ h @ layer.linear.weight.T + layer.bias  # type: ignore[union-attr, operator]
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        h = torch.where(h > 0, h, 0.25 * h)
        assert h.shape == (120, width)
    torch.testing.assert_close(encoder(graph, x), h, atol=1e-4, rtol=1e-4)


def test_self_loops_count_once() -> None:
    data = communities()
    assert isinstance(data.features, Tensor)
    loops = torch.arange(120)[:, None].expand(120, 2)
    looped = adjacency(torch.cat([data.edges, loops]), 120)
    made = []
    for graph in (data.adjacency(), looped):
        torch.manual_seed(0)
        made.append(pareto_gnn(graph, data.features, widths=(8,)))
    torch.testing.assert_close(made[0].embed(), made[1].embed())


def test_embeddings_are_by_the_graphs_own_statistics_whatever_was_seen_before() -> None:
    model = small()
    first = model.embed()
    model.losses(next(PretextBatches(model.graph.matrix, 40).epoch(0)))  # moves the running statistics
    torch.testing.assert_close(model.embed(), first)
    assert model.training and model.encoder.norms[0].momentum == 0.99  # type: ignore[union-attr, index]
    h = model.encoder(model.graph.matrix, model.features)
    torch.testing.assert_close(first, h.detach(), rtol=0.05, atol=0.05)  # but for the variance's correction


def test_embeddings_by_all_neighbours_of_chunks() -> None:
    model = small()
    with torch.no_grad():
        for norm in model.encoder.norms:  # type: ignore[union-attr]
            norm.momentum = 0.0
    whole = model.embed()
    chunked = model.embed(fanouts=[-1, -1], chunk=120)
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
    assert model.embed(fanouts=[3, 2], chunk=50).shape == (120, 8)


@pytest.mark.parametrize("pretexts", [("link",), ("recon", "ming"), ("link", "recon", "ming", "minsg", "decor")])
def test_fit_balances_whatever_tasks_there_are(pretexts: tuple[str, ...]) -> None:
    model = small(pretexts, decor=60, part=Neighbourhood(2, limit=20))
    before = model.embed()
    for balance in ("equal", "pcgrad", LossMGDA(normalise="l2")):
        fitted = pt.fit(model, PretextBatches(model.graph.matrix, 40), steps=3, balance=balance)
        assert tuple(fitted.history[-1]["loss"]) == pretexts
    assert not torch.allclose(model.embed(), before)


def test_mixed_precision() -> None:
    from polytask.training import fabric

    model = small()
    mixed = fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fitted = pt.fit(model, PretextBatches(model.graph.matrix, 40), steps=2, fabric=mixed)
    assert all(math.isfinite(loss) for loss in fitted.history[-1]["loss"].values())


def test_pre_training_finds_communities() -> None:
    """Without labels, from words that say little, embeddings tell groups apart that features alone do not."""
    data, model = communities(), small()
    batches = PretextBatches(model.graph.matrix, 60, edges=100)
    pt.fit(model, batches, steps=25, lr=0.02, balance=LossMGDA(normalise="l2"), schedule="constant")
    parts = spectral_partition(model.graph.matrix, 4)
    found = evaluate_nodes(model.embed(), data.labels["class"], parts, repeats=1, penalties=(16.0,))
    plain = evaluate_nodes(model.features, data.labels["class"], parts, repeats=1, penalties=(16.0,))
    assert found["cluster"] > plain["cluster"] and found["class"] > 0.9


def test_what_does_not_fit_is_refused() -> None:
    graph = communities().adjacency()
    with pytest.raises(InputError, match="did you mean 'minsg'"):
        pareto_gnn(graph, torch.ones(120, 4), pretexts=("minsgs",))
    with pytest.raises(InputError, match=r"features \(7, 4\), expected \(120, F\)"):
        pareto_gnn(graph, torch.ones(7, 4))
    with pytest.raises(InputError, match=r"mask 1\.0, expected"):
        FeatureReconstruction(4, 4, mask=1.0)
    with pytest.raises(InputError, match="batch size 121, expected 1 to 120"):
        PretextBatches(graph, 121)
    with pytest.raises(InputError, match=r"0 of .* edges in a step"):
        PretextBatches(graph, 20, 0)
    with pytest.raises(InputError, match="0 parts of 120 nodes"):
        spectral_partition(graph, 0)
    with pytest.raises(InputError, match=r"widths \[\], expected"):
        Encoder(4, ())
    with pytest.raises(InputError, match="unknown preset 'actors': did you mean 'actor'"):
        preset("actors")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name: str) -> None:
    with torch.device("meta"):
        encoder = Encoder(10, PRESETS[name].widths)
    assert encoder.width == 256 and PRESETS[name].lr <= 1e-3


# Evaluation


def test_parts_follow_communities_and_have_one_size() -> None:
    data = communities(size=60, count=2)
    parts = spectral_partition(data.adjacency(), 2)
    assert parts.bincount().tolist() == [60] * 2
    assert all(int(data.labels["class"][parts == part].bincount().max()) == 60 for part in range(2))
    path = spectral_partition(adjacency(torch.stack([torch.arange(99), torch.arange(1, 100)], 1), 100), 4)
    assert int((path[1:] != path[:-1]).sum()) == 3  # a path falls into its quarters
    uneven = spectral_partition(data.adjacency(), 7).bincount()
    assert int(uneven.max() - uneven.min()) <= 1 and len(uneven) == 7


def test_parts_of_a_graph_in_pieces() -> None:
    squares = torch.cat([torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]) + 4 * k for k in range(3)])
    parts = spectral_partition(adjacency(squares, 14), 2)  # and two nodes by themselves
    assert parts.bincount().tolist() == [7, 7]
    assert torch.equal(spectral_partition(adjacency(squares, 14), 14).sort().values, torch.arange(14))
    assert spectral_partition(adjacency(squares[:0], 5), 2).bincount().tolist() == [2, 3]


def test_the_probe_of_links_learns_from_training_edges() -> None:
    data = communities()
    split = split_links(data, seed=0)
    groups = F.one_hot(data.labels["class"]).float()
    found = evaluate_links(groups, split)
    same = [data.labels["class"][pairs].eq(data.labels["class"][pairs][:, :1]).all(1).float() for pairs in split.test]
    expected = float(0.5 * (1 + same[0].mean() - same[1].mean()))  # if links inside a group ranked alike
    assert found["auc"] == pytest.approx(expected, abs=0.02) and set(found) == {"auc", "hits@20"}
    assert evaluate_links(torch.ones(120, 3), split)["auc"] == pytest.approx(0.5)


@pytest.mark.soak
def test_the_comparison_on_a_small_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = communities(40)
    assert isinstance(data.features, Tensor)
    words = CSR.from_entries(*data.features.nonzero().unbind(1), data.features.shape)  # type: ignore[arg-type]
    (tmp_path / "planetoid").mkdir()
    np.savez(
        tmp_path / comparison.FILES["cora"],
        edges=data.edges.numpy(),
        x_indptr=words.offsets.numpy(),
        x_indices=words.columns.numpy(),
        x_shape=np.array(words.shape),
        x_values=np.zeros(0),
        y=data.labels["class"].numpy(),
    )
    monkeypatch.setattr(comparison, "WIDTHS", (8, 4))
    monkeypatch.setattr(comparison, "PROBE", 5)
    for name in ("citeseer", "actor"):
        monkeypatch.delitem(comparison.FILES, name)
    monkeypatch.setattr(comparison, "PENALTIES", (16.0,))
    measured = comparison.measure(0, tmp_path, steps=2)
    assert {name for claim in PAPER.claims for name in claim.pair} <= set(measured)
    ranks = [measured[f"{arm} rank"] for arm in comparison.ARMS]
    assert sum(ranks) == pytest.approx(len(ranks) * (len(ranks) + 1) / 2)
    assert all(0 <= value <= 100 for value in measured.values())
    assert len(plot({0: measured, 1: measured}).axes) == 5
