"""A graph and its tasks as a data set: targets, splits, what training may see, and what is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from tests.data.graph.molecules import write

from polytask.data import Batches
from polytask.data.graph import GraphData, GraphSchema, GraphTarget, graph_data_set, load_graph_tasks
from polytask.errors import InputError
from polytask.task import MISSING


def ring(nodes: int = 30, **given: object) -> GraphData:
    places = torch.arange(nodes)
    edges = torch.cat([torch.stack([places, (places + step) % nodes], 1) for step in (1, 2)])
    return GraphData("ring", nodes, edges.sort(1).values, torch.eye(nodes), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("node:club", ("node", "club", None)),
        ("graph:weight:regression", ("graph", "weight", "regression")),
        ("link:at:noon", ("link", "at:noon", None)),
        ("link:exists:binary", ("link", "exists", "binary")),
    ],
)
def test_targets_are_read(text: str, parts: tuple[str, str, str | None]) -> None:
    assert tuple(GraphTarget.parse(text)) == parts and GraphTarget.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("club", "task 'club', expected LEVEL:COLUMN"),
        ("node:", "task 'node:', expected LEVEL:COLUMN"),
        ("nodes:club", "unknown level 'nodes': did you mean 'node'"),
    ],
)
def test_targets_that_are_none(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        GraphTarget.parse(text)


def test_kinds_follow_from_labels() -> None:
    few, many = torch.arange(30) % 3, torch.arange(30)
    few[4] = -1
    labels = {"few": few, "two": torch.arange(30) % 2, "many": many, "real": torch.rand(30)}
    graph = ring(labels=labels, classes={"many": [str(2 * k) for k in range(30)]})
    found = {name: GraphTarget("node", name, None).labels(graph) for name in labels}
    assert {name: task.kind for name, (task, _) in found.items()} == {
        **{"few": "classification", "two": "binary"},
        **{"many": "regression", "real": "regression"},
    }
    assert found["few"][1][3:6].tolist() == [0, MISSING, 2] and found["many"][1][:3].tolist() == [0.0, 2.0, 4.0]
    assert GraphTarget("node", "few", "ordinal").labels(graph)[0].kind == "ordinal"
    with pytest.raises(InputError, match=r"3 classes .*, expected 2 for binary"):
        GraphTarget("node", "few", "binary").labels(graph)
    with pytest.raises(InputError, match="numbers with fractions, expected text or whole numbers for classification"):
        GraphTarget("node", "real", "classification").labels(graph)
    with pytest.raises(InputError, match=r"no label 'tow' of a node: did you mean 'two'"):
        GraphTarget("node", "tow", None).labels(graph)


def test_training_sees_its_own_edges_alone() -> None:
    graph = ring(60, labels={"half": (torch.arange(60) < 30).long()})
    data = graph_data_set(graph, ["node:half", "link:exists"])
    seen = data.encoder().graph.matrix  # type: ignore[union-attr, operator]
    linked = {tuple(edge) for edge in graph.edges.tolist()}
    asked: dict[str, set[tuple[int, int]]] = {}
    for part in ("train", "validation", "test"):
        (inputs, targets) = getattr(data, part)[:]
        links = inputs["level"] == 1
        yes = links & (targets["exists"] == 1)
        asked[part] = {tuple(sorted(pair)) for pair in inputs["ends"][yes].tolist()}  # type: ignore[misc]
        no = {tuple(sorted(pair)) for pair in inputs["ends"][links & (targets["exists"] == 0)].tolist()}
        assert len(no) == len(asked[part]) and not no & linked
        assert bool(targets["exists"][~links].isnan().all()) and bool(targets["half"][links].isnan().all())
    assert asked["train"] | asked["validation"] | asked["test"] == linked
    assert (len(asked["validation"]), len(asked["test"])) == (12, 24)
    kept = torch.stack([seen.rows, seen.columns], 1)
    assert {tuple(sorted(pair)) for pair in kept.tolist()} == asked["train"]


def test_pairs_that_are_not_linked_are_new_in_each_epoch() -> None:
    labels = (torch.arange(60) < 30).long()
    data = graph_data_set(ring(60, labels={"half": labels}), ["node:half", "link:exists"])
    seen = data.encoder().graph.matrix  # type: ignore[union-attr, operator]
    stream = Batches(data.train, 40, seed=5)
    epochs = []
    for number in (0, 1):
        inputs, targets = next(Batches(data.train, len(data.train), 5).epoch(number))
        no, yes = (inputs["ends"][targets["exists"] == value] for value in (0, 1))  # type: ignore[call-overload]
        assert len(no) == len(yes) == 84 and not bool(seen.find(*no.unbind(1))[0].any())
        assert bool(seen.find(*yes.unbind(1))[0].all())
        nodes = inputs["level"] == 0  # type: ignore[call-overload]
        assert torch.equal(targets["half"][nodes], labels[inputs["ends"][nodes, 0]].float())  # type: ignore[call-overload]
        epochs.append({tuple(pair) for pair in no.tolist()})
    assert len(epochs[0] & epochs[1]) < 20
    again = list(stream.epoch(1, skip=2))
    for (left, _), (right, _) in zip(list(stream.epoch(1))[2:], again, strict=True):
        assert torch.equal(left["ends"], right["ends"])  # type: ignore[call-overload]
    assert data.validation.redraw is None and data.test.redraw is None


def test_given_sets_of_nodes_are_kept() -> None:
    splits = {"train": torch.arange(10), "val": torch.arange(10, 14), "test": torch.arange(20, 30)}
    labels = torch.arange(30) % 2
    labels[3] = -1
    data = graph_data_set(ring(labels={"odd": labels}, splits=splits), ["node:odd"])
    assert data.train.inputs["ends"][:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]  # type: ignore[call-overload, index]
    assert len(data.validation) == 4 and len(data.test) == 10
    assert len(data.encoder().graph.matrix.columns) == 120  # type: ignore[union-attr, operator, arg-type]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": range(10), "val": range(0), "test": range(20, 30)}, "ring: set 'validation' has no node with a label"),
        ({"train": range(10), "val": range(9, 14), "test": range(20, 30)}, "ring: node 9 is in two of the sets train, val"),
    ],
)
def test_sets_of_nodes_that_cannot_be(splits: dict[str, range], words: str) -> None:
    given = {name: torch.tensor(list(nodes), dtype=torch.int64) for name, nodes in splits.items()}
    with pytest.raises(InputError, match=words):
        graph_data_set(ring(labels={"odd": torch.arange(30) % 2}, splits=given), ["node:odd"])


def test_a_graph_without_pairs_that_are_not_linked() -> None:
    edges = torch.combinations(torch.arange(8))
    with pytest.raises(InputError, match="full: 28 pairs that are not linked asked for, and the graph has 0"):
        graph_data_set(GraphData("full", 8, edges, torch.eye(8)), ["link:exists"])


def test_tables_of_several_graphs(tmp_path: Path) -> None:
    write(tmp_path)
    data = load_graph_tasks(tmp_path, ["graph:chord", "graph:size:regression", "link:bond", "node:shape"])
    assert [task.kind for task in data.tasks] == ["binary", "regression", "classification", "binary"]
    network = data.encoder()
    assert network.members_of.matrix.height == 40 and network.inwards.in_features == 1  # type: ignore[union-attr]
    levels = data.train.inputs["level"].bincount().tolist()  # type: ignore[call-overload, index]
    assert levels[2] == 32 and set(data.provenance["sha256"]) == {"edges.csv", "nodes.csv", "graphs.csv"}
    again = load_graph_tasks(tmp_path, ["graph:chord", "graph:size:regression", "link:bond", "node:shape"])
    assert torch.equal(again.test.inputs["ends"], data.test.inputs["ends"])  # type: ignore[call-overload, index]


def change(folder: Path, table: str, old: str, new: str) -> None:
    text = (folder / f"{table}.csv").read_text()
    assert old in text
    (folder / f"{table}.csv").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        ("edges", "g0n0,g0n1", "g0n0,g1n1", r"edges.csv: row 1: an edge between 'g0n0' and 'g1n1', expected two nodes of"),
        ("nodes", "g0n0,m0", "g0n0,m99", r"nodes.csv: row 1, column 'graph': unknown graph 'm99', expected one of the 40"),
        ("graphs", "m1,", "m0,", r"graphs.csv: row 2, column 'id': 'm0' repeats"),
        ("edges", "g0n1,g0n2,single", "g0n1,g0n0,single", r"edges.csv: column 'bond': row 2: another row of the same edge"),
    ],
)
def test_tables_that_contradict_themselves(tmp_path: Path, table: str, old: str, new: str, words: str) -> None:
    write(tmp_path)
    change(tmp_path, table, old, new)
    with pytest.raises(InputError, match=words):
        load_graph_tasks(tmp_path, ["graph:chord", "link:bond"])


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "no task was given"),
        (["node:half", "node:half"], "'half'"),
        (["graph:x"], "no label 'x' of a graph"),
        (["link:exists:regression"], "kind 'regression', expected binary"),
    ],
)
def test_tasks_that_are_none(tasks: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        graph_data_set(ring(labels={"half": (torch.arange(30) < 15).long()}), tasks)


def test_rows_of_a_table_are_questions() -> None:
    schema = GraphSchema({"club": "node", "exists": "link"}, ["ann", "bob", "7"])
    asked = schema.transform(pl.DataFrame({"source": ["ann", "bob"], "target": ["7", "ann"]}))
    assert asked["level"].tolist() == [1, 1] and asked["ends"].tolist() == [[0, 2], [1, 0]]
    assert schema.transform(pl.DataFrame({"id": [7]}))["ends"].tolist() == [[2, 2]]
    assert schema.tasks(["id", "age"]) == ["club"] and schema.tasks(["target", "source"]) == ["exists"]
    assert schema.misfits(pl.DataFrame({"id": ["ann", None, "eve"]})) == {
        1: "column 'id': missing, expected the id of a node of the model's graph",
        2: "column 'id': unknown node 'eve', expected the id of a node of the model's graph",
    }
    with pytest.raises(InputError, match="columns age, expected id, or source and target, or graph"):
        schema.tasks(["age"])
    with pytest.raises(InputError, match="asks about a graph in each row, and the model's tasks are of link and node"):
        schema.check_columns(["graph"])
    assert GraphSchema.from_json(schema.to_json()).to_json() == schema.to_json()
