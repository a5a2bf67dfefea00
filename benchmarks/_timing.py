"""Two ways to do the same, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]


def seconds(run: Run) -> float:
    """How long one run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratio(ours: Run, theirs: Run, rounds: int) -> dict[str, float]:
    """Seconds of each, the median, and the median over rounds of ours divided by theirs."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]  # the first round warms up
    found = {"ours": statistics.median(a for a, _ in pairs), "theirs": statistics.median(b for _, b in pairs)}
    return {"ratio": statistics.median(a / b for a, b in pairs), **found}
