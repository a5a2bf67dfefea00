"""OFA: the structure of prompt graphs, the network's closed forms, episodes, and the claims' experiment in small."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from tests.papers.real_data import folder_with
from torch import Tensor

import polytask as pt
from polytask.data.graph import GraphData
from polytask.errors import InputError
from polytask.papers import _minilm
from polytask.papers.ofa import (
    OFA,
    PAPER,
    Episodes,
    Prompt,
    PromptGraph,
    PromptNetwork,
    RGCNEdgeConv,
    TextGraph,
    TextTask,
    comparison,
    joined,
    one_hot,
    prompted,
    prompted_episodes,
    return_chances,
    with_negations,
)
from polytask.papers.ofa.domains import FILES
from polytask.papers.ofa.model import quality
from polytask.papers.ofa.network import Messages
from polytask.papers.ofa.picture import plot

WIDTH = 6


def embed(texts: Any) -> Tensor:
    """A fixed random vector for each text."""
    rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(hash_of(text))) for text in texts]
    return torch.stack(rows)


def hash_of(text: str) -> int:
    value = 7
    for letter in text:
        value = (value * 131 + ord(letter)) % (2**31 - 1)
    return value


def prompt(classes: int) -> Prompt:
    return Prompt.of("do it", [f"class {k}" for k in range(classes)], embed)


def words(nodes: int = 20, triples: int = 50, seed: int = 0) -> tuple[TextGraph, Tensor]:
    """A graph with three relations, some of whose triples have their mirror image, and the triples."""
    key = torch.Generator().manual_seed(seed)
    rows = torch.randint(nodes, (triples, 3), generator=key)
    rows[:, 1] %= 3
    rows = rows[rows[:, 0] != rows[:, 2]]
    rows = torch.unique(torch.cat([rows, rows[:10].flip(1).roll(0, 1)]), dim=0)
    rows = rows[(rows[:, 0] != rows[:, 2]) & (rows[:, 1] < 3)]
    data = GraphData("words", nodes, rows[:, [0, 2]], edge_types=rows[:, 1], directed=True)
    return TextGraph.build(data, [f"word {k}" for k in range(nodes)], ["is", "has", "likes"], embed=embed), rows


def links(limit: int | None = None, **settings: Any) -> TextTask:
    graph, rows = words()
    return TextTask("links", graph, rows[:, [0, 2]], one_hot(rows[:, 1], 3), prompt(3), limit=limit, **settings)


def nodes(classes: int = 2, limit: int | None = None, **settings: Any) -> TextTask:
    graph, _ = words()
    labels = one_hot(torch.arange(20) % classes, classes)
    return TextTask("nodes", graph, torch.arange(20), labels, prompt(classes), limit=limit, **settings)


def molecules(sizes: tuple[int, ...] = (3, 1, 5, 4), questions: int = 1, metric: Any = "auc") -> TextTask:
    """Rings of atoms, and a single one."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    edges = [[a + k, a + (k + 1) % n] for a, n in zip(starts.tolist(), sizes, strict=False) for k in range(n) if n > 1]
    data = GraphData("rings", int(starts[-1]), torch.tensor(edges), edge_types=torch.arange(len(edges)) % 2)
    atoms = torch.arange(int(starts[-1])) % 3
    graph = TextGraph.build(data, ["C", "N", "O"], ["single", "double"], node_of=atoms, starts=starts, embed=embed)
    labels = with_negations((torch.arange(len(sizes) * questions) % 2).view(-1, questions).float())
    return TextTask("rings", graph, torch.arange(len(sizes)), labels, prompt(2 * questions), "graph", metric=metric)


def network(**settings: Any) -> PromptNetwork:
    torch.manual_seed(0)
    made = PromptNetwork(WIDTH, 8, 3, **settings)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return made.eval()


# The structure of prompt graphs


