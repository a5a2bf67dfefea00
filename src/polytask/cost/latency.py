"""How long a module takes here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from polytask.errors import InputError
from polytask.nn.modes import evaluating


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass, and how they were measured.

    Attributes:
        median, fastest, slowest: milliseconds.
        repeats, warmup: how many passes were timed, and how many ran before.
        threads: how many torch used within an operation.
        batch_size: the length of the first tensor among the inputs.
        device: where the inputs were.
    """

    median: float
    fastest: float
    slowest: float
    repeats: int
    warmup: int
    threads: int
    batch_size: int
    device: str


def measure_latency(
    network: nn.Module, *inputs: Any, repeats: int = 20, warmup: int = 3, threads: int | None = None, **named: Any
) -> Latency:
    """Time ``network(*inputs, **named)`` in evaluation mode and without gradients; its mode is restored.

    Args:
        network: on the device that is measured.
        inputs, named: on the same device, of the batch size that is asked about.
        repeats: passes that are timed.
        warmup: passes before, which are not.
        threads: within an operation; by default as many as torch has now. It is put back afterwards.

    >>> found = measure_latency(nn.Linear(8, 8), torch.ones(4, 8), repeats=5, threads=1)
    >>> found.batch_size, found.threads, 0 < found.fastest <= found.median <= found.slowest
    (4, 1, True)
    """
    if repeats < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise InputError(f"repeats {repeats}, warmup {warmup}, threads {threads}: expected at least 1, 0 and 1")
    tensors = [x for x in tree_leaves((inputs, named)) if isinstance(x, Tensor)]
    if not tensors:
        raise InputError("latency: no tensor among the inputs, expected at least one")
    accelerator = next((x.device for x in tensors if x.device.type != "cpu"), None)
    before = torch.get_num_threads()
    times = []
    try:
        torch.set_num_threads(threads or before)
        with evaluating(network), torch.inference_mode():
            for _ in range(warmup + repeats):
                started = time.perf_counter()
                network(*inputs, **named)
                if accelerator is not None:
                    torch.accelerator.synchronize(accelerator)
                times.append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(before)
    timed = sorted(times[warmup:])
    middle = (timed[(repeats - 1) // 2] + timed[repeats // 2]) / 2
    batch, device = len(tensors[0]) if tensors[0].ndim else 1, str(accelerator or "cpu")
    return Latency(middle, timed[0], timed[-1], repeats, warmup, threads or before, batch, device)
