"""`polytask.fit` beside the same loop written by hand in plain PyTorch, and what starting polytask costs.

``python -m benchmarks.fit`` runs both in turns in one process on one thread, and writes ``results/fit.json`` and ``fit.md``.
A figure is the ratio of two medians of the same run; the loop by hand does what such loops do: it draws shuffled batches,
sums the tasks' losses, notes each of them, and steps optimizer and schedule.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks._machine import machine, sentence
from torch import Tensor, nn

import polytask as pt
from polytask.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
BARS = {"multidigits": 1.05, "tiny": 1.15}


class ByHand(nn.Module):
    """An encoder and a linear head for each task, with no polytask in it."""

    def __init__(self, encoder: nn.Module, width: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in heads.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {name: head(features) for name, head in self.heads.items()}


def loop(
    model: ByHand,
    inputs: Tensor,
    targets: dict[str, Tensor],
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]],
    steps: int,
    batch_size: int,
) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    sums = dict.fromkeys(targets, 0.0)
    model.train()
    step = 0
    while step < steps:
        order = torch.randperm(len(inputs))
        for start in range(0, len(inputs) - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            outputs = model(inputs[index])
            values = {name: losses[name](outputs[name], targets[name][index]) for name in targets}
            optimizer.zero_grad()
            torch.stack(list(values.values())).sum().backward()
            optimizer.step()
            schedule.step()
            for name, value in values.items():
                sums[name] += value.item()
            step += 1
            if step == steps:
                break
    return sums


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def logistic(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output.squeeze(-1), target)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target[:, None])


def multidigits() -> tuple[Callable[[], None], Callable[[], None], int]:
    """The network and the batches of `polytask.multidigits`, four tasks."""
    data = pt.multidigits(size=1000)
    steps = 150
    inputs = data.train.inputs
    assert isinstance(inputs, Tensor)
    targets = dict(data.train.targets)
    ((mean,), (std,)) = data.task("ink").settings()["scale"]

    def ours() -> None:
        torch.manual_seed(0)
        pt.fit(pt.Model(data.encoder(), data.tasks), data.train, steps=steps, batch_size=64)

    def theirs() -> None:
        torch.manual_seed(0)
        encoder = data.encoder()
        heads = {"left": 10, "right": 10, "parity": 1, "ink": 1}
        losses = {"left": cross_entropy, "right": cross_entropy, "parity": logistic}
        losses["ink"] = lambda output, target: squared(output, (target - mean) / std)
        loop(ByHand(encoder, encoder.width, heads), inputs, targets, losses, steps, 64)  # type: ignore[arg-type]

    return ours, theirs, steps


def tiny() -> tuple[Callable[[], None], Callable[[], None], int]:
    """A network of 200 parameters on batches of 16, where a step is nothing but overhead."""
    torch.manual_seed(0)
    steps = 400
    inputs = torch.randn(4096, 8)
    targets = {"label": torch.randint(0, 3, (4096,)), "sign": (inputs[:, 0] > 0).float(), "value": inputs[:, 1]}
    train = pt.Examples(inputs, targets)
    tasks = [pt.Task.classification("label", classes=3), pt.Task.binary("sign"), pt.Task.regression("value")]

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 12), nn.Tanh())

    def ours() -> None:
        pt.fit(pt.Model(encoder(), tasks, width=12), train, steps=steps, batch_size=16)

    def theirs() -> None:
        losses = {"label": cross_entropy, "sign": logistic, "value": squared}
        loop(ByHand(encoder(), 12, {"label": 3, "sign": 1, "value": 1}), inputs, targets, losses, steps, 16)

    return ours, theirs, steps


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def in_turns(a: Callable[[], None], b: Callable[[], None], rounds: int) -> dict[str, Any]:
    """Medians of two functions called in turns, each first in every other round; and their ratio."""
    a()
    b()
    walls: dict[str, list[float]] = {"a": [], "b": []}
    processors: dict[str, list[float]] = {"a": [], "b": []}
    for i in range(rounds):
        for name in ("ab", "ba")[i % 2]:
            wall, processor = timed(a if name == "a" else b)
            walls[name].append(wall)
            processors[name].append(processor)
    medians = {name: statistics.median(values) for name, values in walls.items()}
    processor_medians = {name: statistics.median(values) for name, values in processors.items()}
    return {
        "fit_seconds": medians["a"],
        "by_hand_seconds": medians["b"],
        "ratio": medians["a"] / medians["b"],
        "processor_ratio": processor_medians["a"] / processor_medians["b"],
    }


def starts(rounds: int) -> dict[str, Any]:
    """Seconds of processes that import and exit, in turns."""
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import polytask": [sys.executable, "-c", "import polytask"],
        "import polytask, use fit": [sys.executable, "-c", "from polytask import Model, fit, multidigits"],
        "polytask --help": [sys.executable, "-c", "from polytask.cli.main import main; main()", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if i:  # the first round fills the file cache
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair")
    parser.add_argument("--dry", action="store_true", help="print only, and write no results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds, "fit": {}}
    for name, build in (("multidigits", multidigits), ("tiny", tiny)):
        ours, theirs, steps = build()
        found = in_turns(ours, theirs, chosen.rounds)
        found |= {"steps": steps, "bar": BARS[name], "within": found["ratio"] <= BARS[name]}
        found["overhead_microseconds_a_step"] = (found["fit_seconds"] - found["by_hand_seconds"]) / steps * 1e6
        result["fit"][name] = found
    result["start_seconds"] = starts(max(3, chosen.rounds // 3))
    page = report(result)
    print(page)
    if not chosen.dry:
        write_json(RESULTS / "fit.json", result)
        write_text(RESULTS / "fit.md", page)


def report(result: dict[str, Any]) -> str:
    lines = [
        "# fit beside a loop written by hand",
        "",
        f"{sentence(result['machine'])}.",
        "",
        "| network | steps | fit | by hand | ratio | processor time | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, f in result["fit"].items():
        lines.append(
            f"| {name} | {f['steps']} | {f['fit_seconds'] * 1e3:.0f} ms | {f['by_hand_seconds'] * 1e3:.0f} ms "
            f"| **{f['ratio']:.3f}** | {f['processor_ratio']:.3f} | {f['bar']:.2f} {'met' if f['within'] else 'missed'} |"
        )
    lines += [
        "",
        f"Medians of {result['rounds']} rounds in turns, set-up of model and optimizer included.",
        "",
        "| process | seconds |",
        "|---|---|",
        *(f"| `{name}` | {value:.2f} |" for name, value in result["start_seconds"].items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
