"""Searches again and again, killed at every point where it evaluates or touches the journal.

``python searching_kills.py FOLDER SAMPLER``: a child process is killed by SIGKILL at its first such point, the next at its
second, and so on, each followed by a search that is let go to its end. What it finds goes to standard output as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from polytask.merge.searching import Range, search

BUDGET = 3


def in_child(folder: Path, sampler: str, kill_at: int | None = None) -> int:
    """Search in a child that is killed at its ``kill_at``-th point; the child's exit status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def point() -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in ("os.rename", "os.remove")) and str(arguments[0]).startswith(str(folder / "journal")):
            point()

    def evaluate(settings: dict[str, Any]) -> float:
        point()  # an evaluation that is cut short is not done
        with (folder / "done.jsonl").open("a") as done:
            done.write(json.dumps(settings) + "\n")
        point()
        return -abs(settings["weight"][0] - 0.3) - abs(settings["weight"][1] - 0.9) - 0.1 * (settings["scope"] == "tensor")

    space = {"weight": Range(0.0, 1.0, count=2), "scope": ["model", "tensor"]}
    sys.addaudithook(hook)
    search(evaluate, space, budget=BUDGET, sampler=sampler, path=folder / "journal" / "search.jsonl")
    os._exit(0)


def main(folder: Path, sampler: str) -> None:
    if sampler == "optuna":
        import_module("optuna.samplers")  # loaded once, before the children are born

    def run(name: str, kill_at: int | None = None) -> int:
        (folder / name / "journal").mkdir(parents=True, exist_ok=True)
        return in_child(folder / name, sampler, kill_at)

    def journal(name: str) -> bytes:
        return (folder / name / "journal" / "search.jsonl").read_bytes()

    def done(name: str) -> list[str]:
        return (folder / name / "done.jsonl").read_text().splitlines()

    assert run("whole") == 0
    kills, failed, differing, again = 0, [], [], []
    while os.WIFSIGNALED(run(str(kills), kills + 1)):
        name, kills = str(kills), kills + 1
        if run(name) != 0:
            failed.append(kills)
        elif journal(name) != journal("whole"):
            differing.append(kills)
        # What was done but not yet in the journal is the one thing that may be done again.
        extra = len(done(name)) - BUDGET
        if extra > 1 or (extra == 1 and len(set(done(name))) != BUDGET):
            again.append(kills)
    print(json.dumps({"kills": kills, "failed": failed, "differing": differing, "again": again}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
