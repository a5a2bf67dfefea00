"""One way in for graphs in files, whatever their format."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from polytask.data.graph.graph import GraphData
from polytask.data.graph.ogb import read_ogb
from polytask.data.graph.tables import read_graph_tables
from polytask.data.npz import integers, read_npz
from polytask.data.table.read import SUFFIXES
from polytask.errors import InputError, optional
from polytask.nn.graph import CSR

LARGEST = 2**31
"""Numbers of nodes are below this where only edges say how many nodes there are: each has a row in a model's tables."""


def load_graph(path: Path | str, **settings: Any) -> GraphData:
    """The graph at ``path``:

    - a folder with ``edges.csv`` (or ``.tsv``, ``.parquet``, ``.arrow``, also ``.csv.gz``), usually ``nodes.csv``, and
      ``graphs.csv`` where there are several graphs: see `read_graph_tables`, which takes the ``settings``;
    - a folder with ``edge.csv.gz``, or ``raw/edge.csv.gz``: see `read_ogb`, which takes them there;
    - ``.npz``: ``edges`` ``(E, 2)``, each undirected edge once; features as ``x`` ``(N, F)``, or ``x_indptr``,
      ``x_indices``, ``x_shape`` and ``x_values``, empty where all are 1; classes ``y`` with -1 where one is missing, which
      become the label ``"class"``; and ``NAME_idx``, sets of nodes. Nothing is unpickled;
    - ``.pt``: a ``torch_geometric.data.Data`` as ``torch.save`` writes it, read with ``weights_only``; this needs the extra
      ``graph``.

    Raises:
        InputError: naming the file, and the row where there is one.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected a graph")
    if path.is_dir():
        if is_ogb(path):
            return read_ogb(path, **settings)
        tables = graph_tables(path)
        return read_graph_tables(tables["edges"], tables.get("nodes"), tables.get("graphs"), **settings)
    if settings:
        raise InputError(f"{path}: settings {', '.join(settings)} are for tables, expected none")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".pt":
        return _read_pyg(path)
    raise InputError(f"{path}: unknown type of file, expected .npz, .pt, or a folder with tables")


def is_ogb(folder: Path) -> bool:
    """Whether a folder holds the files of an ogb-style data set."""
    return (folder / "edge.csv.gz").exists() or (folder / "raw" / "edge.csv.gz").exists()


def graph_tables(folder: Path) -> dict[str, Path]:
    """The tables ``edges``, ``nodes`` and ``graphs`` in a folder, those that are there; `InputError` for several of one."""
    found = {}
    for table in ("edges", "nodes", "graphs"):
        files = [folder / f"{table}{suffix}" for suffix in SUFFIXES if (folder / f"{table}{suffix}").exists()]
        if len(files) > 1 or (table == "edges" and not files):
            one = f"one of {table}.csv, {table}.parquet" + (", edge.csv.gz" if table == "edges" else "")
            raise InputError(f"{folder}: {len(files)} tables of {table}, expected {one}")
        if files:
            found[table] = files[0]
    return found


def _read_npz(path: Path) -> GraphData:
    arrays = read_npz(path)
    if "edges" not in arrays:
        raise InputError(f"{path}: no array 'edges', expected one of shape (E, 2); found {', '.join(arrays) or 'none'}")
    kinds = {"edges": "iu", "x": "iufb", "y": "iu", "x_indptr": "iu", "x_indices": "iu", "x_shape": "iu", "x_values": "iufb"}
    for name, array in arrays.items():
        wanted = kinds.get(name, "iu" if name.endswith("_idx") else array.dtype.kind)
        if array.dtype.kind not in wanted and array.size:
            expected = "numbers" if "f" in wanted else "integers"
            raise InputError(f"{path}: array {name!r}: {array.dtype}, expected {expected}")
    if "y" in arrays and arrays["y"].ndim != 1:
        raise InputError(f"{path}: array 'y': shape {arrays['y'].shape}, expected (N,)")
    edges = torch.from_numpy(integers(arrays["edges"]))
    features: torch.Tensor | CSR | None = None
    if "x_indptr" in arrays:
        features = _sparse(path, arrays)
    elif "x" in arrays:
        features = torch.from_numpy(arrays["x"]).float()
    labels = {"class": torch.from_numpy(integers(arrays["y"]))} if "y" in arrays else {}
    known = [features.shape[0]] if features is not None else [len(label) for label in labels.values()]
    if not known:
        known = [_highest(path, edges) + 1]
    splits = {
        name.removesuffix("_idx"): torch.from_numpy(integers(array))
        for name, array in arrays.items()
        if name.endswith("_idx")
    }
    return GraphData(str(path), known[0], edges, features, labels, splits=splits)


def _sparse(path: Path, arrays: Mapping[str, NDArray[Any]]) -> CSR:
    for part in ("indices", "shape"):
        if f"x_{part}" not in arrays:
            raise InputError(f"{path}: array 'x_indptr' without 'x_{part}', expected both")
    rows, width = (int(size) for size in arrays["x_shape"])
    offsets, columns = (torch.from_numpy(integers(arrays[f"x_{part}"])) for part in ("indptr", "indices"))
    values = torch.from_numpy(arrays["x_values"]).float() if len(arrays.get("x_values", ())) else None
    if len(offsets) != rows + 1 or int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()) or offsets[-1] != len(columns):
        raise InputError(
            f"{path}: x_indptr does not fit x_shape and x_indices, expected rows + 1 offsets up to their number"
        )
    if values is not None and len(values) != len(columns):
        raise InputError(f"{path}: {len(values)} x_values of {len(columns)} x_indices, expected one for each, or none")
    owner = torch.repeat_interleave(offsets.diff())
    outside = (columns < 0) | (columns >= width)
    if bool(outside.any()):
        row, column = int(owner[outside][0]), int(columns[outside][0])
        raise InputError(f"{path}: row {row + 1} of x_indices: column {column}, expected 0 to {width - 1}")
    return CSR.from_entries(owner, columns, (rows, width), values)


def _highest(path: Path, edges: torch.Tensor) -> int:
    """The highest number of a node that has an edge, where nothing else says how many there are."""
    if len(edges) == 0:
        raise InputError(f"{path}: no edges, and neither features nor classes, expected something about nodes")
    large = (edges >= LARGEST).flatten(1).any(1)
    if bool(large.any()):
        row = int(large.nonzero()[0])
        raise InputError(
            f"{path}: edge {row + 1}: nodes {edges[row].tolist()}, expected numbers below 2^31 (tables take any)"
        )
    return int(edges.max())


def _read_pyg(path: Path) -> GraphData:
    pyg = optional("torch_geometric.data", "graph")
    data_module = optional("torch_geometric.data.data", "graph")
    storage = optional("torch_geometric.data.storage", "graph")
    safe = [pyg.Data, data_module.DataEdgeAttr, data_module.DataTensorAttr, storage.GlobalStorage]
    try:
        with torch.serialization.safe_globals(safe):
            data = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: damaged, or not a torch_geometric Data alone") from error
    if not isinstance(data, pyg.Data) or data.edge_index is None:
        raise InputError(f"{path}: holds a {type(data).__name__}, expected a torch_geometric Data with edges")
    return GraphData.from_pyg(data, str(path))