@pytest.mark.parametrize("task", [nodes(4), links(), molecules(questions=2)], ids=lambda task: task.name)
def test_a_sample_has_a_node_of_interest_and_a_node_for_each_class(task: TextTask) -> None:
    samples = torch.tensor([2, 0, 3])
    parts, graph = task.parts(samples), prompted(task, samples)
    targets, classes = len(parts.targets), len(task.prompt.classes)
    assert len(graph.nodes) == len(parts.texts) + 3 * (1 + classes)
    back = 0 if task.level == "graph" else 3 * classes
    assert len(graph.edges) - len(parts.edges) == 2 * targets + 3 * classes + back
    counts = torch.bincount(graph.types, minlength=5).tolist()
    assert counts == [len(parts.edges), targets, 3 * classes, targets, back]
    # Each edge is where its type says that it is, within one sample.
    assert torch.equal(graph.owner[graph.edges[:, 0]], graph.owner[graph.edges[:, 1]])
    kind = torch.cat([torch.zeros(len(parts.texts)), torch.ones(3), torch.full((3 * classes,), 2.0)])
    for number, (source, target) in enumerate([(0, 0), (0, 1), (1, 2), (1, 0), (2, 1)]):
        ends = graph.edges[graph.types == number]
        assert bool((kind[ends[:, 0]] == source).all() and (kind[ends[:, 1]] == target).all())
    assert torch.equal(graph.sentences[graph.nodes[graph.classes]], task.prompt.classes.repeat(3, 1))
    assert torch.equal(graph.sentences[graph.nodes[kind == 1]], task.prompt.task.expand(3, -1))


def test_nodes_and_edges_have_their_sentences_and_the_other_way_the_inverse() -> None:
    data = GraphData("g", 3, torch.tensor([[0, 1], [2, 1]]), edge_types=torch.tensor([1, 0]), directed=True)
    graph = TextGraph.build(data, ["a", "b", "a"], ["r", "s"], embed=embed)
    assert torch.equal(graph.table[graph.nodes], embed(["feature node. a", "feature node. b", "feature node. a"]))
    assert len(graph.table) == 2 + 4
    entries = {
        (int(source), int(target)): graph.table[text]
        for source, target, text in zip(graph.incoming.columns, graph.incoming.rows, graph.incoming.values, strict=True)  # type: ignore[arg-type]
    }
    texts = {(0, 1): "s", (1, 0): "inverse relation of s", (2, 1): "r", (1, 2): "inverse relation of r"}
    assert entries.keys() == texts.keys()
    assert all(torch.equal(entries[ends], embed([f"feature edge. {text}"])[0]) for ends, text in texts.items())
    plain = TextGraph.build(GraphData("g", 2, torch.tensor([[0, 1], [1, 1]])), ["a", "b"], embed=embed)
    assert plain.incoming.columns.tolist() == [1, 0, 1]  # both ways, and the loop once
    assert torch.equal(plain.table[plain.incoming.values], embed(["feature edge. is linked to"] * 3))  # type: ignore[index]


@pytest.mark.parametrize("hops", [1, 2])
def test_a_link_sees_no_edge_between_its_own_nodes(hops: int) -> None:
    task = links(hops=hops)
    known = {(int(h), int(t)) for h, t in zip(task.graph.incoming.columns, task.graph.incoming.rows, strict=True)}
    pairs = task.targets.tolist()
    assert all((h, t) in known and (t, h) in known for h, t in pairs)  # every triple is in the graph, as is its inverse
    theirs = nx.Graph(list(known))
    for sample, (h, t) in enumerate(pairs):
        parts = task.parts(torch.tensor([sample]))
        ends = [parts.texts[parts.edges[:, k]].tolist() for k in (0, 1)]  # texts are the nodes' own numbers here
        near = {v for s in (h, t) for v in nx.single_source_shortest_path_length(theirs, s, cutoff=hops)}
        assert parts.texts[:2].tolist() == [h, t] and set(parts.texts.tolist()) == near
        expected = [
            (int(s), int(d))
            for s, d in zip(task.graph.incoming.columns, task.graph.incoming.rows, strict=True)
            if {int(s), int(d)} <= near and {int(s), int(d)} != {h, t}
        ]
        assert sorted(zip(*ends, strict=True)) == sorted(expected)


def test_graphs_are_seen_whole() -> None:
    task = molecules()
    assert task.graph.starts is not None
    parts = task.parts(torch.tensor([2, 1, 2]))
    assert parts.owner.tolist() == [0] * 5 + [1] + [2] * 5 and torch.equal(parts.targets, torch.arange(11))
    assert torch.equal(parts.texts, task.graph.nodes[[4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8]])
    ring = sorted([k, (k + step) % 5] for k in range(5) for step in (1, 4))
    assert sorted(parts.edges.tolist()) == sorted(ring + [[a + 6, b + 6] for a, b in ring])


