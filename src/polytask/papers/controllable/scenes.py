"""The claims on road scenes: classes, boundaries and colour of CamVid at 24 x 32, which a processor trains in minutes.

The paper trains on PASCAL-Context, NYUD-v2 and CIFAR-100. Here a supernet of 0.5 to 4.4 million operations learns from 367
frames for `EPOCHS` of AdamW, lr 3e-3 on a cosine, batches of 16. Each seed draws initial weights, batches and
configurations, the same for all ways of training: labels alone, in-place distillation of outputs, and distillation of the
representation, each with ``beta = 1``. The networks of one width are trained like that, and so is the one that is told the
preference; nothing is tuned.

Values of a task are its metric on test frames, in percent of that of the network of width 1 that was trained by itself (the
inverse for an error). Encoders are chosen on validation frames, by the mean value weighed by preference.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from polytask.claim import Measurements
from polytask.data.examples import DataSet
from polytask.papers._camvid import FILES, camvid
from polytask.papers.controllable.control import BUDGETS, control, preferences
from polytask.papers.controllable.models import Conditioned, scenes_supernet, stand_alone
from polytask.papers.controllable.values import Table, Unit, covered, mean
from polytask.share.slimmable import Configuration, Costs, Sandwich
from polytask.training import fit

__all__ = ["FILES", "measure"]

EPOCHS = 8
TRAININGS: dict[str, Any] = {"plain": None, "outputs": "outputs", "ci-kd": "representation"}


def measure(seed: int, data: Path) -> Measurements:
    """One seed.

    ``"TRAINING smallest encoder"`` is the mean value over tasks and decoders' widths with the smallest encoder, ``"TRAINING
    all W"`` that at one width for everything, ``"separate all W"`` that of a network trained by itself, and ``"cost W"``
    its operations. See `polytask.papers.controllable.control.control` for the rest.
    """
    scenes = camvid(data, shrink=2)
    initial = scenes_supernet(scenes.tasks, seed)
    widths, costs = initial.widths, Costs(initial, torch.empty(1, 1, 24, 32))
    even = {width: Configuration(width, dict.fromkeys(initial.tasks, width)) for width in widths}
    separate = {}
    for width in widths:
        separate[width] = stand_alone(initial, even[width])
        _train(separate[width], scenes, seed)
    unit = Unit(scenes, separate[1.0])
    measured = {f"separate all {width:g}": mean(unit.values(model, "test")) for width, model in separate.items()}
    measured |= {f"cost {width:g}": float(costs(even[width])) for width in widths}
    for name, distil in TRAININGS.items():
        supernet = copy.deepcopy(initial)
        _train(Sandwich(supernet, distil), scenes, seed)
        table = Table(supernet, unit, "test")
        small = [mean(table(Configuration(widths[0], dict.fromkeys(supernet.tasks, width)))) for width in widths]
        measured[f"{name} smallest encoder"] = mean(small)
        measured |= {f"{name} all {width:g}": mean(table(even[width])) for width in widths}
    measured |= control(supernet, costs, Table(supernet, unit, "validation"), table)
    told = Conditioned(stand_alone(initial, even[BUDGETS[1]]))
    _train(told, scenes, seed)
    found = [unit.skills(told.at(preference), "test") for preference in preferences(tuple(supernet.tasks))]
    return measured | {"conditioned hypervolume": covered(found)}


def _train(model: Any, scenes: DataSet, seed: int) -> None:
    fit(model, scenes.train, epochs=EPOCHS, batch_size=16, lr=3e-3, seed=seed, evaluate_every=10**6)
