"""Variable projection: for fixed weights the best output layer is a ridge solution, so only the weights are searched.

Source: Golub and Pereyra, *The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
separate*, 1973; here with a ridge on the outputs and an L1 penalty on the weights.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from polytask.papers.product_unit.units import Networks, Units, without_constants


def solve_outputs(hidden: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The best output layer for given node outputs, task by task.

    Minimises ``mean_n (y_nk - b_0k - sum_j b_jk B_jn)^2 + ridge sum_j (r_j b_jk)^2`` for each task ``k`` over the rows
    whose target is present, with ``r_j`` the root mean square of node ``j``: large products and small ones are shrunk
    alike. The intercept is free.

    Args:
        hidden: node outputs, ``(..., N, M)``; a node that is 0 everywhere gets the coefficient 0.
        targets: ``(N, K)``, NaN where missing.
        ridge: the penalty, above 0.

    Returns:
        ``(..., 1 + M, K)``, the intercepts first.
    """
    present = ~targets.isnan()
    share = present / present.sum(0)
    rms = hidden.square().mean(-2).sqrt()
    rms = torch.where(rms > 0, rms, 1.0)
    scaled = hidden / rms.unsqueeze(-2)
    design = torch.cat([torch.ones_like(scaled[..., :1]), scaled], -1)
    weighed = design.unsqueeze(-3) * share.T.unsqueeze(-1)
    gram = design.mT.unsqueeze(-3) @ weighed
    moments = design.mT @ (share * targets.nan_to_num())
    penalty = torch.full((gram.shape[-1],), ridge, dtype=gram.dtype)
    penalty[0] = 0.0
    solution = torch.linalg.solve(gram + penalty.diag(), moments.mT).mT
    return torch.cat([solution[..., :1, :], solution[..., 1:, :] / rms.unsqueeze(-1)], -2)


def masked_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean over tasks of the mean squared error over present targets: ``(..., N, K)``, ``(N, K)`` to ``(...)``."""
    present = ~targets.isnan()
    return ((predictions - targets.nan_to_num()).square() * (present / present.sum(0))).sum(-2).mean(-1)


def descend(
    network: Networks,
    units: Units,
    features: Tensor,
    targets: Tensor,
    *,
    ridge: float,
    l1: float,
    iterations: int,
) -> tuple[Networks, float]:
    """Local search from one network: L-BFGS-B over the weights of its links, the outputs solved at every step.

    The gradient needs no derivative of the solve: the outputs minimise the same objective, so their part of it is zero.
    Weights are split into ``w = p - q`` with ``0 <= p, q <= bound``. That makes the L1 penalty linear, the bound a bound,
    and a pruned weight exactly 0.

    Returns:
        the network, without the links that came out as 0, and its objective.
    """
    count = int(network.links.sum())

    def objective(split: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.from_numpy(split[:count] - split[count:]).requires_grad_()
        hidden = _with_weights(network, free).hidden(units, features)
        outputs = solve_outputs(hidden.detach(), targets, ridge)
        error = masked_mse(outputs[:1] + hidden @ outputs[1:], targets)
        shrinkage = ridge * (hidden.square().mean(0).unsqueeze(1) * outputs[1:].square()).sum(0).mean()
        value = error + shrinkage
        (gradient,) = torch.autograd.grad(value, free)
        slope = gradient.numpy()
        return value.item() + l1 * split.sum(), np.concatenate([slope + l1, l1 - slope])

    start = network.weights[network.links].numpy()
    split = np.concatenate([start.clip(0), (-start).clip(0)])
    if count:
        bounds = [(0.0, units.bound)] * len(split)
        split = minimize(objective, split, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}).x
    trained = _with_weights(network, torch.from_numpy(split[:count] - split[count:]))
    pruned = without_constants(Networks(trained.weights, trained.weights != 0, trained.outputs), units)
    outputs = solve_outputs(pruned.hidden(units, features), targets, ridge)
    return Networks(pruned.weights, pruned.links, outputs), objective(split)[0]


def _with_weights(network: Networks, free: Tensor) -> Networks:
    weights = torch.zeros_like(network.weights).masked_scatter(network.links, free)
    return Networks(weights, network.links, network.outputs)
