"""Graphs on the command line: fitted, measured, asked, compared, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from tests import small_table
from tests.cli.command import polytask, refused
from tests.data.graph.molecules import write

from polytask.nn.graph import GraphEncoder
from polytask.predicting import on_graph
from polytask.store import load

TASKS = ("graph:chord", "link:exists", "link:bond", "node:shape")


def tasks() -> list[str]:
    return [word for task in TASKS for word in ("--task", task)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "molecules").mkdir()
    write(folder / "molecules")
    ran = polytask("fit", "--graph", folder / "molecules", *tasks(), "-o", folder / "model", "--epochs", 2, "-q")
    assert ran.code == 0, ran.err
    return folder / "model"


def test_measured_on_the_test_rows_that_fit_showed(model: Path) -> None:
    ran = polytask("evaluate", model, model.with_name("molecules"), "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(load(model).about["recipe"]["test"]))


@pytest.mark.parametrize(
    ("asked", "columns", "unknown"),
    [
        ({"graph": ["m0", "m1", "m99"]}, ["chord", "chord_probability"], 3),
        ({"id": ["nobody", "g1n1"], "age": [1, 2]}, ["shape", "shape_probability"], 1),
        (
            {"source": ["g0n0", "g0n0"], "target": ["g0n1", "g5n5"]},
            ["exists", "exists_probability", "bond", "bond_double", "bond_single", "bond_triple"],
            None,
        ),
    ],
)
def test_asked_about_graphs_nodes_and_links(
    model: Path, tmp_path: Path, asked: dict[str, list[object]], columns: list[str], unknown: int | None
) -> None:
    pl.DataFrame(asked).write_csv(tmp_path / "new.csv")
    ran = polytask("predict", model, tmp_path / "new.csv", "-o", tmp_path / "out.csv")
    found = pl.read_csv(tmp_path / "out.csv")
    assert found.columns == ["row", *columns]
    rows = [row for row in range(1, 1 + len(next(iter(asked.values())))) if row != unknown]
    assert found["row"].to_list() == rows
    assert (ran.code, "unknown" in ran.err) == ((3, True) if unknown else (0, False))
    saved = load(model)
    assert saved.schema is not None
    inputs = saved.schema.transform(pl.DataFrame(asked)[[row - 1 for row in rows]])
    first = columns[0]
    expected = saved.model.predict(inputs, [first])[first]
    assert torch.allclose(torch.tensor(found[f"{first}_probability"].to_list()), expected.float(), atol=1e-5)


def test_explained_and_not_exported(model: Path, tmp_path: Path) -> None:
    assert "edges (" in json.dumps(json.loads(polytask("explain", model, "--json").out)["data"]["report"])
    line = refused("export", model, "-o", tmp_path / "model.onnx")
    assert "a model of a graph" in line


def test_compared(model: Path, tmp_path: Path) -> None:
    graph = model.with_name("molecules")
    few = ("--seeds", 2, "--steps", 2, "--weight-trials", 0, "--no-equal-time", "--workers", 1, "--methods", "hard+equal")
    ran = polytask(
        "compare", "--graph", graph, "--task", "node:shape", "--task", "link:exists", *few, "-o", tmp_path / "found"
    )
    assert ran.code == 0, ran.err
    methods = [row["name"] for row in json.loads((tmp_path / "found" / "results.json").read_text())["methods"]]
    assert "hard+equal" in methods and "gradient boosting" not in methods


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same graphs, whose nodes have other names."""
    folder = tmp_path / "other"
    folder.mkdir()
    write(folder)
    for table in ("nodes", "edges"):
        file = folder / f"{table}.csv"
        file.write_text(file.read_text().replace("g0n", "zero"))
    return folder


def test_asked_about_another_graph(model: Path, other: Path, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["zero1", "g1n1"]}).write_csv(tmp_path / "new.csv")
    ran = polytask("predict", model, tmp_path / "new.csv", "--graph", other, "-o", tmp_path / "out.csv")
    assert ran.code == 0, ran.err
    saved = load(model)
    on = on_graph(saved, other)
    assert on.schema is not None
    expected = on.model.predict(on.schema.transform(pl.DataFrame({"id": ["zero1", "g1n1"]})), ["shape"])["shape"]
    found = pl.read_csv(tmp_path / "out.csv")["shape_probability"].to_list()
    assert torch.allclose(torch.tensor(found), expected.float(), atol=1e-5)
    encoder = saved.model.encoder
    assert isinstance(encoder, GraphEncoder) and len(encoder.graph.matrix.columns) > 600  # all edges of it are seen
    ran = polytask("evaluate", model, other, "--json")
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out)) == {"chord", "exists", "bond", "shape"}
    # A class that the model has not seen, and a graph without labels.
    nodes = (other / "nodes.csv").read_text()
    (other / "nodes.csv").write_text(nodes.replace(",ring", ",rang"))
    assert "nodes.csv" not in (line := refused("evaluate", model, other)) and "'rang' is none of its classes" in line


def test_graphs_that_a_model_cannot_be_asked_about(model: Path, other: Path, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["zero1"]}).write_csv(tmp_path / "new.csv")
    out = ("-o", tmp_path / "out.csv")
    (tmp_path / "table").mkdir()
    table = small_table.saved(tmp_path / "table")
    assert "is no model of a graph" in refused("predict", table.path, tmp_path / "new.csv", "--graph", other, *out)
    nodes = (other / "nodes.csv").read_text()
    (other / "nodes.csv").write_text(nodes.replace("weight", "wait"))
    line = refused("predict", model, tmp_path / "new.csv", "--graph", other, *out)
    assert line == f"{other / 'nodes.csv'}: no column 'weight': did you mean 'wait'?"
    (other / "nodes.csv").unlink()
    (other / "graphs.csv").unlink()
    assert "no features of a node, expected 1 dense ones" in refused("evaluate", model, other)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "edges.csv").write_text((other / "edges.csv").read_text())
    few = ("--task", "link:exists", "--steps", 2, "-q")
    assert polytask("fit", "--graph", bare, *few, "-o", tmp_path / "bare_model").code == 0
    (bare / "edges.csv").write_text((other / "edges.csv").read_text().replace("zero", "nil"))
    pl.DataFrame({"source": ["nil0"], "target": ["nil3"]}).write_csv(tmp_path / "pairs.csv")
    line = refused("predict", tmp_path / "bare_model", tmp_path / "pairs.csv", "--graph", bare, *out)
    assert "a vector was learned for each node, without features: no other nodes are known" in line


def test_refused(model: Path, tmp_path: Path) -> None:
    graph = model.with_name("molecules")
    out = ("-o", tmp_path / "out")
    assert "both DATA and --graph" in refused("fit", graph, "--graph", graph, "--task", "node:shape", *out)
    assert "no data" in refused("fit", *out)
    assert "no task was given" in refused("fit", "--graph", graph, *out)
    assert "--target is for tables" in refused("fit", "--graph", graph, "-t", "shape", *out)
    assert "no column 'shap': did you mean 'shape'" in refused("fit", "--graph", graph, "--task", "node:shap", *out)
    assert "expected a graph" in refused("fit", "--graph", tmp_path / "nowhere", "--task", "node:x", *out)
