"""How sharp the loss of each task is around the weights."""

from __future__ import annotations

from typing import Any

import torch

from polytask.balance.perturb import moved, perturbation, reached
from polytask.model import Losses


def sharpness(model: Losses, batch: Any, rho: float = 0.05, adaptive: bool = False) -> dict[str, float]:
    """For each task how much its loss on ``batch`` rises, to first order the most, within ``rho`` of the weights.

    ``L_k(w + e_k) - L_k(w)`` with ``e_k = rho v / |v|`` for the gradient ``v`` of ``L_k`` on all parameters that it reaches;
    `polytask.balance.perturb.perturbation` says what ``adaptive`` does. 0 where the gradient vanishes. The weights end with
    the bits that they had. Call ``eval()`` on a model with batch norms or dropout first: the mode stays as it is.
    """
    found = {}
    for name, loss in model.losses(batch).items():
        parameters = [p for p in reached(loss) if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True) if parameters else ()
        steps = perturbation(parameters, gradients, rho, adaptive)
        found[name] = 0.0
        if steps is not None:
            with moved(parameters, steps), torch.no_grad():
                found[name] = float(model.losses(batch)[name] - loss)
    return found
