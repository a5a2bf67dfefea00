"""A saved model made smaller: judged over budgets, and written as one that every command takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.files import replacing
from polytask.model import Model
from polytask.shrink import Budget, Row, Shrinking, shrink
from polytask.shrink.budgets import SHARES
from polytask.store import Saved, save
from polytask.training import evaluate, fit
from polytask.training.evaluate import evaluate_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALIBRATION = 1000
"""Of the examples how many the choice of channels is made on, and at most a quarter of them."""


def shrink_saved(
    saved: Saved,
    train: Examples,
    validation: Examples,
    *,
    budget: Budget,
    floors: Mapping[str, str],
    shares: Sequence[float] = SHARES,
    closer: int = 3,
    steps: int = 200,
    lr: float = 3e-4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Shrinking:
    """A Pareto table of smaller models over budgets (`polytask.shrink.shrink`).

    Args:
        saved: the model.
        train: examples with labels of all tasks: the first ones choose channels by their losses, the others fine-tune.
        validation: further examples; floors are held against the tasks' main metrics on them.
        budget, floors, shares, closer, progress: as for `polytask.shrink.shrink`.
        steps, lr: of fine-tuning each smaller model; no steps leave it as it was cut.
        seed: of the order of examples.
    """
    model = saved.model
    held_out = min(CALIBRATION, len(train) // 4)
    if held_out < 1:
        raise InputError(f"{len(train)} examples to shrink with, expected at least four")
    for task in model.tasks:
        if task not in train.targets or task not in validation.targets:
            raise InputError(f"the data has no labels of {task!r}, whose loss has to be known: expected all tasks' labels")
    calibration, rest = (
        train.subset(torch.arange(0, held_out)),
        train.subset(torch.arange(held_out, len(train))),
    )

    def losses(network: nn.Module) -> dict[str, float]:
        return evaluate_losses(network, calibration)

    def metrics(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, Model)
        return {name: values[model.tasks[name].metric] for name, values in evaluate(network, validation).items()}

    def finetune(network: nn.Module) -> None:
        assert isinstance(network, Model)
        fit(network, rest, steps=steps, lr=lr, batch_size=min(64, len(rest)), seed=seed)
        network.eval()

    return shrink(
        model,
        train[:1][0],
        losses=losses,
        metrics=metrics,
        higher_is_better={name: task.higher_is_better for name, task in model.tasks.items()},
        budget=budget,
        floors=floors,
        shares=shares,
        closer=closer,
        finetune=finetune if steps else None,
        progress=progress,
    )


def save_shrunk(saved: Saved, row: Row, out: Path, asked: Mapping[str, Any]) -> None:
    """Write the model of a row as one that every command takes; its recipe says what was asked, and what it came to."""
    assert isinstance(row.network, Model)
    kept = {key: value for key, value in saved.about["recipe"].items() if key not in ("validation", "test")}
    tasks = saved.model.tasks
    validation = {name: {tasks[name].metric: value} for name, value in row.metrics.items()}
    shrunk = {**asked, "share": row.share, "of": str(saved.path)}
    save(row.network, out, recipe={**kept, "shrunk": shrunk, "validation": validation}, like=saved)


def plot(found: Shrinking, path: Path) -> None:
    """Draw each task's metric over the share of the cost, with its floor, as a PNG."""
    figure = _figure(found)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _figure(found: Shrinking) -> Figure:
    from matplotlib.figure import Figure

    tasks = list(found.metrics)
    figure = Figure(figsize=(3.2 * len(tasks), 2.8), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        points = sorted([(1.0, found.metrics[task], True), *((r.share, r.metrics[task], not r.below) for r in found.rows)])
        axes.plot([share for share, *_ in points], [value for _, value, _ in points], color="#0072b2", linewidth=1)
        for good, colour, label in ((True, "#0072b2", "all floors kept"), (False, "#d55e00", "a task below its floor")):
            chosen = [(share, value) for share, value, met in points if met is good]
            if chosen:
                axes.plot(*zip(*chosen, strict=True), "o", color=colour, label=label)
        if task in found.floors:
            floor = found.floors[task]
            value = floor.bound(found.metrics[task], found.higher_is_better[task])
            axes.axhline(value, color="0.5", linestyle=":", linewidth=1, label="floor")
        axes.set_title(task, fontsize=10, loc="left")
        axes.set_xlabel("share of the cost")
        axes.spines[["top", "right"]].set_visible(False)
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
