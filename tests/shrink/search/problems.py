"""Small problems that the tests search, and a search that is killed at its n-th evaluation.

``python -m tests.shrink.search.problems PATH STRATEGY [N]`` prints what it found as JSON, and appends a line to
``PATH.done`` for each evaluation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from polytask.shrink.search import AGEMOEA, LINAS, NSGA2, FullSearch, Random, Space, Strategy, search

GENES = 8
SPACE = Space(
    {"depth": [4, 6, 8], **{f"w{i}": [1, 2, 3, 4] for i in range(GENES)}},
    when={f"w{i}": {"depth": [d for d in (4, 6, 8) if d > i]} for i in range(4, GENES)},
)
OBJECTIVES: Any = {"quality": "higher", "cost": "lower"}
REFERENCE = {"quality": 0.0, "cost": 500.0}
STRATEGIES: dict[str, Strategy] = {
    "random": Random(batch=7),
    "nsga2": NSGA2(population=10),
    "age_moea": AGEMOEA(population=10),
    "linas": LINAS(population=10, generations=15),
    "full_search": FullSearch(samples=30, population=10, generations=15),
}


def evaluate(configuration: dict[str, Any]) -> dict[str, float]:
    """Later blocks give less and cost more; the first two work together."""
    widths = [configuration[f"w{i}"] for i in range(configuration["depth"])]
    assert all(configuration[f"w{i}"] is None for i in range(configuration["depth"], GENES))
    quality = sum((width**0.5) / (1 + i) for i, width in enumerate(widths)) + 0.2 * widths[0] * widths[1]
    return {"quality": quality, "cost": float(sum((3 + i) * width**2 for i, width in enumerate(widths)))}


def sometimes(configuration: dict[str, Any]) -> dict[str, float]:
    """Fails in three ways."""
    if configuration["w0"] == 1:
        raise ZeroDivisionError("the first\nof two lines")
    if configuration["w0"] == 2 and configuration["w1"] == 2:
        return {"quality": float("nan"), "cost": 1.0}
    return {"quality": 1.0} if configuration["w1"] == 1 else evaluate(configuration)


def main(path: Path, strategy: str, kill_at: int = 0) -> None:
    done = path.with_suffix(".done")

    def counted(configuration: dict[str, Any]) -> dict[str, float]:
        with done.open("a") as file:
            file.write("done\n")
        if kill_at and len(done.read_text().splitlines()) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return sometimes(configuration)

    known = {**STRATEGIES, "ridge": LINAS(population=10, generations=15, models=("ridge",))}  # imports less
    found = search(SPACE, counted, OBJECTIVES, budget=45, strategy=known[strategy], path=path)
    print(json.dumps([dataclasses.asdict(trial) for trial in found.trials]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
