"""Search where the whole table is known: accuracy on CIFAR-100 of every cell of NAS-Bench-201, latency on three devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.claim import Measurements
from polytask.papers._nasbench201 import CELLS, EDGES, cells
from polytask.pareto import fronts, hypervolume
from polytask.shrink.search import LINAS, NSGA2, Found, Random, Strategy, search
from polytask.shrink.search.space import Configuration

FILES = (CELLS,)
DEVICES = ("raspi4", "eyeriss", "gold_6226")
BUDGET = 200
POINTS = (40, 100, 200)
"""Evaluations after which the hypervolume is taken."""
STRATEGIES: dict[str, Strategy] = {"random": Random(20), "nsga2": NSGA2(20), "linas": LINAS(20)}
"""With populations and batches of 20, since the space is small; all else as the paper has it."""
OBJECTIVES: Any = {"accuracy": "higher", "latency": "lower"}


class Device:
    """The cells on a device. Hypervolumes are of accuracy above 0 % and latency below the table's longest, as a share of
    what the whole table covers."""

    def __init__(self, table: pl.DataFrame, name: str) -> None:
        accuracy, latency = table["acc_cifar100"].to_numpy(), table[f"lat_{name}"].to_numpy()
        self.cells = dict(zip(table["arch"], zip(accuracy.tolist(), latency.tolist(), strict=True), strict=True))
        self.reference = {"accuracy": 0.0, "latency": float(latency.max())}
        points = np.stack([accuracy, -latency], 1)
        front = fronts(-points, 1)[0]
        self.whole = hypervolume(points[front], [0.0, -self.reference["latency"]])

    def __call__(self, configuration: Configuration) -> dict[str, float]:
        accuracy, latency = self.cells["".join(configuration.values())]
        return {"accuracy": accuracy, "latency": latency}

    def share(self, found: Found, trials: int | None = None) -> float:
        """What is covered, 1 for all of the front."""
        return found.hypervolume(self.reference, trials) / self.whole


def measure_cells(seed: int, data: Path) -> Measurements:
    """``"<device> <strategy> at <n>"``, and ``"cells <strategy> at <n>"``, the mean over devices. On gold_6226 also LINAS
    that begins with the best 20 of eyeriss, ``"warm at <n>"``, and the front found for eyeriss, ``"foreign front"``."""
    table = cells(data)
    devices = {name: Device(table, name) for name in DEVICES}
    measured: dict[str, float] = {}

    def run(device: str, strategy: Strategy, start: Any = ()) -> Found:
        evaluate: Callable[[Configuration], dict[str, float]] = devices[device]
        return search(EDGES, evaluate, OBJECTIVES, budget=BUDGET, strategy=strategy, start=start, seed=seed)

    found = {(name, device): run(device, each) for name, each in STRATEGIES.items() for device in DEVICES}
    for (name, device), each in found.items():
        measured |= {f"{device} {name} at {n}": devices[device].share(each, n) for n in POINTS}
    for name in STRATEGIES:
        for n in POINTS:
            measured[f"cells {name} at {n}"] = float(np.mean([measured[f"{device} {name} at {n}"] for device in DEVICES]))
    here, there = "gold_6226", found["linas", "eyeriss"]
    warm = run(here, STRATEGIES["linas"], there.best(20))
    measured |= {f"warm at {n}": devices[here].share(warm, n) for n in POINTS}
    foreign = [trial.configuration for trial in there.front()]
    moved = search(EDGES, devices[here], OBJECTIVES, budget=len(foreign), strategy=Random(len(foreign)), start=foreign)
    return {**measured, "foreign front": devices[here].share(moved)}
