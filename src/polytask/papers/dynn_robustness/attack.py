"""EarlyAttack: every early exit wrong, the last one right."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.measure.attacks import Attacked, nearest
from polytask.nn.modes import evaluating
from polytask.route import EarlyExit, early_only


def early_attack(
    network: EarlyExit,
    images: Tensor,
    alpha: float = 1.0,
    *,
    weight: float = 50.0,
    steps: int = 1000,
    after: int = 200,
    lr: float = 0.01,
    scale: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Attacked:
    """Images about which each early exit errs and the last does not, by what the last says of them as they are.

    It minimises ``|scale (x' - x)|^2 + weight * (sum_{k<L} p^k_y - alpha * sum_{j != y} relu(p^L_y - p^L_j))`` by Adam over
    ``w``, with ``x' = (tanh(w) + 1) / 2`` and ``w`` drawn evenly from [0, 1] for each pixel at first. An image leaves at its
    first success once ``after`` steps are over. The authors take one image after the other; here all of them go together,
    with the same result for each.

    Args:
        network: any with early exits; normalisation inside it.
        images: ``(N, ...)`` in [0, 1].
        alpha: how strongly the last exit is kept; the authors try 0.001, 0.01, 0.1, 1, 20 and 40.
        weight: ``c`` in the paper.
        steps, after, lr: of Adam.
        scale: of the distance. The authors measure it in normalised pixels: 1 over the channels' deviations.
        generator: of the start, on the images' device.
    """
    with torch.no_grad(), evaluating(network):
        labels = network(images)[-1].argmax(1)
    objective = early_only(network, alpha)
    return nearest(
        objective, images, labels, weight, steps=steps, lr=lr, start="random", after=after, stop=True, scale=scale,
        generator=generator,
    )  # fmt: skip
