"""Two tasks that want different networks of one small space, and a search for both that is killed at its n-th evaluation.

``python -m tests.shrink.search.tasks PATH N`` appends a line to ``PATH.done`` for each evaluation.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from polytask.shrink.search import FoundByTask, Goal, Space, search_tasks

SPACE = Space({f"keep{i}": [False, True] for i in range(6)})
GOALS = {
    "left": Goal("left", cost="cost", target=3.0, weight=2.0),
    "right": Goal("error", "lower", cost="cost", target=4.0, weight=2.0),
}


def evaluate(configuration: dict[str, Any]) -> dict[str, float]:
    """The first three parts are worth something to one task, the last three to the other; each costs 1."""
    kept = [float(configuration[f"keep{i}"]) for i in range(6)]
    return {"left": sum(kept[:3]) - 0.2 * sum(kept[3:]), "error": 10 - sum(kept[3:]) + 0.2 * kept[0], "cost": sum(kept)}


def run(path: Path, kill_at: int = 0) -> FoundByTask:
    done = path.with_suffix(".done")

    def counted(configuration: dict[str, Any]) -> dict[str, float]:
        with done.open("a") as file:
            file.write("done\n")
        if kill_at and len(done.read_text().splitlines()) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(configuration)

    return search_tasks(SPACE, counted, GOALS, budget=40, path=path)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
