"""What happened during a run, a JSON line for each evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from polytask.errors import InputError, optional
from polytask.files import write_text

FILE = "history.jsonl"


class Listener(Protocol):
    """Hears of a run's progress. The live display, the history file and TensorBoard are listeners."""

    def step(self, step: int, losses: dict[str, float]) -> None:
        """After each optimizer step, with the tasks' losses before it."""

    def record(self, record: dict[str, Any]) -> None:
        """After each evaluation: see `polytask.fit` for what a record holds."""

    def close(self) -> None:
        """At the end, however the run ends."""


class HistoryFile:
    """Appends records to ``history.jsonl``; on resuming, lines after the checkpoint are dropped first."""

    def __init__(self, folder: Path, records: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(finite(record)) + "\n" for record in records)
        path = folder / FILE
        try:
            write_text(path, lines)
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def step(self, step: int, losses: dict[str, float]) -> None:
        pass

    def record(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(finite(record)) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Writes each record's losses and metrics as scalars, under ``folder/tensorboard``. Needs the extra ``tensorboard``.

    Args:
        folder: the run's folder.
        done: steps already done; what a killed run wrote beyond them is dropped.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        optional("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)

    def step(self, step: int, losses: dict[str, float]) -> None:
        pass

    def record(self, record: dict[str, Any]) -> None:
        step = record["step"]
        for task, loss in record["loss"].items():
            self.writer.add_scalar(f"loss/{task}", loss, step)
        for task, values in record["validation"].items():
            for name, value in values.items():
                self.writer.add_scalar(f"validation/{task}/{name}", value, step)
        if record["score"] is not None:
            self.writer.add_scalar("score", record["score"], step)

    def close(self) -> None:
        self.writer.close()


def finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot hold (NaN, infinity) as ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
