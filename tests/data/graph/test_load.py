"""Graphs from files, and what is refused: each error names file, row and column."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.papers.real_data import folder_with

from polytask.data.graph import GraphData, load_graph, read_ogb
from polytask.errors import InputError
from polytask.nn.graph import CSR

NODES = "id,kind,size,group\nann,a,1.5,x\nbob,a,2,y\ncat,b,3,\n"
EDGES = "source,target\nann,bob\nbob,ann\nbob,cat\n"


def write(folder: Path, nodes: str | None = NODES, edges: str = EDGES) -> Path:
    (folder / "edges.csv").write_text(edges)
    if nodes is not None:
        (folder / "nodes.csv").write_text(nodes)
    return folder


def test_tables(tmp_path: Path) -> None:
    graph = load_graph(write(tmp_path), labels=["group"], type="kind")
    assert graph.nodes == 3 and graph.edges.tolist() == [[0, 1], [1, 2]] and graph.ids == ["ann", "bob", "cat"]
    assert isinstance(graph.features, torch.Tensor) and graph.features.tolist() == [[1.5], [2.0], [3.0]]
    assert graph.labels["group"].tolist() == [0, 1, -1] and graph.classes["group"] == ["x", "y"]
    assert graph.adjacency().degrees.tolist() == [1, 2, 1]


def test_edges_alone_with_large_ids_types_and_directions(tmp_path: Path) -> None:
    far = 2**62
    table = pl.DataFrame({"source": [far, 7, 7], "target": [7, far, far], "type": ["likes", "owns", "owns"]})
    table.write_parquet(tmp_path / "edges.parquet")
    graph = load_graph(tmp_path, directed=True)
    assert graph.ids == [7, far] and graph.edges.tolist() == [[0, 1], [1, 0]] and graph.classes["type"] == ["likes", "owns"]
    assert graph.edge_types is not None and graph.edge_types.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("nodes", "edges", "settings", "words"),
    [
        (NODES, EDGES + "cat,dan\n", {}, r"edges.csv: row 4, column 'target': unknown node 'dan', expected one of the 3"),
        (NODES, EDGES + "cat,cat\n", {}, r"edges.csv: row 4: an edge from 'cat' to itself, expected none"),
        (NODES, EDGES + ",cat\n", {}, r"edges.csv: row 4, column 'source': missing"),
        (NODES + "ann,a,1,x\n", EDGES, {}, r"nodes.csv: row 4, column 'id': 'ann' repeats"),
        (NODES + ",a,1,x\n", EDGES, {}, r"nodes.csv: row 4, column 'id': missing"),
        (NODES + "dan,a,,x\n", EDGES, {}, r"nodes.csv: row 4, column 'size': missing, expected a number"),
        (NODES + "dan,c,,x\neve,c,,x\n", EDGES, {"type": "kind"}, r"nodes.csv: row 4: nodes of type 'c' have no features"),
        (NODES + "dan,a,inf,x\n", EDGES, {}, r"nodes.csv: row 4, column 'size': inf, expected a number that float32 holds"),
        (NODES, EDGES, {"features": ["kind"]}, r"nodes.csv: column 'kind': String, expected numbers"),
        (NODES, EDGES, {"labels": ["gruop"]}, r"nodes.csv: no column 'gruop': did you mean 'group'"),
        (NODES, EDGES, {"source": "from"}, r"edges.csv: no column 'from'"),
        ("id\n1.5\n2\n", "source,target\n1,2\n", {}, r"nodes.csv: column 'id': Float64 ids, expected text or integers"),
        ("id\n1\n2\n", EDGES, {}, r"edges.csv: column 'source': String ids, expected Int64"),
        (None, "source,target\n1,a\n2,b\n", {}, r"different types"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, nodes: str | None, edges: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_graph(write(tmp_path, nodes, edges), **settings)


def test_loops_that_are_allowed(tmp_path: Path) -> None:
    graph = load_graph(write(tmp_path, NODES, EDGES + "cat,cat\n"), loops=True)
    assert graph.adjacency().degrees.tolist() == [1, 2, 2]


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "small.npz"
    np.savez(path, edges=np.array([[0, 1], [1, 2]], np.int16), x=np.eye(3, 2), y=np.array([0, 1, -1]), train_idx=[0, 1])
    graph = load_graph(path)
    assert graph.nodes == 3 and graph.labels["class"].tolist() == [0, 1, -1] and graph.splits["train"].tolist() == [0, 1]
    np.savez(path, edges=np.array([[0, 1], [1, 9]]), x=np.eye(3, 2))
    with pytest.raises(InputError, match=r"small.npz: edge 2: nodes \[1, 9\], expected numbers from 0 to 2"):
        load_graph(path)
    np.savez(path, x=np.eye(3))
    with pytest.raises(InputError, match="no array 'edges'"):
        load_graph(path)
    np.savez(path, edges=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not an npz file of plain arrays"):
        load_graph(path)


PLACES = np.arange(8)
RING = np.stack([PLACES, (PLACES + 1) % 8], 1)
WORDS = {"x_indptr": np.arange(9), "x_indices": np.zeros(8, int), "x_shape": np.array([8, 3]), "x_values": np.ones(8)}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"edges": RING + 0.5}, "array 'edges': float64, expected integers"),
        ({"edges": np.append(RING, [[0, 2**40]], 0)}, r"edge 9: nodes \[0, 1099511627776\], expected numbers below 2\^31"),
        ({"edges": RING.astype(np.uint64) + np.uint64(2**63), "y": PLACES}, r"edge 1: nodes \[9223372036854775807, "),
        ({"edges": RING[:0]}, "no edges, and neither features nor classes"),
        ({"x": np.full((8, 2), np.nan)}, "features: row 1, column 1: nan, expected a finite number"),
        ({"x": PLACES.astype(float)}, r"features of shape \(8,\), expected \(N, F\)"),
        ({"x": np.full((8, 2), "a")}, "array 'x': <U1, expected numbers"),
        ({"y": PLACES + 0.5}, "array 'y': float64, expected integers"),
        ({"y": np.stack([PLACES, PLACES], 1)}, r"array 'y': shape \(8, 2\), expected \(N,\)"),
        ({"y": PLACES - 3}, "label 'class': row 1: -3, expected 0 or above, or -1 where it is missing"),
        ({"y": PLACES, "train_idx": PLACES + 1}, "set 'train': node 8, expected numbers from 0 to 7"),
        ({"y": PLACES, "train_idx": PLACES < 3}, "array 'train_idx': bool, expected integers"),
        ({**WORDS, "x_indices": np.full(8, 3)}, "row 1 of x_indices: column 3, expected 0 to 2"),
        ({**WORDS, "x_values": np.ones(3)}, "3 x_values of 8 x_indices, expected one for each, or none"),
        ({**WORDS, "x_values": np.where(PLACES == 4, np.inf, 1)}, "features: row 5: not a number, or infinite"),
        ({"x_indptr": WORDS["x_indptr"], "x_indices": WORDS["x_indices"]}, "'x_indptr' without 'x_shape', expected both"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "bad.npz", **{"edges": RING, **arrays})
    with pytest.raises(InputError, match=r"bad\.npz: .*" + words):
        load_graph(tmp_path / "bad.npz")


def test_cora_and_citeseer_are_what_they_should_be() -> None:
    folder = folder_with(["planetoid/cora.npz", "planetoid/citeseer.npz"])
    cora, citeseer = (load_graph(folder / f"planetoid/{name}.npz") for name in ("cora", "citeseer"))
    assert (cora.nodes, len(cora.edges), int(cora.adjacency().degrees.max())) == (2708, 5278, 168)
    assert (citeseer.nodes, len(citeseer.edges), int((citeseer.adjacency().degrees == 0).sum())) == (3327, 4552, 48)
    assert isinstance(cora.features, CSR) and cora.features.shape == (2708, 1433) and len(cora.features.columns) == 49_216
    assert {name: len(nodes) for name, nodes in cora.splits.items()} == {"train": 140, "val": 500, "test": 1000}


@pytest.fixture
def ogb(tmp_path: Path) -> Callable[..., Path]:
    def make(**changed: str) -> Path:
        files = {
            "raw/num-node-list": "4\n",
            "raw/edge": "0,1\n1,2\n1,0\n",
            "raw/node-feat": "0.5,1\n1,2\n2,3\n3,4\n",
            "raw/node-label": "0\n1\n0\n1\n",
            "split/time/train": "0\n1\n",
            "split/time/valid": "2\n",
            "split/time/test": "3\n",
        } | {name.replace("__", "/").replace("_", "-"): text for name, text in changed.items()}
        for name, text in files.items():
            path = tmp_path / f"{name}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(text.encode()))
        return tmp_path

    return make


def test_ogb_files(ogb: Callable[..., Path]) -> None:
    graph = load_graph(ogb())
    assert graph.nodes == 4 and graph.edges.tolist() == [[0, 1], [1, 2]] and graph.labels["class"].tolist() == [0, 1, 0, 1]
    assert isinstance(graph.features, torch.Tensor) and graph.features[3].tolist() == [3, 4]
    assert {name: nodes.tolist() for name, nodes in graph.splits.items()} == {
        "train": [0, 1],
        "validation": [2],
        "test": [3],
    }
    assert read_ogb(ogb(), directed=True).edges.tolist() == [[0, 1], [1, 2], [1, 0]]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"raw__edge": "0,1\n1,4\n"}, r"edge.csv.gz: row 2: \[1, 4\], expected nodes from 0 to 3"),
        ({"raw__edge": "0,1\nx,2\n"}, r"edge.csv.gz: row 2: 'x', expected a whole number"),
        ({"raw__edge": "0,1\n1,2.5\n"}, r"edge.csv.gz: row 2: 2.5, expected a whole number"),
        ({"raw__node_feat": "1\n2\nnan\n4\n"}, "node-feat.csv.gz: row 3: .*nan.*, expected a finite number"),
        ({"raw__edge": "0\n1\n"}, r"edge.csv.gz: 1 columns, expected 2"),
        ({"raw__num_node_list": "3\n4\n"}, "2 rows, expected one"),
        ({"raw__node_feat": "1\n2\n"}, "node-feat.csv.gz: 2 rows, expected 4"),
        ({"split__time__valid": ""}, "valid.csv.gz: is empty"),
        ({"split__time__test": "9\n"}, r"test.csv.gz: row 1: \[9\]"),
        ({"split__other__train": "0\n"}, "several splits, expected split= one of other, time"),
    ],
)
def test_bad_ogb_files(ogb: Callable[..., Path], changed: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_graph(ogb(**changed))


def test_a_truncated_ogb_file(ogb: Callable[..., Path]) -> None:
    path = ogb() / "raw" / "edge.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged or truncated"):
        load_graph(path.parent.parent)


def test_torch_geometric_files_and_data(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    graph = GraphData(
        "g",
        3,
        torch.tensor([[0, 1], [1, 2]]),
        torch.eye(3),
        {"y": torch.tensor([0, 1, 1])},
        splits={"train": torch.tensor([0])},
    )
    torch.save(graph.to_pyg(), tmp_path / "g.pt")
    again = load_graph(tmp_path / "g.pt")
    assert not again.directed and again.edges.tolist() == graph.edges.tolist() and again.labels["y"].tolist() == [0, 1, 1]
    assert isinstance(again.features, torch.Tensor) and torch.equal(again.features, torch.eye(3))
    assert again.splits["train"].tolist() == [0]
    torch.save({"edge_index": 3}, tmp_path / "g.pt")
    with pytest.raises(InputError, match="holds a dict"):
        load_graph(tmp_path / "g.pt")
    (tmp_path / "g.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        load_graph(tmp_path / "g.pt")


def test_what_is_no_graph(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_graph(tmp_path / "absent")
    with pytest.raises(InputError, match="0 tables of edges"):
        load_graph(tmp_path)
    (tmp_path / "a.xyz").touch()
    with pytest.raises(InputError, match="unknown type of file"):
        load_graph(tmp_path / "a.xyz")
    with pytest.raises(InputError, match="features of 2 nodes, expected 3"):
        GraphData("g", 3, torch.tensor([[0, 1]]), torch.eye(2))
