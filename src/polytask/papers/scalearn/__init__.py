"""ScaLearn: what adapters of several tasks know, scaled and added up for another, with few parameters.

Stage one trains an adapter for each source task in a frozen encoder, `task_adapter`; the target task is one of them. In
stage two they stay as they are, and the target learns a new head and how much of each adapter's output it takes: a vector or
a number for each source, in each layer or for the whole model, the four `VARIANTS`. What is learnt folds into one adapter.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.scalearn import VARIANTS, Adapter, as_adapter, transferred
>>> data = pt.multidigits(tasks=("left", "right", "ink"), size=300)
>>> random = torch.manual_seed(0)
>>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
>>> tasks = {task.name: task for task in data.tasks}
>>> adapters = pt.share.insert(encoder, Adapter(8), list(tasks)).freeze()  # task_adapter(768) in a BERT
>>> fitted = pt.fit(pt.Model(encoder, data.tasks, width=64), data.train, steps=100, lr=1e-2)
>>> scaled = transferred(adapters, VARIANTS["uniform"], ["ink"]).freeze()  # the order of sources is that of the tasks
>>> model = pt.Model(encoder, [tasks["ink"]], width=64)  # a new head
>>> fitted = pt.fit(model, {"ink": data.train}, steps=100, lr={"heads.*": 1e-2, "*": 6e-3})
>>> scaled.count()["task ink"]  # two layers, three sources
6
>>> inputs = data.test[:5][0]
>>> before = model.eval()(inputs)["ink"]
>>> folded = as_adapter(scaled)  # one adapter of width 24: what it costs to serve
>>> torch.allclose(model(inputs)["ink"], before, atol=1e-5)
True

The paper's learning rates are 3e-4 for adapters, 6e-3 for coefficients and 5e-5 for AdapterFusion, over 30 epochs of batches
of 32 with AdamW and a linear decay.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers._roberta import FEED_FORWARD, roberta
from polytask.papers.scalearn.picture import plot
from polytask.papers.scalearn.sources import task_adapter
from polytask.papers.scalearn.texts import FILES
from polytask.papers.scalearn.transfer import METHODS, VARIANTS, measure
from polytask.share import Adapter, AdapterFusion, ScaLearn, as_adapter, insert, soup, transferred

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PAPER", "VARIANTS", "Adapter", "AdapterFusion", "ScaLearn", "as_adapter", "soup", "task_adapter", "transferred"]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)


def _at_scale(method: str) -> nn.Module:
    """What a task learns in RoBERTa-base: its adapters, or how it puts those of eight tasks together."""
    from torch import nn

    adapters = insert(roberta("base"), task_adapter(768), list(map(str, range(8))), FEED_FORWARD)
    if method == "adapter":
        return nn.ParameterList(adapters.parameters_of("0"))
    return nn.ParameterList(transferred(adapters, METHODS[method], ["0"]).parameters())


def _scale(method: str, name: str, parameters: int) -> Scale:
    return Scale(
        name=f"RoBERTa-base, 8 sources: {name}",
        build=partial(_at_scale, method),
        parameters=parameters,
        source="the paper's table of parameters, without heads" if method != "adapter" else "counted by the paper's layout",
    )


PAPER = Paper(
    slug="scalearn",
    title="ScaLearn: Simple and Highly Parameter-Efficient Task Transfer by Learning to Scale",
    family="language",
    verbs=("share", "merge", "scale", "measure"),
    reference="Findings of ACL 2024, arXiv 2310.01217",
    claims=(
        _claim(
            name="adapter",
            statement="on scarce tasks ScaLearn classifies better than the task's own adapter, in percentage points",
            method="scalearn",
            baseline="adapter",
            claimed="85.36 against 83.83 % over GLUE; small tasks gain most, RTE 82.06 against 72.89 %",
            comment="The mean over two tasks of 100 rows. The adapter has as many steps as both of ScaLearn's stages.",
        ),
        _claim(
            name="fusion",
            statement="and better than AdapterFusion over the same adapters, which learns hundreds of times more",
            method="scalearn",
            baseline="fusion",
            claimed="85.36 against 85.01 % over GLUE, with 0.35 % of the parameters",
            comment="Of five learning rates other rows chose the lowest for AdapterFusion and the highest for ScaLearn; the "
            "paper's own are as far apart.",
        ),
        _claim(
            name="one number",
            statement="one number for each source, the same in all layers, is better than the task's own adapter",
            method="uniform++",
            baseline="adapter",
            claimed="85.14 against 83.83 % over GLUE, with 8 parameters",
        ),
        _claim(
            name="numbers and fusion",
            statement="and at most a point worse than AdapterFusion",
            method="uniform++",
            baseline="fusion",
            margin=-1.0,
            claimed="85.14 against 85.01 % over GLUE",
        ),
        _claim(
            name="one set for all layers",
            statement="ScaLearn++ is at most a point worse than ScaLearn",
            method="scalearn++",
            baseline="scalearn",
            margin=-1.0,
            claimed="85.35 against 85.36 % over GLUE",
        ),
        _claim(
            name="learning",
            statement="ScaLearn is better than the even mean of the adapters' outputs",
            method="scalearn",
            baseline="mean",
            claimed="not in its tables",
        ),
        _claim(
            name="joint",
            statement="ScaLearn is better than one adapter that learns all tasks together",
            method="scalearn",
            baseline="joint",
            claimed="85.36 against 83.52 % over GLUE",
            comment="The joint adapter takes as many steps on the rich tasks, and then more than both scarce tasks do. Five "
            "tasks that are near to one another, each as often, are far from the uneven sizes of GLUE, where it suffers.",
        ),
    ),
    scales=(
        _scale("adapter", "a task's adapter", 894_528),
        _scale("scalearn", "ScaLearn", 73_728),
        _scale("uniform", "ScaLearnUniform", 96),
        _scale("scalearn++", "ScaLearn++", 6_144),
        _scale("uniform++", "ScaLearnUniform++", 8),
        _scale("fusion", "AdapterFusion", 21_252_096),
    ),
    plot=plot,
)
