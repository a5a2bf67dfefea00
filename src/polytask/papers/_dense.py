"""What papers on several dense tasks have in common: the tasks of two data sets, how they are weighed, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from polytask.claim import Measurements
from polytask.measure import delta_m
from polytask.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = {"segmentation": 1.0, "parts": 2.0, "saliency": 5.0, "boundary": 2.5, "normals": 10.0, "depth": 1.0}
"""The weights of the losses, for ``balance=Fixed(...)``, that papers since ASTMT (Maninis et al., CVPR 2019) have.

Theirs is 50 for boundaries, with a loss whose sides count 0.95 and 0.05; here they count 19 and 1, twenty times as much.
"""


def pascal_context() -> list[Task]:
    """The five tasks of PASCAL-Context, 512 x 512: 20 classes and background, human parts, saliency, normals, boundaries.

    The papers' saliency loss weighs salient pixels by how rare they are in a batch, or has two outputs; their surface
    normals are brought to length 1 before the loss. Neither is done here.
    """
    parts, saliency = Task.segmentation("parts", classes=7), Task.pixel_binary("saliency", metric="f1")
    return [Task.segmentation("segmentation", classes=21), parts, saliency, _normals(), _boundary()]


def nyud() -> list[Task]:
    """The four tasks of NYUD-v2: 40 classes, depth, normals, boundaries."""
    depth = Task.pixel_regression("depth", robust="mae", metric="rmse")
    return [Task.segmentation("segmentation", classes=40), depth, _normals(), _boundary()]


def poly(optimizer: Optimizer, steps: int) -> LambdaLR:
    """The learning rate times ``(1 - step / steps)^0.9``, for ``fit(schedule=poly)``."""
    return LambdaLR(optimizer, lambda step: max(1 - step / steps, 0.0) ** 0.9)


def outputs_of(task: Task) -> int:
    """How many channels a head of a dense task has."""
    return cast(nn.Conv2d, task.head(1)).out_channels


def relative(metrics: Mapping[str, Mapping[str, float]], single: Mapping[str, float], tasks: Sequence[Task]) -> float:
    """`delta_m` of the tasks' main metrics over those of single-task models, in percent.

    Args:
        metrics: as `polytask.training.evaluate` returns them.
        single: the main metric of each task's own model.
        tasks: which.
    """
    values = {task.name: metrics[task.name][task.metric] for task in tasks}
    return 100 * delta_m(values, single, {task.name: task.higher_is_better for task in tasks})


def divergence(shares: Tensor) -> float:
    """The mean Jensen-Shannon divergence over pairs of distributions, the rows of ``shares (K, E)``; 0 to log 2."""
    first, second = torch.triu_indices(len(shares), len(shares), 1)
    p, q = shares[first], shares[second]
    middle = (p + q) / 2
    kl = [torch.special.xlogy(a, a / middle.clamp(min=1e-30)).sum(-1) for a in (p, q)]
    return float((kl[0] + kl[1]).mean() / 2)


def draw_deltas(axes: Axes, measurements: Mapping[int, Measurements], kinds: Sequence[str], own: Sequence[str]) -> None:
    """A row for each of ``kinds``: its measurement ``KIND delta``, a small mark for each seed; ``own`` are in colour."""
    for row, kind in enumerate(kinds):
        values = [measured[f"{kind} delta"] for measured in measurements.values()]
        colour = "#0072b2" if kind in own else "0.45"
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.3, markersize=4)
        axes.plot(sum(values) / len(values), row, "D", color=colour, markersize=8)
    axes.axvline(0, color="0.8", linewidth=1)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlabel("test delta_m over single-task models, %")
    axes.spines[["top", "right"]].set_visible(False)


def _normals() -> Task:
    return Task.pixel_regression("normals", outputs=("x", "y", "z"), robust="mae", metric="mae")


def _boundary() -> Task:
    return Task.pixel_binary("boundary", positive_weight=19.0)
