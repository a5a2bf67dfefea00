"""Hypernetworks, as a review orders them: what conditions, how weights are made, what varies, and by what architecture.

What its table orders are choices of `polytask.share.hypernetwork`; `reviewed` is its worked example for a target and a
condition of your own. Here chunks of an encoder's weights are made for each task, and a classifier's out of noise:

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.hypernets import Ensemble, reviewed
>>> from polytask.share.hypernetwork import Noise, Tasks
>>> data = pt.multidigits(tasks=("left", "right"), size=300)
>>> generator = torch.manual_seed(0)
>>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 32), torch.nn.ReLU())
>>> model = pt.Model(reviewed(encoder, Tasks(["left", "right"]), "chunks"), data.tasks, width=32)
>>> fitted = pt.fit(model, data.train, steps=100, lr=1e-3)
>>> model.encoder.describe()["output"], sum(p.numel() for p in model.encoder.parameters())
('chunk-wise: 100 x 40 numbers for 3904 weights', 19040)
>>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 10))
>>> noise = reviewed(classifier, Noise(members=4))
>>> fitted = pt.fit(Ensemble(noise, "left"), data.train, steps=100, lr=1e-3)
>>> noise.each(data.test[:5][0], 20).softmax(-1).mean(0).shape  # 20 networks, drawn anew
torch.Size([5, 10])
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.hypernets.few_shot import HeadFromData, measure_few_shot
from polytask.papers.hypernets.glyphs import FILES
from polytask.papers.hypernets.noise import Ensemble, measure_noise
from polytask.papers.hypernets.picture import plot
from polytask.papers.hypernets.reviewed import STRATEGIES, at_scale, reviewed
from polytask.papers.hypernets.sharing import measure_sharing

__all__ = ["PAPER", "STRATEGIES", "Ensemble", "HeadFromData", "reviewed"]

_sharing = partial(Claim, run=measure_sharing, better="higher", needs=FILES, seeds=5)
_noise = partial(Claim, run=measure_noise, better="lower", needs=FILES, seeds=5)
_few_shot = partial(Claim, run=measure_few_shot, better="higher", needs=FILES, seeds=5)

_REVIEW = "a review, which has no figures of its own"


PAPER = Paper(
    slug="hypernets",
    title="A Brief Review of Hypernetworks in Deep Learning",
    family="tuning",
    verbs=("share", "merge", "shrink", "measure"),
    reference="Artificial Intelligence Review 57, 250, 2024, arXiv 2306.06955",
    claims=(
        _sharing(
            name="sharing",
            statement="with 150 images a task, networks out of one generator are more accurate than separate ones",
            method="once accuracy",
            baseline="separate accuracy",
            claimed=f"information is shared between tasks; {_REVIEW}",
            comment="With 17 times as many trainable parameters as the separate networks have together.",
        ),
        _sharing(
            name="soft sharing",
            statement="and more accurate than with a hidden layer that all tasks share",
            method="once accuracy",
            baseline="hard accuracy",
            claimed="soft sharing of weights suits tasks that differ",
        ),
        _sharing(
            name="chunks",
            statement="made in chunks, by 3 % of the parameters, they lose less than 2 points of accuracy",
            method="chunks accuracy",
            baseline="once accuracy",
            margin=-2.0,
            claimed="generation in pieces scales to large targets",
        ),
        _sharing(
            name="heads",
            statement="made by split heads, with half of the parameters, they lose less than 2 points",
            method="heads accuracy",
            baseline="once accuracy",
            margin=-2.0,
            claimed="generation in pieces scales to large targets",
        ),
        _sharing(
            name="layers",
            statement="made layer by layer they lose less than 2 points",
            method="layers accuracy",
            baseline="once accuracy",
            margin=-2.0,
            claimed="generation in pieces scales to large targets",
        ),
        _sharing(
            name="compression",
            statement="chunks need fewer trainable parameters than the separate networks of six tasks",
            method="chunks parameters",
            baseline="separate parameters",
            better="lower",
            claimed="fewer trainable parameters than the target may be enough",
            comment="A count, the same for every seed; one target alone has 13,258.",
        ),
        _noise(
            name="likelihood",
            statement="20 networks out of noise have a lower negative log-likelihood than one network",
            method="noise nll",
            baseline="single nll",
            claimed="uncertainty, and ensembles, by generators of noise",
        ),
        _noise(
            name="calibration",
            statement="and a lower expected calibration error",
            method="noise ece",
            baseline="single ece",
            claimed="uncertainty, and ensembles, by generators of noise",
            comment="In percent, 15 bins. Settings were chosen by likelihood.",
        ),
        _noise(
            name="deep ensemble",
            statement="and a lower negative log-likelihood than five networks that were trained apart",
            method="noise nll",
            baseline="apart nll",
            claimed="not claimed; the usual alternative",
        ),
        _noise(
            name="entropy",
            statement="trained on digits they are less sure of printed letters: higher entropy than on digits",
            method="noise entropy on letters",
            baseline="noise entropy on digits",
            better="higher",
            claimed="uncertainty, and ensembles, by generators of noise",
        ),
        _noise(
            name="strangers",
            statement="and by their entropy tell letters from digits better than one network does by its own",
            method="noise auroc",
            baseline="single auroc",
            better="higher",
            claimed="uncertainty, and ensembles, by generators of noise",
            comment="The area under the ROC curve, in percent.",
        ),
        _noise(
            name="collapse",
            statement="without the term that spreads them the weights vary less over the noise",
            method="alone spread",
            baseline="noise spread",
            claimed="a generator without a term for diversity becomes one network",
            comment="The share of variance in the weights' mean square, in percent, in the runs that validation chose.",
        ),
        _few_shot(
            name="few-shot",
            statement="a head made of five examples a class classifies better than one that is fitted to them",
            method="hypernetwork accuracy",
            baseline="linear accuracy",
            claimed=f"networks that adapt to data; {_REVIEW}",
            comment="Mean accuracy of five unseen classes, in percent. There are ten classes, turned and mirrored, to learn "
            "a generator from, and an episode shows five; more steps did not help.",
        ),
        _few_shot(
            name="nearest mean",
            statement="and better than the nearest mean feature",
            method="hypernetwork accuracy",
            baseline="nearest accuracy",
            claimed="not claimed; the usual baseline",
        ),
    ),
    scales=tuple(
        Scale(
            name=f"784-100-10 for two tasks, {name}",
            build=partial(at_scale, name),
            parameters=parameters,
            source=f"counted by hand, {formula}; the review has no counts",
        )
        for name, parameters, formula in (
            ("once", 8_042_342, "32 + 1,700 + 10,100 + 101 x 79,510"),
            ("layers", 7_940_364, "64 + 1,700 + 10,100 + 101 x 78,500, the larger layer"),
            ("heads", 4_066_842, "32 + 1,700 + 2 x (5,050 + 51 x 39,755)"),
            ("chunks", 95_396, "3,200 + 1,700 + 10,100 + 101 x 796"),
        )
    ),
    plot=plot,
)
