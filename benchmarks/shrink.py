"""Shrink: what counting costs, how many evaluations pruning takes, and whether a smaller network is as much faster.

    python -m benchmarks.shrink [--quick]

regenerates ``benchmarks/results/shrink.json`` and ``shrink.md``. Everything runs in one process; what is compared runs in
turn, and a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks._machine import machine
from benchmarks._page import page
from tests.cost.networks import ResNet50, ViTB16
from torch import Tensor, nn

from polytask.cost import count, macs
from polytask.files import write_json, write_text
from polytask.shrink import Tolerances, find_structure, prune_by_task, remove, uniform
from polytask.shrink.by_task import RATIOS

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {"ResNet-50": (ResNet50, 25.557e6, 4.09e9), "ViT-B/16": (ViTB16, 86.57e6, 17.56e9)}


def counting() -> dict[str, Any]:
    """Seconds to count each network, the first time in the process and again, and how far the counts are from published."""
    x = torch.empty(1, 3, 224, 224, device="meta")
    found: dict[str, Any] = {}
    for name, (build, parameters, operations) in PUBLISHED.items():
        with torch.device("meta"):
            network = build()
        times = []
        for _ in range(3):
            started = time.perf_counter()
            total = count(network, x).total
            times.append(time.perf_counter() - started)
        off = max(abs(total.parameters / parameters - 1), abs(total.macs / operations - 1))
        found[name] = {"first": times[0], "again": statistics.median(times[1:]), "off": off}
    return found


class Deep(nn.Sequential):
    """Twenty convolutions that can be pruned, and two outputs."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        widths = [1, *[16] * 10, *[24] * 10]
        for number, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, 2 if number in (4, 10) else 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2))


def pruning() -> dict[str, Any]:
    """Evaluations and seconds of pruning a trained network of 20 layers, the fast way and the plain way."""
    torch.manual_seed(0)
    network = Deep()
    x = torch.randn(256, 1, 12, 12)
    y = torch.stack([x.mean((1, 2, 3)) * 12, x[:, 0, :6].square().mean((1, 2))], 1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (network(x) - y).square().mean().backward()
        optimizer.step()
    network.eval()

    def losses(model: nn.Module) -> dict[str, float]:
        each: Tensor = (model(x) - y).square().mean(0)
        return {"mean": float(each[0]), "energy": float(each[1])}

    structure = find_structure(network, x[:2])
    found: dict[str, Any] = {"groups": len(structure.groups), "grid": len(structure.groups) * len(RATIOS)}
    accepted = {}
    for name, settings in (("fast", {}), ("bisection alone", {"cache": 0}), ("plain", {"bisect": False, "cache": 0})):
        started = time.perf_counter()
        pruned = prune_by_task(
            network,
            structure,
            losses,
            lambda n: macs(n, x[:1]),
            Tolerances(2 ** (1 / 20) - 1, exponential=False),
            **settings,
        )  # type: ignore[arg-type]
        found[name] = {"seconds": time.perf_counter() - started, "passes": pruned.passes}
        accepted[name] = pruned.removed
    found["same"] = accepted["fast"] == accepted["bisection alone"] == accepted["plain"]
    found["groups that differ"] = sum(
        accepted["fast"].get(group.name) != accepted["plain"].get(group.name) for group in structure.groups
    )
    return found


def speed(rounds: int) -> dict[str, Any]:
    """A ResNet-50 on images of 96 x 96, batch 32, two threads: its time over that of itself without half of its channels."""
    torch.set_num_threads(2)
    network = ResNet50(10).eval()
    x = torch.randn(32, 3, 96, 96)
    small = remove(network, (structure := find_structure(network, x[:1])), uniform(network, structure, 0.5))
    clocks = {"speedup": time.perf_counter, "in processor time": time.process_time}
    ratios: dict[str, list[float]] = {name: [] for name in clocks}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            times = []
            for model in (network, small):
                started = [clock() for clock in clocks.values()]
                model(x)
                times.append([clock() - begun for clock, begun in zip(clocks.values(), started, strict=True)])
            for name, whole, half in zip(clocks, *times, strict=True):
                ratios[name] += [whole / half] if turn else []  # the first round warms up
    torch.set_num_threads(1)
    found = {name: statistics.median(values) for name, values in ratios.items()}
    return {**found, "macs": macs(network, x) / macs(small, x), "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def rows(results: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """What was asked, the figure, the bar, and whether it is met."""
    found: list[tuple[str, str, str, bool | None]] = []
    for name, of in results["counting"].items():
        figure = f"{of['again']:.2f} s (first in a process {of['first']:.2f} s), off by {of['off']:.2%}"
        found.append((f"counting a {name}", figure, "2 s, 1 %", of["again"] < 2 and of["off"] < 0.01))
    p, s = results["pruning"], results["speed"]
    share = p["fast"]["passes"] / p["grid"]
    found.append(("evaluations of pruning by task, 20 layers, of the full grid", f"{share:.3f}", "1/3", share <= 1 / 3))
    same = "the same" if p["same"] else f"{p['groups that differ']} of {p['groups']} groups differ"
    found.append(("accepted ratios beside trying one after another", same, "the same", p["same"]))
    beside = p["fast"]["seconds"] / p["plain"]["seconds"]
    found.append((f"time beside trying one after another ({p['plain']['passes']} evaluations)", f"{beside:.2f}", "", None))
    part = s["speedup"] / s["macs"]
    found.append(
        (
            "speed-up of half the channels, of the ratio of operations",
            f"{s['speedup']:.2f} of {s['macs']:.2f} (in processor time {s['in processor time']:.2f})",
            "0.7",
            part >= 0.7,
        )
    )
    return found


def written(about: dict[str, Any], results: dict[str, Any]) -> str:
    words = [
        "Regenerated by `python -m benchmarks.shrink`. Counting and pruning run on one thread, the speed-up is of two.",
    ]
    return page("Shrink: what it costs and brings", about, words, rows(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    rounds = 1 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = machine()
    results = {}
    for name, run in {"counting": counting, "pruning": pruning, "speed": partial(speed, rounds)}.items():
        results[name] = run()
        print(name, results[name], flush=True)
    print(written(about, results))
    if rounds > 1:
        write_json(RESULTS / "shrink.json", {"machine": about, **results})
        write_text(RESULTS / "shrink.md", written(about, results))


if __name__ == "__main__":
    main()
