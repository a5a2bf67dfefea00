"""Another graph for a model: its features by name, its labels by the model's classes, and links that are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.data.graph.molecules import write

from polytask.data.graph import GraphData, GraphSchema, ask_about, load_graph, load_other
from polytask.errors import InputError
from polytask.task import MISSING, Task

TASKS = [
    Task.classification("club", classes=["chess", "go", "judo"]),
    Task.binary("member", classes=["no", "yes"]),
    Task.regression("age"),
    Task.binary("exists", classes=["no", "yes"]),
]
SCHEMA = GraphSchema({"club": "node", "member": "node", "age": "node", "exists": "link"}, ["a"])


def graph(**changed: object) -> GraphData:
    places = torch.arange(20)
    edges = torch.cat([torch.stack([places, (places + step) % 20], 1) for step in (1, 2)])
    labels = {
        "club": torch.tensor([0, 1, -1, *[0] * 17]),
        "member": torch.tensor([0, -1, *[0] * 18]),
        "age": torch.arange(20) % 2,
    }
    classes = {"club": ["judo", "chess"], "member": ["yes"], "age": ["18", "40"]}
    values = {"labels": labels, "classes": classes} | changed
    return GraphData("other", 20, edges, torch.eye(20), **values)  # type: ignore[arg-type]


def test_labels_are_those_of_the_models_classes() -> None:
    _, asked = ask_about(graph(), TASKS, SCHEMA)
    nodes = asked.inputs["level"] == 0  # type: ignore[call-overload, index]
    assert asked.inputs["ends"][nodes, 0].tolist() == list(range(20))  # type: ignore[call-overload, index]
    assert asked.targets["club"][nodes][:4].tolist() == [2, 0, MISSING, 2]
    assert asked.targets["member"][nodes][0] == 1 and bool(asked.targets["member"][nodes][1].isnan())
    assert asked.targets["age"][nodes][:3].tolist() == [18, 40, 18]


def test_links_that_are_asked_about_are_not_seen() -> None:
    whole = graph()
    seen, asked = ask_about(whole, TASKS, SCHEMA, seed=3)
    links = asked.inputs["level"] == 1  # type: ignore[call-overload, index]
    ends, exists = asked.inputs["ends"][links], asked.targets["exists"][links]  # type: ignore[call-overload, index]
    yes, no = ends[exists == 1], ends[exists == 0]
    assert len(yes) == len(no) == 12 and len(seen.columns) == 2 * 28
    assert not bool(seen.find(*yes.unbind(1))[0].any())
    assert bool(whole.adjacency().find(*yes.unbind(1))[0].all())
    assert not bool(whole.adjacency().find(*no.unbind(1))[0].any())
    assert bool(asked.targets["club"][links].eq(MISSING).all())
    only, _ = ask_about(whole, TASKS[:1], SCHEMA)
    assert len(only.columns) == 80


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"classes": {"club": ["judo", "ches"]}}, "other: label 'club' of a node: 'ches' is none of its classes: did you"),
        (
            {"labels": {"club": torch.rand(20)}},
            "other: label 'club' of a node: numbers with fractions, expected its classes",
        ),
        ({"classes": {"age": ["old", "young"]}}, "other: label 'age' of a node: names of classes, expected numbers"),
    ],
)
def test_labels_that_the_model_does_not_know(changed: dict[str, dict[str, object]], words: str) -> None:
    values = {name: {**getattr(graph(), name), **value} for name, value in changed.items()}
    with pytest.raises(InputError, match=words):
        ask_about(graph(**values), TASKS, SCHEMA)


def test_no_labels_at_all() -> None:
    with pytest.raises(InputError, match="other: no labels, expected some of club, member"):
        ask_about(graph(labels={}), TASKS[:2], SCHEMA)


def test_features_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    schema = GraphSchema.of(load_graph(tmp_path, labels=["shape"]), {"shape": "node", "chord": "graph", "bond": "link"})
    assert schema.features == ["weight"] and GraphSchema.from_json(schema.to_json()).features == ["weight"]
    text = (tmp_path / "nodes.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()]
    (tmp_path / "nodes.csv").write_text(
        "\n".join(f"{r[0]},{r[1]},{'noise' if i == 0 else i},{r[2]}" for i, r in enumerate(rows))
    )
    other = load_other(tmp_path, schema)
    assert other.features is not None and other.features.shape[1] == 1 and other.features[1] == 7  # type: ignore[index]
    assert not other.labels and list(other.graph_labels) == ["chord"] and list(other.edge_labels) == ["bond"]
    (tmp_path / "nodes.csv").write_text(text.replace("weight", "wieght"))
    with pytest.raises(InputError, match=r"nodes.csv: no column 'weight': did you mean 'wieght'"):
        load_other(tmp_path, schema)
