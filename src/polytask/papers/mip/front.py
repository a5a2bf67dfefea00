"""The claim on loss weights: one model for every way to weigh two tasks, as the multi-task reading of a continuum.

Overlaid digits of 11 x 11 pixels: which digit is on the left, and how much of the image is inked. The model is a hidden
layer of 32 units and a head for each task, 4,267 weights, all predicted out of the two losses' weights, which are even on
the simplex. The generator has hidden layers of 16 and 64. Both parametrisations have three learning rates of Adam, of which
the validation loss, the mean over 11 weights of the weighed loss, chooses; that of the test is reported. 500 images train,
500 validate and 1,000 test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from polytask.claim import Measurements
from polytask.data import DataSet, Examples, multidigits
from polytask.model import Model
from polytask.papers.mip.continuum import over_loss_weights
from polytask.papers.mip.parametrisation import kaiming, parametrised
from polytask.share.hypernetwork import HyperNetwork, Values
from polytask.training import fit

STEPS, BATCH = 250, 50
RATES = (1e-3, 3e-3, 1e-2)
WEIGHTS = [(i / 10, 1 - i / 10) for i in range(11)]


def model(data: DataSet) -> Model:
    """The primary network."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(121, 32), nn.LeakyReLU())
    return Model(encoder, data.tasks, width=32)


@torch.no_grad()
def weighed_loss(network: HyperNetwork, examples: Examples) -> float:
    """The mean over `WEIGHTS` of ``sum_k w_k L_k``."""
    inputs, targets = examples[:]
    primary = network.target
    assert isinstance(primary, Model)
    found = 0.0
    for weights in WEIGHTS:
        outputs = network(inputs, weights)
        losses = [primary.tasks[name].loss(outputs[name], target) for name, target in targets.items()]
        found += sum(w * float(loss) for w, loss in zip(weights, losses, strict=True))
    return found / len(WEIGHTS)


def measure_front(seed: int, data: Path) -> Measurements:
    """``METHOD weighed``, of the default parametrisation and the paper's, and ``METHOD lr``."""
    digits = multidigits(tasks=("left", "ink"), size=500, seed=seed)
    measured: dict[str, float] = {}
    for method in ("default", "mip"):
        tried = []
        for lr in RATES:
            torch.manual_seed(seed)
            network = parametrised(kaiming(model(digits)), Values(2), method, hidden=(16, 64))
            settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "lr": lr, "schedule": "constant", "seed": seed}
            fit(over_loss_weights(network), digits.train, **settings)
            tried.append((weighed_loss(network, digits.validation), weighed_loss(network, digits.test), lr))
        _, measured[f"{method} weighed"], measured[f"{method} lr"] = min(tried, key=lambda trial: trial[0])
    return measured
