"""Controllable multi-task architectures: one supernet, from which a preference among tasks and a budget choose a network.

The supernet, its training and the search are in `polytask.share.slimmable`; `stand_alone` makes a model of what is found.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.controllable import stand_alone
>>> from polytask.share.slimmable import Costs, Sandwich, Supernet, find_configuration
>>> data = pt.multidigits(tasks=("left", "right"), size=300)
>>> random = torch.manual_seed(0)
>>> nn = torch.nn
>>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(121, 64), nn.ReLU(), nn.Linear(64, 64))
>>> decoders = {name: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for name in ("left", "right")}
>>> supernet = Supernet(encoder, decoders, data.tasks)
>>> fitted = pt.fit(Sandwich(supernet), data.train, steps=100, lr=3e-3)
>>> def score(configuration):
...     found = pt.evaluate(stand_alone(supernet, configuration), data.validation)
...     return sum(metrics["accuracy"] for metrics in found.values())
>>> costs = Costs(supernet, data.train.inputs[:1])
>>> found = find_configuration(costs, {"left": 1.0, "right": 0.0}, budget=10_000, score=score)
>>> found.decoders, costs(found) <= 10_000
({'left': 1.0, 'right': 0.25}, True)
>>> model = stand_alone(supernet, found)  # plain layers, a `polytask.Model` like any other
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.controllable.models import Conditioned, stand_alone
from polytask.papers.controllable.picture import plot
from polytask.papers.controllable.resnet import at_scale
from polytask.papers.controllable.scenes import FILES, measure

__all__ = ["PAPER", "Conditioned", "stand_alone"]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)


PAPER = Paper(
    slug="controllable",
    title="Efficient Controllable Multi-Task Architectures",
    family="vision",
    verbs=("share", "balance", "shrink", "measure"),
    reference="ICCV 2023, arXiv 2308.11744",
    claims=(
        _claim(
            name="distillation",
            statement="distilling the largest encoder's representation makes the smallest one better than labels alone do",
            method="ci-kd smallest encoder",
            baseline="plain smallest encoder",
            claimed="better performance of small sub-networks; its figures were not found",
            comment="The mean value over tasks and decoders, in percent. The largest encoder is trained along with the "
            "smallest and from scratch, so that for most of the eight epochs there is little to be learned from it.",
        ),
        _claim(
            name="representation",
            statement="distilling the representation makes the smallest encoder better than distilling outputs does",
            method="ci-kd smallest encoder",
            baseline="outputs smallest encoder",
            claimed="its figures were not found",
            comment="The mean value over tasks and decoders, in percent.",
        ),
        _claim(
            name="control",
            statement="within the same budget the preferred task is better than with decoders assigned at random",
            method="preferred",
            baseline="random",
            claimed="tasks are as good as they are preferred",
            comment="The mean value over tasks and budgets, in percent.",
        ),
        _claim(
            name="hypervolume",
            statement="searched sub-networks cover more of the space of skills than a network of the same cost that is told "
            "the preference",
            method="hypervolume",
            baseline="conditioned hypervolume",
            claimed="33.5 % higher controllability than earlier methods on NYUD-v2",
        ),
        _claim(
            name="budget",
            statement="no network that is found costs more than its budget",
            method="violations",
            baseline="none",
            better="lower",
            margin=-0.5,
            claimed="budgets hold",
            comment="21 preferences and budgets, counted on the networks themselves.",
        ),
    ),
    scales=(
        Scale(
            name="NYUD-v2: slimmable ResNet-18, four decoders",
            build=at_scale,
            parameters=13_085_165,
            source="counted: 11,176,512 of ResNet-18, 131,328 of the projection, the rest of decoders; no figure of "
            "the paper was found",
        ),
    ),
    plot=plot,
)
