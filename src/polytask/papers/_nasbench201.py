"""NAS-Bench-201: every cell with its accuracy on three data sets, and latencies that others measured on fifteen devices."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from polytask.shrink.search import Space

CELLS = "nasbench201_hw/nasbench201_hw.csv.gz"

EDGES = Space({f"edge{i}": list("01234") for i in range(6)})
"""The cells of NAS-Bench-201: for each of six edges nothing, a skip, a 1x1 or a 3x3 convolution, or average pooling."""


def cells(data: Path) -> pl.DataFrame:
    """All 15,625 cells: ``arch``, six digits, one for each edge; ``acc_cifar10``, ``acc_cifar100`` and ``acc_imagenet16`` in
    percent; and ``lat_<device>``, to be compared within a column alone."""
    return pl.read_csv(data / CELLS, schema_overrides={"arch": pl.String})
