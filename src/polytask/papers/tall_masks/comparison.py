"""What the paper compares, on any experts: masked multi-task vectors, and merged models without what few tasks need.

Validation data chooses, from grids that are the same for both sides of a comparison: the scale of each task's mask among the
paper's five; a merged model's scale among the thirteen of `ALPHAS`, by the mean accuracy; the density of masks by magnitude
among the five of `DENSITIES`, for each task. The paper's grid for merged models is 0.1, 0.2, ..., 1. The steps here are even
ratios, and go lower and higher, so that neither side finds its best scale at the end of the grid or in a coarser part of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch as safetensors
import torch
from torch import Tensor

from polytask.merge import TIES, TaskMasks, best_scales, merge_state_dicts
from polytask.merge.masks import magnitude_mask, pack
from polytask.papers._experts import Experts, added

ALPHAS = (0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.6, 2.2)
DENSITIES = (0.1, 0.2, 0.4, 0.6, 0.8)

Vector = Mapping[str, Tensor]


def study(experts: Experts) -> dict[str, float]:
    """By a method's name its mean test accuracy over tasks, in percent of the experts': `masked_models`, `merged_models`."""
    masks = tall_masks(experts)
    return masked_models(experts, masks) | merged_models(experts, masks)


def tall_masks(experts: Experts, vector: Literal["sum"] | Vector = "sum") -> TaskMasks:
    """The masks of a multi-task vector, at the scales that validation chooses."""
    scales = best_scales(experts.base, experts.experts, _validated(experts), vector=vector)
    return TaskMasks.build(experts.base, experts.experts, scales, vector)


def masked_models(experts: Experts, masks: TaskMasks) -> dict[str, float]:
    """A masked multi-task vector for each task.

    - ``tall``: ``masks``, made of the sum of task vectors; ``tall ties``: of TIES's.
    - ``magnitude``: masks of the same densities by magnitude alone; ``tuned magnitude``: of densities by validation.
    - ``individual``, ``base``: the experts, and what they were fine-tuned from.

    Beside it ``METHOD mean``, the mean accuracy, and ``METHOD on TASK``; ``density``, the mean of the masks'; and ``bytes``,
    the size of the file of task masks in percent of that of the base's and the experts' files.
    """
    own = experts.experts
    densities = {task: masks.density(task) for task in own}
    tried = [magnitude_masks(masks, own, dict.fromkeys(own, density)) for density in DENSITIES]
    validated = _validated(experts)
    best = {task: max(tried, key=lambda m: validated(task, m.weights(task))) for task in own}

    def masked(masks: TaskMasks) -> dict[str, float]:
        return {task: experts.accuracy(masks.weights(task), task) for task in masks.tasks}

    accuracies = {
        "individual": experts.individual(),
        "base": experts.accuracies(experts.base),
        "tall": masked(masks),
        "tall ties": masked(tall_masks(experts, ties_vector(experts, "sum"))),
        "magnitude": masked(magnitude_masks(masks, own, densities)),
        "tuned magnitude": {task: experts.accuracy(best[task].weights(task), task) for task in own},
    }
    measured = {"density": 100 * _mean(densities.values()), "bytes": 100 * bytes_on_disk(masks, experts)}
    for method, found in accuracies.items():
        measured |= _reported(method, found, accuracies["individual"])
    return measured


def merged_models(experts: Experts, masks: TaskMasks) -> dict[str, float]:
    """One model for all tasks.

    - ``task arithmetic``, ``ties``, ``consensus``, ``consensus ties`` (k = 2). ``ties`` adds up or averages, as validation
      has it, ``ties sum`` adds up, as what the consensus is made from.
    - ``k = ...``: the consensus for other k, from 0, which is task arithmetic, to the number of tasks.

    Beside it ``METHOD mean`` and ``METHOD on TASK``; ``METHOD scale``, what validation chose; ``used by N`` and ``ties used
    by N``, how many percent of the weights N tasks need.
    """
    single = experts.individual()
    by_ties = {merge_by: ties_vector(experts, merge_by) for merge_by in ("sum", "mean")}
    ties_masks = tall_masks(experts, by_ties["sum"])
    tasks = len(experts.tasks)
    vectors: dict[str, list[Mapping[str, Tensor]]] = {f"k = {k}": [masks.consensus(k)] for k in sorted({0, 1, 2, 3, tasks})}
    vectors |= {"ties sum": [by_ties["sum"]], "ties": list(by_ties.values()), "consensus ties": [ties_masks.consensus(2)]}
    measured: dict[str, float] = {}
    also = {"k = 0": ["task arithmetic"], "k = 2": ["consensus"]}
    for name, some in vectors.items():
        candidates = [(alpha, vector) for vector in some for alpha in ALPHAS]
        scores = [experts.mean(added(experts.base, vector, alpha), "validation") for alpha, vector in candidates]
        alpha, vector = candidates[scores.index(max(scores))]
        accuracies = experts.accuracies(added(experts.base, vector, alpha))
        for method in (name, *also.get(name, [])):
            measured |= _reported(method, accuracies, single) | {f"{method} scale": alpha}
    for name, counted in (("", masks), ("ties ", ties_masks)):
        counts = counted.counts()
        measured |= {f"{name}used by {c}": 100 * float(count / counts.sum()) for c, count in enumerate(counts)}
    return measured


def magnitude_masks(masks: TaskMasks, experts: Mapping[str, Vector], densities: Mapping[str, float]) -> TaskMasks:
    """The base and the multi-task vector of ``masks``, masked at each task's largest changes, the paper's baseline.

    Args:
        masks: what to replace the masks of.
        experts: weights by task.
        densities: by task the share of all weights that its mask holds.
    """
    packed: dict[str, dict[str, Tensor]] = {}
    names = list(masks.vector)
    for task, density in densities.items():
        pieces = [(experts[task][name] - masks.base[name]).flatten() for name in names]
        mask = torch.split(magnitude_mask(torch.cat(pieces), density), [len(piece) for piece in pieces])
        packed[task] = {name: pack(part) for name, part in zip(names, mask, strict=True)}
    return TaskMasks(masks.base, masks.vector, packed, masks.kept)


def ties_vector(experts: Experts, merge_by: str) -> dict[str, Tensor]:
    """What TIES makes of the task vectors, with the paper's density of 0.2 and a coefficient of 1."""
    zeros = {name: torch.zeros_like(theta) for name, theta in experts.base.items()}
    return merge_state_dicts(TIES(merge_by=merge_by), experts.vectors, zeros)  # type: ignore[arg-type]


def bytes_on_disk(masks: TaskMasks, experts: Experts) -> float:
    """The size of the masks' file, as a share of that of a file for the base and one for each expert."""
    with tempfile.TemporaryDirectory() as folder:
        masks.save(Path(folder) / "masks")
        separate = 0
        for index, weights in enumerate((experts.base, *experts.models)):
            safetensors.save_file(dict(weights), file := Path(folder) / str(index))
            separate += file.stat().st_size
        return (Path(folder) / "masks").stat().st_size / separate


def _validated(experts: Experts) -> Callable[[str, Mapping[str, Tensor]], float]:
    return lambda task, weights: experts.accuracy(weights, task, "validation")


def _reported(method: str, accuracies: Mapping[str, float], single: Mapping[str, float]) -> dict[str, float]:
    return {
        method: 100 * _mean(accuracies[task] / single[task] for task in single),
        f"{method} mean": _mean(accuracies.values()),
        **{f"{method} on {task}": accuracy for task, accuracy in accuracies.items()},
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
