"""The claims on road scenes: classes, boundaries and colour from luminance, at a size that a processor trains in a minute.

The paper decodes a large pre-trained vision transformer. Here one of 4 blocks with 48 features is trained from scratch, on
367 frames of 24 x 32 pixels in patches of 4, and the features of all its blocks are decoded. Models have as many parameters,
to one percent: what a decoder saves elsewhere it has in experts, channels or hidden features.

- ``shared``: one projection of all levels for all tasks; ``separate``: one for each task; two convolutions each;
- ``uniform``, ``static``: memorial experts, 11, with equal weights or with learned ones that do not depend on the input;
- ``no memory``: the last level's assembly alone, with 34 channels; ``write only``: memories that add up over the levels, and
  are neither an expert nor read by the gates;
- ``full``: 4 experts, 16 channels and gates with 32 hidden features.

The same data, order of frames, initial encoder, optimizer (AdamW in batches of 16, 3e-3 falling as a cosine to 0) and 6
epochs for all, fixed beforehand; the weights are those of the last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.data import DataSet
from polytask.model import Model
from polytask.nn.vit import ViT
from polytask.papers._camvid import FILES, camvid
from polytask.papers._dense import divergence, draw_deltas, outputs_of, relative
from polytask.papers.taskexpert.memory import MemorialExperts
from polytask.papers.taskexpert.model import ConvHead, TaskExpert
from polytask.share import Pathway, Sharing, TaskModules, watched_gates
from polytask.training import evaluate, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "measure", "plot"]

SHRINK = 2
LEVELS = (1, 2, 3, 4)
NETWORK: dict[str, Any] = {"size": (24, 32), "patch": 4, "embedding": 48, "depth": 4, "heads": 3, "channels": 1}
EXPERTS: dict[str, Any] = {"levels": len(LEVELS), "experts": 4, "channels": 16, "hidden": 32}
EPOCHS = 6
OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0, fused=True)


@dataclass(frozen=True)
class Projection(Sharing):
    """Two convolutions from all levels to a few channels, for each task or for all of them: decoders without experts."""

    name: ClassVar[str] = "projection"
    hidden: int
    channels: int
    shared: bool

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return ProjectionPathway(self, width, tasks)


class ProjectionPathway(Pathway):
    """``(N, h, w, width)`` to ``(N, h, w, channels)``."""

    def __init__(self, settings: Projection, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.shared = settings.shared

        def project() -> nn.Module:
            return nn.Sequential(
                *(nn.Conv2d(width, settings.hidden, 1), nn.BatchNorm2d(settings.hidden), nn.GELU()),
                nn.Conv2d(settings.hidden, settings.channels, 3, padding=1),
                *(nn.BatchNorm2d(settings.channels), nn.GELU()),
            )

        self.projections = TaskModules({"all": project()} if settings.shared else {task: project() for task in tasks})

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        maps = features.movedim(-1, 1)
        if self.shared:
            return dict.fromkeys(tasks, self.projections["all"](maps).movedim(1, -1))
        return {task: self.projections[task](maps).movedim(1, -1) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.projections.parameters() if self.shared else iter(())

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return iter(()) if self.shared else self.projections.parameters_of(task)


DECODERS: dict[str, Sharing] = {
    "shared": Projection(209, EXPERTS["channels"], shared=True),
    "separate": Projection(70, EXPERTS["channels"], shared=False),
    "uniform": MemorialExperts(**EXPERTS | {"experts": 11}, gating="uniform"),
    "static": MemorialExperts(**EXPERTS | {"experts": 11}, gating="static"),
    "no memory": MemorialExperts(**EXPERTS | {"channels": 34}, memory="none"),
    "write only": MemorialExperts(**EXPERTS | {"hidden": 42}, memory="write only"),
    "full": MemorialExperts(**EXPERTS),
}


def build(decoder: Sharing, data: DataSet) -> Model:
    """The encoder, one of `DECODERS` and the heads."""
    encoder = ViT(**NETWORK, levels=LEVELS)
    if isinstance(decoder, MemorialExperts):
        return TaskExpert(encoder, data.tasks, decoder, upsample=2)
    model = Model(encoder, data.tasks, decoder)
    model.heads = TaskModules(
        {task.name: ConvHead(EXPERTS["channels"], outputs_of(task), upsample=2) for task in data.tasks}
    )
    return model


def train(decoder: Sharing, data: DataSet, seed: int) -> Model:
    """A trained model in evaluation mode."""
    torch.manual_seed(seed)
    model = build(decoder, data)
    fit(model, data.train, epochs=EPOCHS, batch_size=16, optimizer=OPTIMIZER, seed=seed)
    return model.eval()


def measure(seed: int, data: Path) -> Measurements:
    """For each of `DECODERS`:

    - ``DECODER delta``: `delta_m` on test data in percent, over models of a single task with ``separate``'s decoder;
      ``DECODER TASK``, the task's metric.
    - of ``full``, on test frames, means over levels: ``memory``, the memory's weight; ``spread``, the standard deviation of
      a weight over frames; ``divergence``, the mean Jensen-Shannon divergence of the tasks' mean weights over log 2; ``LEVEL
      TASK EXPERT``, the mean weights.
    """
    frames = camvid(data, SHRINK)
    single: dict[str, float] = {}
    for task in frames.tasks:
        alone = train(DECODERS["separate"], frames.only([task.name]), seed)
        single[task.name] = evaluate(alone, frames.test)[task.name][task.metric]
    measured = {f"single {name}": value for name, value in single.items()}
    for kind, decoder in DECODERS.items():
        model = train(decoder, frames, seed)
        scores = evaluate(model, frames.test)
        measured[f"{kind} delta"] = relative(scores, single, frames.tasks)
        measured |= {f"{kind} {task.name}": scores[task.name][task.metric] for task in frames.tasks}
        if kind == "full":
            measured |= _gates(model, frames)
    return measured


@torch.no_grad()
def _gates(model: Model, frames: DataSet) -> dict[str, float]:
    with watched_gates(model) as chosen:
        model(frames.test[:][0])
    count = EXPERTS["experts"] + 1
    weights = torch.stack([gates.dense(count).flatten(0, -2) for gates in chosen]).double()
    by_level = weights.view(len(LEVELS), len(frames.tasks), -1, count)
    means = by_level.mean(2)
    spread = [divergence(level) / torch.log(torch.tensor(2.0)).item() for level in means]
    return {
        "full memory": float(means[..., -1].mean()),
        "full spread": float(by_level.std(2).mean()),
        "full divergence": sum(spread) / len(spread),
    } | {
        f"full {level} {task.name} {expert}": float(means[row, column, expert])
        for row, level in enumerate(LEVELS)
        for column, task in enumerate(frames.tasks)
        for expert in range(count)
    }


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Delta_m of each decoder, a small mark for each seed; and the mean weights of experts and memory by task and level."""
    from matplotlib.figure import Figure

    first = next(iter(measurements.values()))
    names = [name.removeprefix("single ") for name in first if name.startswith("single ")]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    by_kind, *by_task = figure.subplots(1, 1 + len(names), width_ratios=[1.5, *[1] * len(names)])
    draw_deltas(by_kind, measurements, tuple(DECODERS), own=("full",))
    by_kind.set_title("decoders with as many parameters", loc="left", fontsize=10)
    count = EXPERTS["experts"] + 1
    colours = ["#56b4e9", "#009e73", "#e69f00", "#cc79a7", "0.75"]
    for name, axes in zip(names, by_task, strict=True):
        bottom = [0.0] * len(LEVELS)
        for expert in range(count):
            heights = [first[f"full {level} {name} {expert}"] for level in LEVELS]
            label = f"expert {expert + 1}" if expert < count - 1 else "memory"
            axes.bar(LEVELS, heights, bottom=bottom, color=colours[expert], width=0.8, label=label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_xticks(LEVELS)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1] if axes is by_task[0] else [])
        axes.set_xlabel("block")
        axes.set_title(f"{name}: mean weights", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_task[0].get_legend_handles_labels(), loc="outside lower right", ncols=count, frameon=False, fontsize=9)
    return figure
