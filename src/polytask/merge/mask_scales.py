"""The scale of each task's mask, on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._task_vectors import Weights, check_names, delta_of, expert_tensor, moved, multi_task_vector
from polytask.merge.masks import SCALES, check_scale, tall_mask


def best_scales(
    base: Weights,
    experts: Mapping[str, Weights],
    evaluate: Callable[[str, dict[str, Tensor]], float],
    scales: Sequence[float] = SCALES,
    vector: Literal["sum"] | Weights = "sum",
) -> dict[str, float]:
    """For each task, the scale whose masked weights score best: ``len(scales)`` evaluations a task.

    Args:
        base: ``theta_0``, as for `TaskMasks.build`.
        experts: the experts' weights by task, as there.
        evaluate: ``evaluate(task, weights)``, the score on that task's *validation* data of the model with these weights,
            ``theta_0 + m_t * tau_MTL``; higher is better. The weights are the callback's to keep.
        scales: the grid. Of equal scores, the scale that comes first wins.
        vector: the multi-task vector, as there.

    Returns:
        The best scale of each task, as `TaskMasks.build` takes it.

    Raises:
        InputError: the weights do not fit each other, the grid is empty, or a score is not a finite number.
    """
    if not scales:
        raise InputError("no scales to choose from, expected at least one")
    for scale in scales:
        check_scale(scale, "scale")
    check_names(base, experts)
    vector = multi_task_vector(base, experts, vector)
    best: dict[str, float] = {}
    for task, expert in experts.items():
        scores = []
        for scale in scales:
            weights = {}
            for name, theta in base.items():
                theta = theta.detach()
                if name in vector:
                    mask = tall_mask(delta_of(task, expert, name, theta), vector[name], scale)
                    weights[name] = torch.where(mask, moved(theta, vector[name]), theta)
                else:
                    weights[name] = expert_tensor(task, expert, name, theta).clone()
            scores.append(float(evaluate(task, weights)))
            if not math.isfinite(scores[-1]):
                raise InputError(f"task {task!r} scores {scores[-1]} at scale {scale}, expected a finite number")
        best[task] = scales[scores.index(max(scores))]
    return best