def test_edges_can_be_left_out_of_the_graph() -> None:
    graph, rows = words()
    less = graph.without(rows[:4, [2, 0]])
    gone = {frozenset(pair) for pair in rows[:4, [0, 2]].tolist()}
    left = [frozenset(pair) for pair in torch.stack([less.incoming.columns, less.incoming.rows], 1).tolist()]
    whole = [frozenset(pair) for pair in torch.stack([graph.incoming.columns, graph.incoming.rows], 1).tolist()]
    assert sorted(map(sorted, left)) == sorted(sorted(pair) for pair in whole if pair not in gone)


# The network


def test_with_one_relation_and_nothing_else_a_layer_is_the_mean_of_neighbours() -> None:
    conv = RGCNEdgeConv(4, 3, relations=1)
    torch.nn.init.zeros_(conv.root)
    x, edges = torch.randn(5, 4), torch.tensor([[0, 1], [2, 1], [3, 1], [1, 4], [4, 4]])
    out = conv(x, torch.zeros(5, 4), Messages.of(edges, torch.zeros(5, dtype=torch.int64), 5, 1))
    torch.testing.assert_close(out[1], x[[0, 2, 3]].relu().mean(0) @ conv.weight[0])
    torch.testing.assert_close(out[4], x[[1, 4]].relu().mean(0) @ conv.weight[0])
    assert not out[[0, 2, 3]].any()


def test_a_layer_by_a_loop_and_what_no_edge_leads_to_has_the_roots_part_alone() -> None:
    conv = RGCNEdgeConv(4, 3)
    torch.nn.init.normal_(conv.bias)
    x, e = torch.randn(9, 4), torch.randn(30, 4)
    edges, types = torch.randint(8, (30, 2)), torch.randint(5, (30,))
    edges[edges[:, 1] == 2, 1] = 3
    out = conv(x, e, Messages.of(edges, types, 9, 5))
    for i in range(9):
        expected = x[i] @ conv.root + conv.bias
        for r in range(5):
            own = [(x[s] + e[k]).relu() for k, (s, t) in enumerate(edges.tolist()) if t == i and types[k] == r]
            expected = expected + (torch.stack(own).mean(0) @ conv.weight[r] if own else 0)
        torch.testing.assert_close(out[i], expected)
    for i in (2, 8):
        torch.testing.assert_close(out[i], x[i] @ conv.root + conv.bias)


@pytest.mark.parametrize("task", [nodes(4), links(), molecules(questions=2)], ids=lambda task: task.name)
def test_logits_follow_the_order_of_the_classes_and_twins_have_the_same(task: TextTask) -> None:
    model = network()
    count = len(task.prompt.classes)

    def logits(order: list[int]) -> Tensor:
        chosen = replace(task, labels=task.labels[:, order], prompt=task.prompt.only(torch.tensor(order)), metric="accuracy")
        return OFA(model, [chosen]).score(task.name, torch.arange(4))

    plain, order = logits(list(range(count))), [2, 0, *range(3, count), 1]
    torch.testing.assert_close(logits(order), plain[:, order])
    assert float(plain.std(1).min()) > 1e-4
    doubled = logits([*range(count), 1])
    torch.testing.assert_close(doubled[:, -1], doubled[:, 1])
    if task.level == "graph":  # classes only listen, so that a further one changes nothing
        torch.testing.assert_close(doubled[:, :-1], plain)


@pytest.mark.parametrize("settings", [{}, {"positions": 3}, {"norm": "layer"}, {"attend": False}, {"projected": True}])
def test_samples_do_not_see_one_another_nor_other_tasks(settings: dict[str, Any]) -> None:
    tasks = [nodes(3), links(), molecules()]
    model = OFA(network(**settings), tasks)
    together = model({task.name: torch.arange(4) for task in tasks})
    for task in tasks:
        each = torch.cat([model({task.name: torch.tensor([k])})[task.name] for k in range(4)])
        torch.testing.assert_close(together[task.name], each, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.score(task.name, torch.arange(4), chunk=3), each, atol=1e-5, rtol=1e-4)


