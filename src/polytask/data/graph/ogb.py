"""Graphs in the files of the Open Graph Benchmark (Hu et al., NeurIPS 2020), read from a folder; nothing is downloaded."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from polytask.data.graph.graph import GraphData
from polytask.errors import InputError

SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def read_ogb(folder: Path | str, *, directed: bool = False, split: str | None = None) -> GraphData:
    """One graph from the text files of an ogb-style data set.

    Read are ``raw/num-node-list.csv.gz``, ``raw/edge.csv.gz``, and, where they are there, ``raw/node-feat.csv.gz``,
    ``raw/node-label.csv.gz`` (one column of classes, as the label ``"class"``), and
    ``split/NAME/{train,valid,test}.csv.gz``, sets of nodes. The first two may also lie in the folder itself.

    Args:
        folder: of the data set.
        directed: whether edges lead from the first node to the second alone.
        split: the NAME, where there are several.

    Raises:
        InputError: naming file and row, counted from 1: a node that is not there, a line that is no number, a data set of
            several graphs, an empty split, a damaged file.
    """
    folder = Path(folder)
    raw = folder / "raw" if (folder / "raw").is_dir() else folder
    counts = _numbers(raw / "num-node-list.csv.gz", 1)[:, 0]
    if len(counts) != 1:
        raise InputError(f"{raw / 'num-node-list.csv.gz'}: {len(counts)} rows, expected one: a data set of one graph")
    nodes = int(counts[0])
    edges = _numbers(raw / "edge.csv.gz", 2)
    _check_nodes(edges, nodes, raw / "edge.csv.gz")
    features = labels = None
    if (raw / "node-feat.csv.gz").exists():
        features = _floats(raw / "node-feat.csv.gz", nodes)
    if (raw / "node-label.csv.gz").exists():
        labels = _numbers(raw / "node-label.csv.gz", 1)[:, 0]
    given = {} if labels is None else {"class": labels}
    if not directed:
        edges = torch.unique(edges.sort(1).values, dim=0)
    return GraphData(
        str(raw / "edge.csv.gz"), nodes, edges, features, given, splits=_splits(folder, split, nodes), directed=directed
    )


def _splits(folder: Path, name: str | None, nodes: int) -> dict[str, Tensor]:
    schemes = sorted(path.name for path in (folder / "split").glob("*") if path.is_dir())
    if not schemes and name is None:
        return {}
    if name is None and len(schemes) > 1:
        raise InputError(f"{folder / 'split'}: several splits, expected split= one of {', '.join(schemes)}")
    chosen = folder / "split" / (name or schemes[0])
    found = {}
    for file, split in SPLITS.items():
        path = chosen / f"{file}.csv.gz"
        if path.exists():
            found[split] = _numbers(path, 1)[:, 0]
            _check_nodes(found[split][:, None], nodes, path)
    if not found:
        raise InputError(f"{chosen}: no split of nodes, expected train.csv.gz, valid.csv.gz and test.csv.gz")
    return found


def _check_nodes(rows: Tensor, nodes: int, path: Path) -> None:
    wrong = ((rows < 0) | (rows >= nodes)).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(f"{path}: row {row + 1}: {rows[row].tolist()}, expected nodes from 0 to {nodes - 1}")


def _numbers(path: Path, columns: int) -> Tensor:
    frame = _frame(path)
    if frame.width != columns:
        raise InputError(f"{path}: {frame.width} columns, expected {columns}")
    whole = frame.select(pl.all().cast(pl.Int64, strict=False))
    for name in frame.columns:
        wrong = whole[name].is_null()
        if frame[name].dtype.is_float():
            wrong |= whole[name].cast(pl.Float64) != frame[name]
        _refuse(wrong, frame[name], path, "a whole number")
    return torch.from_numpy(whole.to_numpy().copy())


def _floats(path: Path, nodes: int) -> Tensor:
    frame = _frame(path)
    if len(frame) != nodes:
        raise InputError(f"{path}: {len(frame)} rows, expected {nodes}, one for each node")
    numbers = frame.select(pl.all().cast(pl.Float32, strict=False))
    for name in frame.columns:
        _refuse(~numbers[name].is_finite().fill_null(False), frame[name], path, "a finite number")
    return torch.from_numpy(numbers.to_numpy().copy())


def _refuse(wrong: pl.Series, column: pl.Series, path: Path, expected: str) -> None:
    if wrong.any():
        row = wrong.arg_true()[0]
        raise InputError(f"{path}: row {row + 1}: {column[row]!r}, expected {expected}")


def _frame(path: Path) -> pl.DataFrame:
    try:
        with gzip.open(path) as file:
            return pl.read_csv(file.read(), has_header=False, infer_schema_length=None)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, expected one in an ogb-style data set") from error
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: is empty, expected rows") from error
    except (OSError, EOFError, zlib.error, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: damaged or truncated, not a whole gzip file of a table ({reason})") from error
