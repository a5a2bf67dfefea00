"""The claims in four rooms, where the features that many tasks should lead to are known exactly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.papers.proto_value.cumulants import Cumulants, NetworkCumulants, NetworkIndicators
from polytask.papers.proto_value.model import ProtoValues
from polytask.papers.proto_value.networks import RandomNetworks
from polytask.papers.proto_value.tabular import Walk, leading, rooms, subspace_error, successor
from polytask.training import fit

WIDTH, GAMMA, RATE = 10, 0.95, 0.25
"""Of the features; the discount; and of the target network, which has few updates to follow in."""
SHARE, RARE = 0.05, 0.01
UPDATES, WARM_UP = 1200, 300
SETS = (10, 30, 100)


def images(walk: Walk) -> Tensor:
    """``(S, 1, H, W)`` uint8: the map of a walk with a one where the state is."""
    assert walk.cells is not None
    height, width = (walk.cells.amax(0) + 2).tolist()
    seen = torch.zeros(len(walk.cells), 1, height, width, dtype=torch.uint8)
    seen[torch.arange(len(seen)), 0, walk.cells[:, 0], walk.cells[:, 1]] = 1
    return seen


def learned(walk: Walk, cumulants: Cumulants, updates: int = UPDATES, warm_up: int = WARM_UP) -> ProtoValues:
    """Proto-values with a row of features for each state, trained on all transitions of a walk at once."""
    encoder = nn.Embedding(len(walk.following), WIDTH)
    nn.init.normal_(encoder.weight, std=0.1)
    model = ProtoValues(encoder, cumulants, walk.following.shape[1], width=WIDTH, gamma=GAMMA, rate=RATE, warm_up=warm_up)
    steps = updates + (warm_up if "thresholds" in model.tasks else 0)
    rates = {"cumulants.*": 1e-2, "*": 3e-2}
    fit(model, [walk.transitions()] * 100, steps=steps, optimizer=torch.optim.Adam, lr=rates)
    return model


def measure_rooms(seed: int, data: Path, updates: int = UPDATES, warm_up: int = WARM_UP) -> Measurements:
    """``"ARM error"``, the subspace error of features of 10 to 100 sets of a twentieth of the states (``"sets 100"``), of 10
    sets of a hundredth (``"rare 10"``), of 100 random networks' outputs themselves, and of random features; against the
    leading left singular vectors of the successor representation. ``"share"`` is that of the states in one of 100 sets.
    """
    walk = rooms()
    basis, seen = leading(successor(walk.matrix, GAMMA), WIDTH), images(walk)
    arms = {f"sets {m}": (m, SHARE) for m in SETS} | {"rare 10": (10, RARE), "numbers 100": (100, None)}
    found: dict[str, float] = {}
    for name, (tasks, share) in arms.items():
        torch.manual_seed(seed)
        outputs = RandomNetworks(tasks, 10, 1, seen.shape[-1], ((16, 3, 1),), scale=1.0)(seen)
        network = nn.Embedding(len(seen), tasks, _weight=outputs)  # what the networks make of each state, once and for all
        cumulants = NetworkCumulants(network, tasks) if share is None else NetworkIndicators(network, tasks, share)
        model = learned(walk, cumulants, updates, warm_up)
        found[f"{name} error"] = subspace_error(model.features(torch.arange(len(seen))), basis)
        if name == "sets 100":
            found["share"] = float(cumulants(torch.arange(len(seen)))[0].mean())
    torch.manual_seed(seed)
    found["random error"] = subspace_error(torch.randn(len(seen), WIDTH), basis)
    return found
