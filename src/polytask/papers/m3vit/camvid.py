"""The claims on road scenes: classes, boundaries and colour from luminance, at a size that a processor trains in a minute.

The paper's data and its pre-training on ImageNet stand behind its figures, and neither is at hand: everything here is
trained from scratch, on 367 frames of 24 x 32 pixels. A vision transformer of 4 blocks with 48 features reads patches of 4
pixels; in blocks 1 and 3 there are 8 experts of which a token uses 2, each half as wide as the dense MLP, so that a pass
costs what that of the dense transformer costs. Decoders are alike everywhere, with 16 channels and two stages.

All models have the same data, order of frames, optimizer (AdamW in batches of 16, 3e-3 falling as a cosine to 0: of that and
1e-3 what was better for the dense model in validation) and 6 epochs, fixed for all; the weights are those of the last step.
A step of a model with task gates makes a pass of the encoder for each task, and the shared dense model makes one. So that
one is also trained for three times the epochs, and validation chooses between its two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polytask.claim import Measurements
from polytask.data import DataSet
from polytask.nn.vit import ViT
from polytask.papers._camvid import FILES, camvid
from polytask.papers._dense import divergence, draw_deltas, relative
from polytask.papers.m3vit.decoder import DenseModel
from polytask.papers.m3vit.encoder import M3ViT
from polytask.papers.m3vit.routing import expert_major, expert_use, token_major
from polytask.scope import task_scope
from polytask.share import watched_gates
from polytask.task import Task
from polytask.training import evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "measure", "plot"]

SHRINK = 2
SIZE = (24, 32)
NETWORK: dict[str, Any] = {"size": SIZE, "patch": 4, "embedding": 48, "depth": 4, "heads": 3, "channels": 1}
EXPERTS: dict[str, Any] = {"experts": 8, "k": 2, "ratio": 2.0}
EPOCHS = 6
LOOKS = 4
OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, fused=True)
SHARED = ("dense", "long dense", "one gate", "multi-gate", "task-conditioned")


def build(kind: str, tasks: Sequence[Task]) -> DenseModel:
    """A model by its name in `SHARED`."""
    names = [task.name for task in tasks]
    encoder: nn.Module = ViT(**NETWORK)
    if kind in ("one gate", "multi-gate", "task-conditioned"):
        encoder = M3ViT(names, gating=kind, **NETWORK, **EXPERTS)  # type: ignore[arg-type]
    return DenseModel(encoder, tasks, channels=16, stages=2)


def train(kind: str, data: DataSet, seed: int) -> tuple[DenseModel, float]:
    """A trained model in evaluation mode, and in how many percent of the pairs of tasks their gradients conflicted."""
    torch.manual_seed(seed)
    model = build(kind, data.tasks)
    epochs = 3 * EPOCHS if kind == "long dense" else EPOCHS
    fitted = fit(
        model,
        data.train,
        epochs=epochs,
        batch_size=16,
        optimizer=OPTIMIZER,
        seed=seed,
        evaluate_every=max(1, epochs * len(data.train) // 16 // LOOKS),
        conflicts=len(data.tasks) > 1,
    )
    shares = [record["conflicts"]["share"] for record in fitted.history if "conflicts" in record]
    return model.eval(), 100 * sum(shares) / max(len(shares), 1)


def measure(seed: int, data: Path) -> Measurements:
    """For each of `SHARED`, and ``chosen dense``, the longer or shorter training that validation prefers:

    - ``KIND delta``: `delta_m` on test data in percent, over models of a single task with the same encoder and epochs;
      ``KIND TASK``, the task's metric; ``KIND conflicts``, in percent of pairs of tasks and looks.
    - for gates: ``KIND divergence``, the mean Jensen-Shannon divergence of the tasks' use of experts, in nats over log 2;
      ``KIND used``, experts with a token, ``KIND loads``, how often the token-major schedule loads an expert for each load
      of the expert-major one; both means over layers and tasks, on 16 test frames.
    """
    frames = camvid(data, SHRINK)
    single: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    measured: dict[str, float] = {}
    for task in frames.tasks:
        alone, _ = train("single", frames.only([task.name]), seed)
        for split, found in single.items():
            found |= {task.name: evaluate(alone, getattr(frames, split))[task.name][task.metric]}
        measured[f"single {task.name}"] = single["test"][task.name]
    deltas = {}
    for kind in SHARED:
        model, conflicts = train(kind, frames, seed)
        scores = {split: evaluate(model, getattr(frames, split)) for split in single}
        deltas[kind] = relative(scores["validation"], single["validation"], frames.tasks)
        measured[f"{kind} delta"] = relative(scores["test"], single["test"], frames.tasks)
        measured[f"{kind} conflicts"] = conflicts
        measured |= {f"{kind} {task.name}": scores["test"][task.name][task.metric] for task in frames.tasks}
        if isinstance(model.encoder, M3ViT):
            measured |= {f"{kind} {name}": value for name, value in _routing(model.encoder, frames).items()}
    best = max(("dense", "long dense"), key=lambda kind: deltas[kind])
    chosen = {name: value for name, value in measured.items() if name.startswith(f"{best} ")}
    return measured | {f"chosen {name.removeprefix('long ')}": value for name, value in chosen.items()}


def _routing(encoder: M3ViT, frames: DataSet) -> dict[str, float]:
    inputs, names = frames.test[:16][0], [task.name for task in frames.tasks]
    use = expert_use(encoder, inputs, names, EXPERTS["experts"])
    loads, used = [], []
    expert_bytes = 4 * sum(p.numel() for p in encoder.layers()[0].bank.parameters()) // EXPERTS["experts"]
    for name in names:
        with torch.no_grad(), task_scope(name), watched_gates(encoder) as layers:
            encoder(inputs)
        for gates in layers:
            experts = gates.experts.flatten(0, -2)
            reordered = expert_major(experts, expert_bytes)
            used.append(reordered.loads)
            loads.append(token_major(experts, expert_bytes).loads / reordered.loads)
    spread = [divergence(layer) / torch.log(torch.tensor(2.0)).item() for layer in use]
    found = {"divergence": sum(spread) / len(spread), "used": sum(used) / len(used), "loads": sum(loads) / len(loads)}
    shares = {
        f"use {layer} {name} {expert}": float(use[layer, row, expert])
        for layer in range(len(use))
        for row, name in enumerate(names)
        for expert in range(EXPERTS["experts"])
    }
    return found | shares


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Delta_m of each model, a small mark for each seed; and the first seed's use of experts by task in each layer."""
    from matplotlib.figure import Figure

    first = next(iter(measurements.values()))
    names = [name.removeprefix("single ") for name in first if name.startswith("single ")]
    layers = len({name.split()[2] for name in first if name.startswith("multi-gate use ")})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_kind, *by_layer = figure.subplots(1, 1 + layers, width_ratios=[1.5, *[1] * layers])
    draw_deltas(by_kind, measurements, SHARED, own=("multi-gate", "task-conditioned"))
    by_kind.set_title("models of all tasks", loc="left", fontsize=10)
    for layer, axes in enumerate(by_layer):
        use = [[first[f"multi-gate use {layer} {n} {e}"] for e in range(EXPERTS["experts"])] for n in names]
        image = axes.imshow(use, cmap="Blues", vmin=0, vmax=0.5, aspect="auto")
        axes.set_yticks(range(len(names)), names if layer == 0 else [""] * len(names))
        axes.set_xticks(range(EXPERTS["experts"]))
        axes.set_xlabel("expert")
        axes.set_title(f"block {2 * layer + 1}: use of experts", loc="left", fontsize=10)
    figure.colorbar(image, ax=by_layer, label="share of choices", shrink=0.8)
    return figure