def test_pooling_weighs_layers_by_their_products_with_the_input() -> None:
    model = network()
    first, outputs = torch.randn(2, 8), torch.randn(2, 3, 8)
    expected = torch.stack([
        sum(w * h for w, h in zip(torch.softmax(hs @ q / math.sqrt(8), 0), hs, strict=True))  # type: ignore[misc]
        for q, hs in zip(first, outputs, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(model._pooled(first, outputs), expected)
    torch.testing.assert_close(model._pooled(0 * first, outputs), outputs.mean(1))


def test_chances_to_return_are_diagonals_of_powers() -> None:
    edges = torch.unique(torch.randint(5, (9, 2), generator=torch.Generator().manual_seed(0)), dim=0)
    edges = torch.cat([edges, torch.tensor([[5, 6], [6, 5]])])
    owner = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    dense = torch.zeros(7, 7)
    dense[edges[:, 0], edges[:, 1]] = 1
    walk = dense / dense.sum(1, keepdim=True).clamp(min=1)
    expected = torch.stack([torch.linalg.matrix_power(walk, k).diagonal() for k in (1, 2, 3)], 1)
    torch.testing.assert_close(return_chances(edges, owner, 3), expected)
    mixed = torch.tensor([6, 2, 0, 5, 1, 4, 3])  # nodes of a sample need not stand together
    place = mixed.argsort()
    torch.testing.assert_close(return_chances(place[edges], owner[mixed], 3), expected[mixed])


def test_parameters_at_the_papers_scale() -> None:
    counts = {}
    for scale in PAPER.scales:
        with torch.device("meta"):
            counts[scale.parameters] = sum(parameter.numel() for parameter in scale.build().parameters())
    assert counts == {28_925_953: 28_925_953, 27_746_305: 27_746_305}


# Losses


def test_missing_labels_do_not_count() -> None:
    task = molecules(questions=2)
    model = OFA(network(), [task, nodes()])
    labels = task.labels.clone()
    labels[0, 1], labels[2] = torch.nan, torch.nan
    logits = model({"rings": torch.arange(4)})["rings"]
    known = ~labels.isnan()
    chances = logits.sigmoid().clamp(1e-7, 1 - 1e-7)
    expected = -(labels * chances.log() + (1 - labels) * (1 - chances).log())[known].mean()
    batch = {"rings": (torch.arange(4), labels)}
    torch.testing.assert_close(model.losses(batch)["rings"], expected)
    assert model.label_counts(batch) == {"rings": 4 * 4 - 5, "nodes": 4 * 4 - 5}
    assert model.losses({"rings": (torch.arange(2), torch.full((2, 4), torch.nan))}) == {}


def test_losses_are_parts_of_the_mean_over_all_class_nodes_of_the_batch() -> None:
    tasks = [nodes(10), molecules()]
    model = OFA(network(), tasks)
    labels = tasks[1].labels.clone()
    labels[1] = torch.nan
    batch = {"nodes": (torch.arange(6), tasks[0].labels[:6]), "rings": (torch.arange(4), labels)}
    logits = model({name: samples for name, (samples, _) in batch.items()})
    flat, known = (
        torch.cat([logits[name].flatten() for name in batch]),
        torch.cat([tasks[0].labels[:6].flatten(), labels.flatten()]),
    )
    there = ~known.isnan()
    losses = model.losses(batch)
    torch.testing.assert_close(sum(losses.values()), F.binary_cross_entropy_with_logits(flat[there], known[there]))
    rings = F.binary_cross_entropy_with_logits(logits["rings"][[0, 2, 3]], labels[[0, 2, 3]], reduction="sum")
    torch.testing.assert_close(losses["rings"], rings / (6 * 10 + 3 * 2))


def test_batches_of_one_step_are_as_one_batch() -> None:
    found = []
    for turns, accumulate in ((16, 1), (4, 4)):
        tasks = [nodes(3, hops=1), molecules()]
        torch.manual_seed(0)
        model = OFA(PromptNetwork(WIDTH, 8, 3, dropout=0.0, norm="layer"), tasks)
        train = pt.Mixture({task.name: task.examples() for task in tasks}, batch_size=1, turns=turns, length=accumulate)
        pt.fit(model, train, steps=1, accumulate=accumulate, optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_a_question_and_its_negation_change_places_with_the_answer() -> None:
    task = molecules()
    model = network()
    swapped = task.prompt.only(torch.tensor([1, 0]))
    flipped = replace(task, labels=with_negations(1 - task.labels[:, 0]), prompt=swapped)
    one, other = (OFA(model, [each]) for each in (task, flipped))
    data = {"rings": task.examples()}, {"rings": flipped.examples()}
    batches = [{"rings": (torch.arange(4), each.labels)} for each in (task, flipped)]
    torch.testing.assert_close(one.losses(batches[0]), other.losses(batches[1]))
    assert one.evaluate(data[0]) == other.evaluate(data[1])
    logits = torch.randn(30, 2)
    labels = with_negations(torch.randint(2, (30,)))
    found = quality(logits, labels, "auc")
    assert quality(logits, labels.flip(1), "auc") == pytest.approx(1 - found)
    assert quality(logits.flip(1), labels.flip(1), "auc") == pytest.approx(found)
    assert quality(logits.softmax(1).logit(), labels, "auc") == pytest.approx(found)


def test_quality_is_the_mean_over_questions_that_can_be_told() -> None:
    labels = with_negations(torch.tensor([[1.0, 1.0], [0.0, 1.0], [torch.nan, 1.0], [0.0, 1.0]]))
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [9.0, 0.0], [3.0, 0.0]])
    assert quality(torch.cat([logits, 0 * logits], 1), labels, "auc") == 0.5
    labels = one_hot(torch.tensor([1, -1, 0]), 2)
    assert quality(torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), labels, "accuracy") == 0.5
    assert math.isnan(quality(torch.zeros(1, 2), labels[1:2], "accuracy"))


@pytest.mark.parametrize("settings", [{}, {"norm": "layer", "positions": 2, "projected": True}])
def test_one_network_learns_nodes_links_and_graphs_together(settings: dict[str, Any]) -> None:
    graph, rows = words(60, 200)
    by_text = (embed([f"feature node. word {k}" for k in range(60)])[:, 0] > 0).long()
    tasks = [
        TextTask("nodes", graph, torch.arange(60), one_hot(by_text, 2), prompt(2), hops=1, limit=5),
        TextTask("links", graph, rows[:, [0, 2]], one_hot(by_text[rows[:, [0, 2]]].amax(1), 2), prompt(2), hops=1, limit=5),
        molecules((3, 4, 5, 6, 3, 4, 5, 6), metric="accuracy"),
    ]
    torch.manual_seed(0)
    model = OFA(PromptNetwork(WIDTH, 16, 3, dropout=0.0, **settings), tasks)
    data = {task.name: task.examples() for task in tasks}
    rule = pt.data.Multipliers(
        {"nodes": 2.0, "links": 1.0, "rings": 4.0}, goals={"nodes": pt.data.Goal("accuracy", above=2)}
    )
    train = pt.Mixture(data, rule, batch_size=1, turns=16)
    before = model.eval().evaluate(data)
    fitted = pt.fit(model, train, data, epochs=6, lr=0.02, monitor="all/mean", evaluate_every=len(train))
    after = model.eval().evaluate(data)
    assert after["nodes"]["accuracy"] > 0.9 > before["nodes"]["accuracy"] and after["links"]["accuracy"] > 0.8
    assert set(fitted.history[0]["loss"]) == set(data)


def test_in_half_precision() -> None:
    task = links()
    model = OFA(network(positions=2).train(), [task])
    batch = {"links": (torch.arange(8), task.labels[:8])}
    whole = model.losses(batch)["links"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.losses(batch)["links"]
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, whole, atol=0.05, rtol=0.05)
    assert model.bfloat16().losses(batch)["links"].isfinite()


# Episodes


@pytest.mark.parametrize("task", [nodes(5), links()], ids=lambda task: task.name)
@pytest.mark.parametrize("shots", [0, 2])
def test_an_episodes_graph(task: TextTask, shots: int) -> None:
    ways, count = 3, 2
    episodes, targets = next(iter(Episodes(task, ways=ways, shots=shots, batch_size=count, length=1).epoch(0)))
    graph = prompted_episodes(task, episodes)
    centres = (graph.nodes == int(graph.nodes[-count * ways - 1])).nonzero()[:, 0]
    assert len(centres) == count * (ways * shots + 1)
    kinds = torch.bincount(graph.types, minlength=5).tolist()
    assert kinds[2] == count * ways and kinds[4] == count * ways * shots
    assert kinds[3] == (kinds[1] if task.level == "link" else 0)
    classes = graph.classes.view(count, ways)
    query, shown = graph.edges[graph.types == 2], graph.edges[graph.types == 4]
    assert query[:, 0].view(count, ways).unique(dim=1).shape == (count, 1)
    assert torch.equal(query[:, 1].view(count, ways), classes)
    texts = graph.sentences[graph.edge_texts]
    assert bool((texts[graph.types == 2] == task.prompt.query).all())
    assert bool((texts[graph.types == 4] == task.prompt.support).all())
    # A support leads to its own class.
    place = (shown[:, 1][:, None] == graph.classes).long().argmax(1)
    assert torch.equal(episodes["classes"].flatten()[place], task.labels[episodes["support"].flatten()].argmax(1))
    true = episodes["classes"][torch.arange(count), targets.argmax(1)]
    assert torch.equal(true, task.labels[episodes["query"]].argmax(1))
    assert torch.equal(graph.owner[graph.classes], torch.arange(count).repeat_interleave(ways))


def test_episodes_do_not_see_one_another_and_supports_matter() -> None:
    task = nodes(4)
    model = OFA(network(), [task])
    episodes, _ = next(iter(Episodes(task, ways=3, shots=2, batch_size=4, length=1).epoch(0)))
    together = model({"nodes": episodes})["nodes"]
    each = torch.cat([model({"nodes": {k: v[i : i + 1] for k, v in episodes.items()}})["nodes"] for i in range(4)])
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-4)
    swapped = {**episodes, "support": episodes["support"].flip(1)}
    assert not torch.allclose(model({"nodes": swapped})["nodes"], together)


