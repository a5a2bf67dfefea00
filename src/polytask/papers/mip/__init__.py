"""Magnitude invariant parametrisations: hypernetworks that train fast, whatever the size of their inputs.

A hypernetwork of piecewise-linear layers makes weights in proportion to its input. Two changes remove that: the input is
encoded with a constant norm, and what is predicted is added to weights that are learned. Both are options of any
`polytask.share.hypernetwork.HyperNetwork`; `parametrised` has the paper's defaults, `Continuum` trains one for a continuum
of conditions, and `over_loss_weights` for every way to weigh the tasks' losses:

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.mip import kaiming, over_loss_weights, parametrised
>>> from polytask.share.hypernetwork import Values
>>> data = pt.multidigits(tasks=("left", "ink"), size=300)
>>> generator = torch.manual_seed(0)
>>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 16), torch.nn.ReLU())
>>> network = parametrised(kaiming(pt.Model(encoder, data.tasks, width=16)), Values(2))
>>> fitted = pt.fit(over_loss_weights(network), data.train, steps=150, lr=3e-3)
>>> for_left, for_ink = network.network([0.95, 0.05]), network.network([0.05, 0.95])  # two ordinary models of many
>>> pt.evaluate(for_left, data.test)["left"]["accuracy"] > pt.evaluate(for_ink, data.test)["left"]["accuracy"]
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.mip.continuum import Continuum, over_loss_weights
from polytask.papers.mip.front import measure_front
from polytask.papers.mip.parametrisation import PARAMETRISATIONS, ConvEncoder, kaiming, parametrised
from polytask.papers.mip.picture import plot
from polytask.papers.mip.rotated import FILES, measure
from polytask.share.hypernetwork import HyperNetwork, Values

__all__ = ["PAPER", "PARAMETRISATIONS", "Continuum", "ConvEncoder", "kaiming", "over_loss_weights", "parametrised"]

_claim = partial(Claim, run=measure, better="lower", needs=FILES, seeds=5)


def _at_scale() -> HyperNetwork:
    """The library's example: ten inputs, hidden layers of 16, 64 and 128; the linear classifier behind is not predicted."""
    return parametrised(ConvEncoder(), Values(10), hidden=(16, 64, 128))


PAPER = Paper(
    slug="mip",
    title="Magnitude Invariant Parametrizations Improve Hypernetwork Learning",
    family="tuning",
    verbs=("share", "balance"),
    reference="ICLR 2024, arXiv 2304.07645",
    claims=(
        _claim(
            name="magnitude",
            statement="at the start the norm of the predicted weights varies less with the input: its relative deviation",
            method="mip variation",
            baseline="default variation",
            claimed="proportional to the input without it, bounded with it",
        ),
        _claim(
            name="convergence",
            statement="with SGD the test loss over the run is lower than that of the default parametrisation",
            method="mip sgd area",
            baseline="default sgd area",
            claimed="faster and more reliable; the default often fails to train with SGD",
            comment="Both with the learning rate that validation chooses of four, and the start by fan-out of the authors' "
            "library, by which the default's weights are small. See the claim with the hyperfan start.",
        ),
        _claim(
            name="hyperfan",
            statement="and lower than that of the default with a start that gives the target Kaiming's variance",
            method="mip sgd area",
            baseline="hyperfan sgd area",
            claimed="other starts do not remove the proportionality; figures were not found",
        ),
        _claim(
            name="encoding alone",
            statement="with SGD the test loss over the run is lower than with the encoded input alone",
            method="mip sgd area",
            baseline="encoded sgd area",
            claimed="each part helps, and both together are best",
        ),
        _claim(
            name="residual alone",
            statement="with SGD the test loss over the run is lower than with the residual output alone",
            method="mip sgd area",
            baseline="residual sgd area",
            claimed="each part helps, and both together are best",
        ),
        _claim(
            name="learning rates",
            statement="the mean over four learning rates of SGD of the test loss over the run is lower than the default's",
            method="mip any area",
            baseline="default any area",
            claimed="less sensitive",
        ),
        _claim(
            name="failures",
            statement="fewer of seven runs, with SGD and Adam, end at the loss of guessing",
            method="mip failed",
            baseline="default failed",
            claimed="more reliable over seeds and settings",
        ),
        _claim(
            name="adam",
            statement="with Adam too the test loss over the run is lower than that of the default parametrisation",
            method="mip adam area",
            baseline="default adam area",
            claimed="faster with both optimizers",
        ),
        Claim(
            name="loss weights",
            statement="one model for all weights of two losses ends with a lower weighed test loss than the default's",
            run=measure_front,
            method="mip weighed",
            baseline="default weighed",
            better="lower",
            claimed="for any input; loss weights are the multi-task reading of it",
            comment="With Adam, the learning rate chosen of three by validation for each.",
            seeds=5,
        ),
    ),
    scales=(
        Scale(
            name="MNIST: the convolutions of a small network, out of ten inputs",
            build=_at_scale,
            parameters=7_811_664,
            source="counted from the example of the authors' library: 60,480 weights predicted by layers of 16, 64 and 128",
        ),
    ),
    plot=plot,
)
