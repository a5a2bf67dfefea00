"""Task-based flat regions: every task's loss made small and flat, around any way of balancing.

`FlatRegions` is a balancer like any other; `sharpness` measures what it is after.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.flat_mtl import FlatRegions, sharpness
>>> data = pt.multidigits(tasks=("left", "right"), size=200)
>>> rise = {}
>>> for rho in (0.0, 0.1):
...     generator = torch.manual_seed(0)
...     model = pt.Model(data.encoder(), data.tasks)
...     fitted = pt.fit(model, data.train, steps=60, lr=3e-3, balance=FlatRegions("cagrad", rho=rho))
...     rise[rho] = sharpness(model.eval(), data.validation[:])
>>> all(rise[0.1][task] < rise[0.0][task] for task in ("left", "right"))
True
"""

from __future__ import annotations

from functools import partial

from polytask.balance.flat import FlatRegions
from polytask.claim import Claim
from polytask.model import Model
from polytask.paper import Paper, Scale
from polytask.papers.flat_mtl.digits import FILES, measure, plot
from polytask.papers.flat_mtl.networks import LeNet, ResNet18
from polytask.papers.flat_mtl.sharpness import sharpness
from polytask.task import Task

__all__ = ["PAPER", "FlatRegions", "LeNet", "ResNet18", "sharpness"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5)


def _at_scale() -> Model:
    """What the paper's code trains with Adam, lr 1e-3, batches of 256, ``FlatRegions(rule, adaptive=True)``, 200 epochs."""
    return Model(ResNet18(), [Task.classification(name, classes=10) for name in ("left", "right")])


PAPER = Paper(
    slug="flat_mtl",
    title="Improving Multi-task Learning via Seeking Task-based Flat Regions",
    family="optimisation",
    verbs=("balance", "measure"),
    reference="arXiv 2211.13723",
    claims=(
        _claim(
            name="flatter",
            statement="with flat regions a rule ends where held-out losses are less sharp",
            method="with sharpness",
            baseline="without sharpness",
            better="lower",
            claimed="flatter minima",
            comment="Sharpness is the rise of the loss within 0.05 of the weights: about what one of the radii trains for.",
        ),
        _claim(
            name="gap",
            statement="with flat regions a rule over-fits less: train minus test accuracy, in percentage points",
            method="with gap",
            baseline="without gap",
            better="lower",
            claimed="less over-fitting",
        ),
        _claim(
            name="accuracy",
            statement="with flat regions a rule classifies the test digits better, in percentage points",
            method="with test",
            baseline="without test",
            better="higher",
            claimed="better test performance on all tasks",
            comment="Without flat regions validation chose the longer training, for as many gradients as with them: twice "
            "the epochs without bring most of what flat regions bring.",
        ),
        _claim(
            name="calibration",
            statement="with flat regions a rule is better calibrated: expected calibration error, in percentage points",
            method="with ece",
            baseline="without ece",
            better="lower",
            claimed="better calibration",
            comment="The longer training without flat regions makes a rule over-confident; the shorter one is in between.",
        ),
        _claim(
            name="conflicts",
            statement="with flat regions fewer steps have conflicting task gradients, in percentage points",
            method="with conflicts",
            baseline="without conflicts",
            better="lower",
            claimed="fewer gradient conflicts",
            comment="The longer training without flat regions has a larger share of steps late, when more of them conflict.",
        ),
        _claim(
            name="split",
            statement="CAGrad on both parts apart classifies better than CAGrad on the SAM gradients",
            method="cagrad with test",
            baseline="cagrad naive test",
            better="higher",
            claimed="an ablation of the paper; its figures were not found",
        ),
    ),
    scales=(
        Scale(
            name="MultiMNIST: ResNet-18 for one channel, two heads",
            build=_at_scale,
            parameters=11_223_560,
            source="counted from the layers of the paper's code, of which 11,221,540 are shared; the paper states none",
        ),
    ),
    plot=plot,
)