def test_episodes_are_drawn_without_repetition_and_shared_by_processes() -> None:
    task = nodes(4)
    stream = Episodes(task, ways=(2, 3), shots=(0, 1, 3), batch_size=6, length=40, seed=3)
    shapes = set()
    for episodes, targets in stream.epoch(1):
        _, ways, shots = episodes["support"].shape
        shapes.add((ways, shots))
        assert targets.sum(1).tolist() == [1.0] * 6
        for k in range(6):
            shown = episodes["support"][k].flatten().tolist()
            assert len({*shown, int(episodes["query"][k])}) == ways * shots + 1
            assert len(set(episodes["classes"][k].tolist())) == ways
    assert shapes == {(n, k) for n in (2, 3) for k in (0, 1, 3)}
    shares = [Episodes(task, ways=(2, 3), shots=(0, 1, 3), batch_size=6, length=40, seed=3, rank=r, world=2) for r in (0, 1)]
    for whole, *parts in zip(stream.epoch(1, 30), *(share.epoch(1, 30) for share in shares), strict=True):
        for name, value in whole[0].items():
            assert torch.equal(value[::2], parts[0][0][name]) and torch.equal(value[1::2], parts[1][0][name])
        assert torch.equal(whole[1][1::2], parts[1][1])
    few = Episodes(task, samples=torch.arange(9), ways=1, shots=2, batch_size=50, length=1)
    assert few.classes.tolist() == [0]  # the others have two samples among these
    queries = next(iter(few.epoch(0)))[0]["query"]
    assert set(queries.tolist()) == {0, 4, 8}


