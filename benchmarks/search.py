"""Search: evaluations that strategies need on real measurements, and what they cost beside an evaluation.

    python -m benchmarks.search [--quick]

regenerates ``benchmarks/results/search.json`` and ``search.md``. It needs the data sets of `hardware_aware` in the folder
that ``POLYTASK_DATA`` names. Everything runs in one process on one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from benchmarks._machine import machine, sentence

from polytask.files import write_json, write_text
from polytask.papers.hardware_aware import cells, once_for_all
from polytask.papers.hardware_aware.data import REFERENCE, evaluations, run
from polytask.shrink.search import Space, search, strategies
from polytask.shrink.search.space import Configuration
from polytask.statistics import t_interval

RESULTS = Path(__file__).parent / "results"
GENES = Space({f"gene{i}": [3, 5, 7] for i in range(20)})
BUDGETS = {"random": 250, "nsga2": 250, "age_moea": 250, "linas": 250, "full_search": 1050}
SEEDS = 10


# Search overhead


def overhead(rounds: int) -> dict[str, Any]:
    """Milliseconds of each strategy for an evaluation, the evaluation's own left out."""
    weights = np.random.default_rng(0).normal(size=(20, 3))
    clocks = (time.perf_counter, time.process_time)
    spent = np.zeros(2)

    def now() -> Any:
        return np.array([clock() for clock in clocks])

    def evaluate(configuration: Configuration) -> dict[str, float]:
        """Additive but for a product, as accuracies and operations about are."""
        started = now()
        places = [(value - 3) // 2 for value in configuration.values()]
        gains = weights[np.arange(20), places]
        found = {"accuracy": 75 + 0.3 * gains.sum() + 0.1 * gains[0] * gains[1], "macs": 3e8 + 1e7 * sum(places)}
        spent[:] += now() - started
        return found

    def cost(name: str, seed: int) -> Any:
        """In wall time, and in the process's own."""
        spent[:] = 0
        started = now()
        objectives: Any = {"accuracy": "higher", "macs": "lower"}
        search(GENES, evaluate, objectives, budget=BUDGETS[name], strategy=name, seed=seed)
        return 1e3 * (now() - started - spent) / BUDGETS[name]

    cost("linas", 0)  # imports what it needs
    times = {name: [cost(name, seed) for seed in range(rounds)] for name in strategies}
    medians = {name: np.median(found, axis=0).tolist() for name, found in times.items()}
    return {name: {"wall": wall, "process": process} for name, (wall, process) in medians.items()}


# Evaluations


def logs(data: Path) -> dict[str, Any]:
    """The published searches among the sub-networks of Once-for-All: one run of each strategy."""
    table = evaluations(data)
    linas, evolved = (run(table, f"{name}_acc_macs") for name in ("linasnsga2", "evonsga2"))
    points = (50, 100, 150, 250)
    return {
        "evaluations": once_for_all.evaluations_to(linas, evolved.hypervolume(REFERENCE, 250)),
        "linas": {n: linas.hypervolume(REFERENCE, n) / 1e8 for n in points},
        "nsga2": {n: evolved.hypervolume(REFERENCE, n) / 1e8 for n in points},
    }


def paired(measure: Callable[[int, Path], Any], data: Path, seeds: int) -> dict[int, dict[str, float]]:
    return {seed: dict(measure(seed, data)) for seed in range(seeds)}


# The page


Row: TypeAlias = tuple[str, str, str, bool | None]
"""What was asked, the figure, the bar, and whether it is met."""


def rows(results: dict[str, Any]) -> list[Row]:
    found: list[Row] = []
    reached = results["logs"]["evaluations"]
    goal = "evaluations of LINAS to NSGA-II's hypervolume at 250"
    found.append((f"Once-for-All, published logs: {goal}", str(reached), "150", reached <= 150))
    ours = [measured["linas evaluations"] for measured in results["once_for_all"].values()]
    figure = f"{statistics.mean(ours):.0f} ({min(ours):.0f} to {max(ours):.0f})"
    found.append((f"Once-for-All, ours, {len(ours)} seeds: {goal}", figure, "150", max(ours) <= 150))
    seeds = list(results["cells"].values())
    for device in cells.DEVICES:
        for n in cells.POINTS:
            gains = [100 * (seed[f"{device} linas at {n}"] - seed[f"{device} nsga2 at {n}"]) for seed in seeds]
            interval = t_interval(gains)
            figure = f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
            what = f"NAS-Bench-201, {device}, {n} evaluations: LINAS over NSGA-II, % of the hypervolume"
            found.append((what, figure, "above 0", interval.low > 0))
    for name, times in results["overhead"].items():
        figure = f"{times['process']:.2f} ms ({times['wall']:.2f} ms)"
        what = f"overhead for an evaluation, 20 genes: {name}, budget {BUDGETS[name]}"
        found.append((what, figure, "10 ms", times["process"] < 10))
    return found


def page(about: dict[str, Any], results: dict[str, Any]) -> str:
    lines = [
        "# Search: evaluations, and what they cost beside",
        "",
        f"{sentence(about)}.",
        "",
        "Regenerated by `python -m benchmarks.search`. Strategies with their defaults, but populations and batches of 20",
        "for cells. Networks of Once-for-All that were not measured have the top-1 of trees fitted on those that were.",
        f"Intervals are of 95 %, over {len(results['cells'])} paired seeds. Overhead is the time of a search without its",
        "evaluations, for each of them: that of the process itself, which does not depend on what else runs, and in",
        "parentheses that on the clock.",
        "",
        "| what | figure | bar | met |",
        "|---|---|---|---|",
    ]
    for what, figure, bar, met in rows(results):
        lines.append(f"| {what} | {figure} | {bar} | {'' if met is None else 'yes' if met else '**no**'} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, nothing is written")
    quick = parser.parse_args().quick
    data = Path(os.environ.get("POLYTASK_DATA", ""))
    if missing := [name for name in (*once_for_all.FILES, *cells.FILES) if not (data / name).exists()]:
        sys.exit(f"benchmarks.search: {', '.join(missing)}: not in the folder that POLYTASK_DATA names")
    torch.set_num_threads(1)
    about = machine()
    results: dict[str, Any] = {"overhead": overhead(1 if quick else 5)}
    print("overhead", results["overhead"], flush=True)
    results["logs"] = logs(data)
    results["once_for_all"] = paired(once_for_all.measure_search, data, 2 if quick else SEEDS // 2)
    print("once_for_all", results["once_for_all"], flush=True)
    results["cells"] = paired(cells.measure_cells, data, 2 if quick else SEEDS)
    print(page(about, results))
    if not quick:
        write_json(RESULTS / "search.json", {"machine": about, **results})
        write_text(RESULTS / "search.md", page(about, results))


if __name__ == "__main__":
    main()
