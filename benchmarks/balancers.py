"""Balancers: what each does for three tasks or more on three real data sets.

    python benchmarks/balancers.py [--seeds 3] [--out FOLDER]

compares every balancer on overlaid digits, the census table and road scenes, and regenerates the table in
``docs/verbs/balance.md`` and ``benchmarks/results/balancers.json``. Census and road scenes (CamVid) are read from the folder
POLYTASK_DATA. Every method gets the same steps and the same learning rates to choose from, on validation data and a seed of
its own; figures are of test data. Finished trials are kept in ``--out``, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import polytask as pt
from polytask.comparison import compare
from polytask.data.table import load_table
from polytask.files import write_json, write_text

RESULTS = Path(__file__).parent / "results" / "balancers.json"
PAGE = Path(__file__).parent.parent / "docs" / "verbs" / "balance.md"
STEPS = {"multidigits": 200, "census": 60, "camvid": 80}
ROWS = 20_000
KEPT = ("name", "role", "steps", "learning_rate", "weights", "delta_m")


def multidigits(_: Path) -> pt.DataSet:
    return pt.multidigits()


def census(folder: Path) -> pt.DataSet:
    """Income above 50,000, never married, and a college degree, of the first 20,000 rows."""
    from benchmarks.tables import census_income

    frame, targets = census_income(folder)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / "polytask-census.csv"
    frame.head(ROWS).write_csv(path)
    data = load_table(path, targets)
    return data


def camvid(folder: Path) -> pt.DataSet:
    """Classes, class boundaries and the two chroma channels of road scenes from their luminance, at 24 x 32."""
    with np.load(folder / "camvid_mini" / "camvid48x64.npz") as arrays:
        splits = [_scenes(arrays[f"{name}_image"], arrays[f"{name}_label"]) for name in ("train", "val", "test")]
    tasks = [
        pt.Task.segmentation("classes", 11),
        pt.Task.segmentation("boundary", 2),
        pt.Task.pixel_regression("chroma", 2, scale="standard"),
    ]
    return pt.DataSet("camvid", tasks, *splits, encoder=Scenes, settings={"batch_size": 16, "lr": 3e-3})


def _scenes(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> pt.Examples:
    rgb = torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, 2)
    classes = torch.from_numpy(labels[:, ::2, ::2].astype(np.int64))
    luminance = (rgb * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    chroma = torch.cat([rgb[:, 2:] - luminance, rgb[:, :1] - luminance], 1)
    void = classes == 11
    edge = torch.zeros_like(classes)
    for axis in (1, 2):
        here, beyond = classes.narrow(axis, 0, classes.shape[axis] - 1), classes.narrow(axis, 1, classes.shape[axis] - 1)
        edge.narrow(axis, 0, classes.shape[axis] - 1).logical_or_((here != beyond) & (beyond != 11))
    missing = pt.task.MISSING
    targets = {"classes": classes.masked_fill(void, missing), "boundary": edge.masked_fill(void, missing), "chroma": chroma}
    return pt.Examples(luminance - 0.5, targets)


class Scenes(nn.Sequential):
    """Four convolutions with a view of 15 pixels."""

    width = 32

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for ins, outs, gap in ((1, 16, 1), (16, 32, 1), (32, 32, 2), (32, 32, 3)):
            layers += [nn.Conv2d(ins, outs, 3, padding=gap, dilation=gap), nn.BatchNorm2d(outs), nn.ReLU()]
        super().__init__(*layers)


DATA = {"multidigits": multidigits, "census": census, "camvid": camvid}


def table(results: dict[str, Any]) -> str:
    """One row for each balancer, best mean first over the data sets that all were measured on."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in results.items():
        for row in found["methods"]:
            if row["role"] in ("method", "control") and row["delta_m"] is not None:
                rows.setdefault(row["name"].removeprefix("hard+"), {})[name] = row["delta_m"]
    common = [name for name in results if all(name in cells for cells in rows.values())]
    order = sorted(rows, key=lambda row: -sum(rows[row][name]["mean"] for name in common))
    lines = ["| balancer | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for row in order:
        cells = [_cell(rows[row][name]) if name in rows[row] else "" for name in results]
        lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Every balancer on three real data sets.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("balancers"))
    parser.add_argument("--methods", default="all-balancers")
    options = parser.parse_args()
    folder = os.environ.get("POLYTASK_DATA")
    results: dict[str, Any] = {}
    for name, make in DATA.items():
        if folder is None and name != "multidigits":
            print(f"{name}: skipped, POLYTASK_DATA is not set")
            continue
        data = make(Path(folder or "."))
        rate = float(data.settings.get("lr", 1e-3))
        print(f"{name}: comparing")
        found = compare(
            data, options.methods.split(","), seeds=options.seeds, steps=STEPS[name], learning_rates=[rate / 3, rate],
            weight_trials=4, transfer=False, equal_time=False, out=options.out / name,
        )  # fmt: skip
        rows = [{key: row[key] for key in KEPT} for row in found["methods"]]
        results[name] = {"budget": found["budget"], "machine": found["machine"], "methods": rows}
    write_json(RESULTS, results)
    publish(results)


def publish(results: dict[str, Any]) -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- measured -->\n")
    _, _, after = rest.partition("<!-- end -->")
    write_text(PAGE, f"{before}<!-- measured -->\n{table(results)}\n<!-- end -->{after}")
    print(table(results))


if __name__ == "__main__":
    main()