def test_a_network_trains_on_episodes_beside_an_ordinary_task() -> None:
    task, episodic = (
        nodes(2),
        TextTask("few", *(getattr(links(), f) for f in ("graph", "targets", "labels", "prompt")), hops=1),
    )
    torch.manual_seed(0)
    model = OFA(PromptNetwork(WIDTH, 8, 3), [task, episodic])
    train = {"nodes": task.examples(), "few": Episodes(episodic, ways=2, shots=(0, 1, 2), length=4)}
    fitted = pt.fit(model, pt.Mixture(train, "uniform", batch_size=8), steps=8)
    assert set(fitted.history[-1]["loss"]) <= {"nodes", "few"}
    tested = list(Episodes(episodic, ways=2, shots=1, length=3).epoch(0))
    assert 0 <= model.eval().evaluate({"few": tested})["few"]["accuracy"] <= 1


# What cannot be


def test_what_cannot_be_is_refused() -> None:
    graph, _ = words()
    two, some = prompt(2), torch.arange(3)
    labels = one_hot(some % 2, 2)
    for settings, said in (
        ((graph, some, labels[:2], two), r"targets \(3,\) and labels \(2, 2\), expected \(3,\) and \(3, 2\), a node task"),
        ((graph, some + 18, labels, two), "sample 2: 20, expected 0 to 19"),
        ((graph, torch.tensor([[1, 2], [3, 3], [4, 5]]), labels, two), "sample 1: a link of node 3 to itself"),
        ((graph, some, labels, two, "graf"), "unknown level 'graf'"),
        ((graph, some, labels, two, "graph"), "words is one graph, expected starts="),
        ((graph, some, one_hot(some, 3), prompt(3), None, 2, 100, "auc"), "auc of 3 classes, expected two for each"),
    ):
        with pytest.raises(InputError, match=said):
            TextTask("t", *settings)  # type: ignore[arg-type]
    task = TextTask("t", graph, some, labels, two)
    with pytest.raises(InputError, match="sentences of width 6 and 6, expected 9"):
        OFA(PromptNetwork(9, 8, 2), [task])
    with pytest.raises(InputError, match="expected at least one, and distinct names"):
        OFA(network(), [task, task])
    with pytest.raises(InputError, match="unknown task 'u'"):
        OFA(network(), [task])({"u": some})
    with pytest.raises(InputError, match=r"0 classes with 5 samples or more, expected at least 2"):
        Episodes(task, ways=2)
    with pytest.raises(InputError, match="ways"):
        Episodes(task, ways=0)
    with pytest.raises(InputError, match="norm 'none'"):
        PromptNetwork(6, norm="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no classes"):
        Prompt.of("t", [], embed)
    data = GraphData("g", 3, torch.tensor([[0, 1], [1, 2]]), edge_types=torch.tensor([0, 1]))
    for given, said in (
        ({"nodes": ["a"] * 3}, "types of edges from 0 to 1, 1 texts"),
        ({"nodes": ["a"] * 2, "edges": ["r", "s"]}, "2 texts for 3 nodes|1 texts for 3 nodes"),
        (
            {"nodes": ["a"] * 3, "edges": ["r", "s"], "starts": torch.tensor([0, 2, 3])},
            r"edge 2: nodes \[1, 2\] are of different",
        ),
    ):
        with pytest.raises(InputError, match=said):
            TextGraph.build(data, **given, embed=embed)  # type: ignore[arg-type]


