"""Variable projection: for fixed weights the best output layer is a ridge solution, so only the weights are searched.

Source: Golub and Pereyra, *The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
separate*, 1973; here with a ridge on the outputs and an L1 penalty on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from polytask.papers.product_unit.units import Networks, Units, without_constants


@dataclass(frozen=True)
class Targets:
    """Targets of ``K`` tasks with their missing entries set apart.

    Attributes:
        values: ``(N, K)``, 0 where missing.
        share: ``(N, K)``, the weight of an entry in its task's mean: one over the task's count, 0 where missing.
        alike: the tasks in groups with the same entries present, which therefore share their normal equations.
    """

    values: Tensor
    share: Tensor
    alike: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, targets: Tensor) -> Self:
        """From ``(N, K)`` with NaN where missing; every task needs at least one value."""
        present = ~targets.isnan()
        groups: dict[bytes, list[int]] = {}
        for task, column in enumerate(present.T):
            groups.setdefault(column.numpy().tobytes(), []).append(task)
        return cls(targets.nan_to_num(), present / present.sum(0), tuple(tuple(group) for group in groups.values()))

    def mse(self, predictions: Tensor) -> Tensor:
        """The mean over tasks of the mean squared error over present entries: ``(..., N, K)`` to ``(...)``."""
        return ((predictions - self.values).square() * self.share).sum(-2).mean(-1)


def solve_outputs(hidden: Tensor, targets: Targets, ridge: float) -> Tensor:
    """The best output layer for given node outputs, task by task.

    Minimises ``mean_n (y_nk - b_0k - sum_j b_jk B_jn)^2 + ridge sum_j (r_j b_jk)^2`` for each task ``k`` over the rows
    whose target is present, with ``r_j`` the root mean square of node ``j``: large products and small ones are shrunk
    alike. The intercept is free.

    Args:
        hidden: node outputs, ``(..., N, M)``; a node that is 0 everywhere gets the coefficient 0.
        targets: the targets of ``N`` rows and ``K`` tasks.
        ridge: the penalty, above 0.

    Returns:
        ``(..., 1 + M, K)``, the intercepts first.
    """
    rms = hidden.square().mean(-2, keepdim=True).sqrt()
    scale = torch.nn.functional.pad(torch.where(rms > 0, rms, 1.0), (1, 0), value=1.0)
    design = torch.nn.functional.pad(hidden, (1, 0), value=1.0) / scale
    penalty = torch.full_like(scale[..., 0, :], ridge)
    penalty[..., 0] = 0.0
    solution = hidden.new_empty(*hidden.shape[:-2], design.shape[-1], targets.values.shape[1])
    for group in targets.alike:
        tasks = list(group)
        weighed = (design * targets.share[:, tasks[:1]]).mT
        gram = weighed @ design + torch.diag_embed(penalty)
        solution[..., tasks] = torch.linalg.solve(gram, weighed @ targets.values[:, tasks])
    return solution / scale.mT


def descend(
    network: Networks,
    units: Units,
    features: Tensor,
    targets: Targets,
    *,
    ridge: float,
    l1: float,
    iterations: int,
) -> tuple[Networks, float]:
    """Local search from one network: L-BFGS-B over the weights of its links, the outputs solved at every step.

    Weights are split into ``w = p - q`` with ``0 <= p, q <= bound``. That makes the L1 penalty linear, the bound a bound,
    and a pruned weight exactly 0.

    Args:
        network: where to start; its links are those that may be used, its outputs are not read.
        units: the kind of hidden unit.
        features: ``units.features`` of the scaled inputs, ``(N, I)``.
        targets: scaled targets.
        ridge: the penalty on outputs, as in `solve_outputs`.
        l1: the penalty on each weight's absolute value.
        iterations: the most steps.

    Returns:
        the network, without the links that came out as 0, and its objective.
    """
    count = int(network.links.sum())

    def objective(split: np.ndarray) -> tuple[float, np.ndarray]:
        moved = _with_weights(network, split)
        hidden = moved.hidden(units, features)
        outputs = solve_outputs(hidden, targets, ridge)
        intercepts, coefficients = outputs[:1], outputs[1:]
        residual = intercepts + hidden @ coefficients - targets.values
        shrunk = ridge * coefficients.square().mean(1)
        value = (residual.square() * targets.share).sum(0).mean() + hidden.square().mean(0) @ shrunk
        # The outputs minimise this same value, so it does not change with them to first order: no derivative of the solve.
        slope = 2 * ((targets.share * residual) @ coefficients.T / residual.shape[1] + hidden * shrunk / len(hidden))
        gradient = (features.T @ (slope * units.slope(hidden)))[network.links].numpy()
        return value.item() + l1 * split.sum(), np.concatenate([gradient + l1, l1 - gradient])

    start = network.weights[network.links].numpy()
    split = np.concatenate([start.clip(0), (-start).clip(0)])
    if count:
        bounds = [(0.0, units.bound)] * len(split)
        split = minimize(objective, split, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}).x
    trained = _with_weights(network, split)
    pruned = without_constants(Networks(trained.weights, trained.weights != 0, trained.outputs), units)
    outputs = solve_outputs(pruned.hidden(units, features), targets, ridge)
    return Networks(pruned.weights, pruned.links, outputs), objective(split)[0]


def _with_weights(network: Networks, split: np.ndarray) -> Networks:
    positive, negative = np.split(split, 2)
    weights = torch.zeros_like(network.weights)
    weights[network.links] = torch.from_numpy(positive - negative)
    return Networks(weights, network.links, network.outputs)
