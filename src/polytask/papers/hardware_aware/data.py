"""What was measured: sub-networks of Once-for-All on ImageNet and on GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytask.papers.hardware_aware.architecture import SPACE, Architecture
from polytask.shrink.search import Found, Trial
from polytask.shrink.search.found import Direction
from polytask.shrink.search.space import Rows

EVALUATIONS = "ofa_mbv3_search/mbv3_w10_evaluations.csv.gz"
LATENCIES = "ofa_mbv3_search/ofa_mbv3_latency.csv.gz"

OBJECTIVES: Mapping[str, Direction] = {"top1": "higher", "macs": "lower"}
REFERENCE = {"top1": 70.0, "macs": 600e6}
"""The worst that counts, in percent and multiply-accumulates."""


def evaluations(data: Path) -> pl.DataFrame:
    """2,373 evaluations of five searches, in their order: ``run``, ``order``, ``ks``, ``e``, ``d``, ``params``, ``macs``,
    ``top1`` (% on ImageNet, without fine-tuning)."""
    return _read(data / EVALUATIONS)


def run(table: pl.DataFrame, name: str) -> Found:
    """One of these searches as `polytask.shrink.search` has it. Networks that it measured again count again."""
    rows = table.filter(pl.col("run") == name).sort("order")
    trials = [
        Trial(Architecture.parse(ks, e, d).configuration, {"top1": top1, "macs": macs})
        for ks, e, d, top1, macs in rows.select("ks", "e", "d", "top1", "macs").iter_rows()
    ]
    return Found(OBJECTIVES, trials)


def networks(table: pl.DataFrame) -> tuple[Rows, NDArray[np.float64], NDArray[np.float64]]:
    """The different networks among rows: ``(N, 45)``, and the means of their top-1 and of their operations ``(N,)``."""
    rows = _rows(table)
    _, first, place = np.unique(SPACE.canonical(rows), axis=0, return_index=True, return_inverse=True)
    counts = np.bincount(place)
    top1, macs = (np.bincount(place, table[name].to_numpy().astype(float)) / counts for name in ("top1", "macs"))
    return rows[first], top1, macs


def latencies(data: Path) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Features ``(5000, 145)``, those of the space and a 1 at the resolution, and by GPU and batch size milliseconds."""
    table = _read(data / LATENCIES)
    resolutions = table["r"].to_numpy()
    features = np.concatenate([SPACE.features(_rows(table)), resolutions[:, None] == np.unique(resolutions)], axis=1)
    columns = [name for name in table.columns if name.startswith("lat_")]
    return features, {name.removeprefix("lat_"): table[name].to_numpy() for name in columns}


def _read(path: Path) -> pl.DataFrame:
    digits = dict.fromkeys(("ks", "e", "d"), pl.String)
    header = pl.read_csv(path, n_rows=0).columns
    return pl.read_csv(path, schema_overrides={name: kind for name, kind in digits.items() if name in header})


def _rows(table: pl.DataFrame) -> Rows:
    parsed = (Architecture.parse(*digits) for digits in table.select("ks", "e", "d").iter_rows())
    return np.stack([SPACE.row(each.configuration) for each in parsed])
