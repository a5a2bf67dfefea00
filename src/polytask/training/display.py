"""The live display of a run: progress, time left, and each task's loss and metric."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """A progress bar and a table of tasks, redrawn a few times a second at most.

    Args:
        total: steps of the whole run.
        done: steps already done, for a resumed run.
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        self.progress = Progress(
            TextColumn("[bold]fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = self.progress.add_task("fit", total=total, completed=done)
        self.losses: dict[str, float] = {}
        self.last: dict[str, Any] = {}
        self.redrawn = 0.0
        self.live = Live(self._view(), console=console or Console(stderr=True), auto_refresh=False, transient=False)
        self.live.start()

    def step(self, step: int, losses: dict[str, float]) -> None:
        self.losses |= losses
        now = time.monotonic()
        if now - self.redrawn > 0.25:
            self.redrawn = now
            self.progress.update(self.bar, completed=step)
            self.live.update(self._view(), refresh=True)

    def record(self, record: dict[str, Any]) -> None:
        self.last = record
        self.progress.update(self.bar, completed=record["step"])
        self.live.update(self._view(), refresh=True)

    def close(self) -> None:
        self.live.update(self._view(), refresh=True)
        self.live.stop()

    def _view(self) -> Group:
        table = Table(box=None, header_style="dim", pad_edge=False, expand=True)
        table.add_column("task")
        table.add_column("loss", justify="right")
        table.add_column("validation", no_wrap=True, overflow="ellipsis", ratio=1)
        for name, loss in self.losses.items():
            metrics = self.last.get("validation", {}).get(name, {})
            shown = "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
            table.add_row(name, f"{loss:.4f}", shown)
        parts: list[Any] = [self.progress, table]
        conflicts = self.last.get("conflicts")
        if conflicts:
            parts.append(f"conflicting gradient pairs: {conflicts['share']:.0%}")
        return Group(*parts)