# The claims


@pytest.mark.soak
def test_the_claims_experiment_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(FILES)
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path))
    monkeypatch.setattr(_minilm, "_embedded", random_sentences)
    for name, value in {
        "TRAIN": 70,
        "VALIDATION": 20,
        "TEST": 30,
        "BATCH": 8,
        "HIDDEN": 8,
        "LAYERS": 2,
        "EPISODES": 50,
    }.items():
        monkeypatch.setattr(comparison, name, value)
    found = comparison.measure(0, folder, epochs=1, steps=2)
    named = {name for claim in PAPER.claims for name in (claim.method, claim.baseline)}
    assert named <= found.keys() and all(0 <= value <= 100 for value in found.values())
    assert found["hiv majority"] == found["bbbp majority"] == 50
    figure = plot({0: found, 1: found})
    assert len(figure.axes) == 2


def random_sentences(texts: Any, tokens: int) -> dict[str, Tensor]:
    key = torch.Generator().manual_seed(hash_of(texts[0]))
    return {"embeddings": torch.randn(len(texts), _minilm.WIDTH, generator=key)}


def test_graphs_are_joined_side_by_side() -> None:
    graphs = [prompted(task, torch.arange(3)) for task in (nodes(), links(), molecules())]
    whole = joined(graphs)
    assert len(whole.nodes) == sum(len(graph.nodes) for graph in graphs) and int(whole.owner.max()) == 8
    sentences = torch.cat([graph.sentences[graph.nodes] for graph in graphs])
    assert torch.equal(whole.sentences[whole.nodes], sentences)
    assert isinstance(whole, PromptGraph) and joined(graphs[:1]) is graphs[0]
