"""Multi-head adapter routing: skills that all tasks share, mixed for each task block by block.

`polytask.share.MHR` is inserted into any network, `polytask.share.Polytropon` is the same with one head. Routing wants a
learning rate of its own. A new task is then learned by everything, by its routing alone (MHR-z), or by one adapter that
begins as the mean of the skills (MHR-mu):

>>> import torch
>>> import polytask as pt
>>> from polytask.share import MHR, averaged
>>> data = pt.multidigits(tasks=("left", "ink"), size=300)
>>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 22), torch.nn.ReLU())
>>> model = pt.Model(encoder, data.tasks, sharing=MHR(skills=4, heads=11), width=22)
>>> fitted = pt.fit(model, data.train, steps=20, lr={"*.logits.*": 0.1, "*": 1e-3})
>>> inserted = model.inserted.add_tasks(["right"]).freeze("*.logits.right")
>>> inserted.count()["task right"]  # MHR-z: heads x skills numbers a layer
44
>>> adapter = averaged(inserted, ["right"]).freeze()
>>> adapter.count()["inserted"]  # MHR-mu: one LoRA of rank 1
143
>>> with pt.task_scope("right"):
...     features = model.encoder(data.test[:][0])

The defaults are those of the paper's T0 experiments but for the heads, 64 there. The claims here are about a small network
and 48 tasks of real images: see `polytask.papers.mhr.comparison`. MHR-mu is the form with one adapter, where the authors'
code trains all skills under equal weights.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.mhr.comparison import FILES, measure
from polytask.papers.mhr.picture import plot
from polytask.papers.mhr.t5 import routing, skills, t5_xl
from polytask.papers.mhr.transfer import NEW, transfer
from polytask.share.lora import LoRA
from polytask.share.mhr import MHR, as_lora, averaged
from polytask.share.polytropon import Polytropon

__all__ = ["MHR", "NEW", "PAPER", "Polytropon", "as_lora", "averaged", "transfer"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")

PAPER = Paper(
    slug="mhr",
    title="Multi-Head Adapter Routing for Cross-Task Generalization",
    family="tuning",
    verbs=("share", "route", "measure"),
    reference="NeurIPS 2023, arXiv 2211.03831",
    claims=(
        _claim(
            name="heads",
            statement="with few examples MHR learns new tasks better than Poly does, in percentage points",
            method="mhr",
            baseline="poly",
            claimed="better at a similar number of parameters",
        ),
        _claim(
            name="skills",
            statement="and Poly better than one LoRA of the same rank that all tasks share",
            method="poly",
            baseline="lora",
            claimed="better than a single adapter",
        ),
        _claim(
            name="budget",
            statement="MHR learns new tasks better than one shared LoRA with as many numbers, of eight times the rank",
            method="mhr",
            baseline="lora-big",
            claimed="better than single adapters of a comparable size",
            comment="What a task is given is of rank 1 with MHR, of rank 8 with this LoRA. In layers of 256 units that is "
            "more of a difference than in those of 2,048.",
        ),
        _claim(
            name="routing alone",
            statement="MHR-z, which trains nothing but the routing, is far better than no transfer: by 10 points at least",
            method="mhr-z",
            baseline="mhr zero-shot",
            margin=10,
            claimed="competitive with a very small number of parameters",
        ),
        _claim(
            name="heads alone",
            statement="and better than Poly-z",
            method="mhr-z",
            baseline="poly-z",
            claimed="better, with more numbers to train",
        ),
        _claim(
            name="few numbers",
            statement="MHR-z is at most 3 points worse than a shared LoRA of rank 1 that is trained further as a whole",
            method="mhr-z",
            baseline="lora",
            margin=-3,
            claimed="competitive with single adapters, at a fraction of their numbers",
        ),
        _claim(
            name="mean",
            statement="MHR-mu, one adapter that begins as the mean of the skills, is at most 1 point worse than MHR",
            method="mhr-mu",
            baseline="mhr",
            margin=-1,
            claimed="as good, from which it follows that the gain is not from recombining skills",
        ),
        _claim(
            name="start",
            statement="MHR-mu learns new tasks better than a LoRA of rank 1 that begins at random",
            method="mhr-mu",
            baseline="random",
            claimed="many tasks together give a better start; figures were not found",
            comment="Of everything of rank 1 the LoRA from scratch learns most here: for tasks that ask for other classes, "
            "what the trained tasks have in common is no better place to start from.",
        ),
        _claim(
            name="training",
            statement="on the tasks that were trained MHR classifies better than Poly",
            method="mhr trained",
            baseline="poly trained",
            claimed="the gain is from better multi-task optimisation",
        ),
        _claim(
            name="alignment",
            statement="while training the cosine of two tasks' gradients on the skills is higher in the mean than Poly's",
            method="mhr cosine",
            baseline="poly cosine",
            claimed="the highest of all",
        ),
        _claim(
            name="alignment, lora",
            statement="and higher than that of the shared LoRA of rank 1",
            method="mhr cosine",
            baseline="lora cosine",
            claimed="the highest of all",
        ),
    ),
    scales=(
        Scale(
            name="T5-XL, without the layer that gives words",
            build=t5_xl,
            parameters=2_783_959_040,
            source="counted from T5's layers: 2,849,757,184 in the published checkpoint, 65,798,144 of them in that layer",
        ),
        Scale(
            name="LoRA of rank 1 on T5-XL",
            build=partial(skills, LoRA(rank=1)),
            parameters=2_211_840,
            source="counted: r (in + out) of 432 layers",
        ),
        Scale(
            name="Poly on T5-XL, with the routing of one task",
            build=partial(skills, Polytropon(skills=8, rank=1)),
            parameters=17_694_720 + 3_456,
            source="counted: S r (in + out) + T S of 432 layers",
        ),
        Scale(
            name="MHR on T5-XL, with the routing of one task",
            build=partial(skills, MHR(skills=8, heads=64, rank=1)),
            parameters=17_694_720 + 221_184,
            source="counted: S r (in + out) + T S h of 432 layers",
        ),
        Scale(
            name="MHR-z on T5-XL, a task",
            build=partial(routing, MHR(skills=8, heads=64, rank=1)),
            parameters=221_184,
            source="counted: S h, 512, of 432 layers",
        ),
    ),
    plot=plot,
)
