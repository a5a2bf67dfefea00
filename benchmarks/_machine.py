"""What a benchmark ran on, for its report."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and versions, and how busy the machine was when it was asked."""
    import torch

    import polytask
    from polytask.comparison.compare import processor

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polytask": polytask.__version__,
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def sentence(about: dict[str, Any]) -> str:
    """The description in one line, for a page."""
    load = "/".join(f"{value:g}" for value in about["load_average"])
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, threads {about['threads']}, load {load}; "
        f"Python {about['python']}, torch {about['torch']}, polytask {about['polytask']}; {about['date']}"
    )


def resident(field: str) -> int:
    """Bytes of this process, by Linux: ``"RssAnon"``, those not of files, or ``"VmHWM"``, the most there were at a time."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def reset_peak() -> None:
    """Let ``"VmHWM"`` count from now on alone."""
    Path("/proc/self/clear_refs").write_text("5")
