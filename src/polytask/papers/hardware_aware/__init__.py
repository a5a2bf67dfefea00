"""A hardware-aware system: trade-offs of a super-network found by few measurements, for each hardware anew.

The search is `polytask.shrink.search`, on any network: a `Space` of configurations, and a callable that measures one. Here a
super-network of two tasks, of which accuracy is wanted for few operations:

>>> import torch
>>> import polytask as pt
>>> from polytask.share.slimmable import Configuration, Costs, Sandwich, Supernet
>>> from polytask.shrink.search import LINAS, Space, search
>>> data = pt.multidigits(tasks=("left", "right"), size=300)
>>> random = torch.manual_seed(0)
>>> nn = torch.nn
>>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(121, 64), nn.ReLU(), nn.Linear(64, 64))
>>> decoders = {name: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for name in ("left", "right")}
>>> supernet = Supernet(encoder, decoders, data.tasks)
>>> fitted = pt.fit(Sandwich(supernet), data.train, steps=100, lr=3e-3)
>>> costs = Costs(supernet, data.train.inputs[:1])
>>> images, labels = data.validation.inputs, data.validation.targets
>>> def evaluate(c):
...     chosen = Configuration(c["encoder"], {"left": c["left"], "right": c["right"]})
...     outputs = supernet(images, chosen)
...     right = [(outputs[task].argmax(1) == labels[task]).float().mean() for task in outputs]
...     return {"accuracy": sum(right) / 2, "operations": costs(chosen)}
>>> space = Space({part: supernet.widths for part in ("encoder", "left", "right")})
>>> objectives = {"accuracy": "higher", "operations": "lower"}
>>> found = search(space, evaluate, objectives, budget=24, strategy=LINAS(population=8, generations=20))
>>> len(found.trials), space.size, 1 <= len(found.front()) <= 24
(24, 64, True)

`Architecture`, `MobileNetV3` and `SuperNetwork` are the paper's example: Once-for-All's MobileNetV3, its sub-networks, and
`SPACE`, which has all of them.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.hardware_aware import cells, once_for_all, prediction
from polytask.papers.hardware_aware.architecture import SPACE, Architecture
from polytask.papers.hardware_aware.mobilenet import MobileNetV3, SuperNetwork
from polytask.papers.hardware_aware.picture import plot

__all__ = ["PAPER", "SPACE", "Architecture", "MobileNetV3", "SuperNetwork"]

_search = partial(Claim, run=once_for_all.measure_search, needs=once_for_all.FILES, seeds=5)
_cells = partial(Claim, run=cells.measure_cells, better="higher", needs=cells.FILES, seeds=10)
_predict = partial(Claim, run=prediction.measure_prediction, needs=prediction.FILES, seeds=10)

_LOWER = Architecture.parse("73375333737773753333", "36636366664346433644", "32232")
_HIGHER = Architecture.parse("57553337553773335555", "43444634434336664344", "23243")

_TREES = (
    "What was not measured has the top-1 of trees fitted on the 2,162 networks that were, and exact operations; populations "
    "and batches of 50 for both. Of the published logs, one run each, LINAS passes NSGA-II's hypervolume at 250 after 104."
)

PAPER = Paper(
    slug="hardware_aware",
    title="A Hardware-Aware System for Accelerating Deep Neural Network Optimization",
    family="compression",
    verbs=("share", "shrink", "measure"),
    reference="arXiv 2202.12954",
    claims=(
        _search(
            name="hypervolume",
            statement="after 250 evaluations LINAS covers more of top-1 against operations than NSGA-II does",
            method="linas at 250",
            baseline="nsga2 at 250",
            better="higher",
            claimed="it overtakes NSGA-II after a few generations",
            comment=_TREES,
        ),
        _search(
            name="evaluations",
            statement="LINAS needs at least 100 evaluations less than NSGA-II for what that covers after 250",
            method="linas evaluations",
            baseline="nsga2 evaluations",
            better="lower",
            margin=100,
            claimed="as good after 100 validations as others after 800",
            comment=_TREES,
        ),
        Claim(
            name="popdb",
            statement="in the space that PopDB leaves, NSGA-II covers after 250 evaluations less by 0.3 at most",
            run=once_for_all.measure_popdb,
            method="reduced",
            baseline="whole",
            better="higher",
            margin=-0.3,
            claimed="from 1e19 to 1e15 networks without losing hypervolume",
            comment="PopDB learns from 2,000 evaluations of one NSGA-II, which ends in few regions, not from 100,000. The "
            "hypervolume is about 28.",
            needs=once_for_all.FILES,
            seeds=5,
        ),
        *(
            _cells(
                name=f"cells at {n}",
                statement=f"among cells LINAS covers more than NSGA-II does after {n} evaluations, mean of three devices",
                method=f"cells linas at {n}",
                baseline=f"cells nsga2 at {n}",
                claimed="not in the paper",
                comment="NAS-Bench-201: of what the whole table covers; populations and batches of 20 for both.",
            )
            for n in cells.POINTS
        ),
        *(
            _cells(
                name=f"cells on {device}",
                statement=f"and so on {device} alone, after 200 evaluations",
                method=f"{device} linas at 200",
                baseline=f"{device} nsga2 at 200",
                claimed="not in the paper",
            )
            for device in cells.DEVICES
        ),
        _cells(
            name="warm start",
            statement="on gold_6226, after 40 evaluations LINAS covers more if it begins with what is best on eyeriss",
            method="warm at 40",
            baseline="gold_6226 linas at 40",
            claimed="faster by about an order of magnitude",
        ),
        _cells(
            name="devices differ",
            statement="on gold_6226 the front found for it covers more than the front found for eyeriss",
            method="gold_6226 linas at 200",
            baseline="foreign front",
            claimed="what is optimal on one platform is not on another",
        ),
        _predict(
            name="top-1 error",
            statement="ridge regression on 1,000 networks predicts the top-1 of others with an error below 0.5 %",
            method="top1 error 1000",
            baseline="0.5 %",
            better="lower",
            claimed="predictors of few hundred samples are good enough to search with",
        ),
        _predict(
            name="more networks",
            statement="and ranks them better than on 100: Kendall's tau",
            method="top1 tau 1000",
            baseline="top1 tau 100",
            better="higher",
            claimed="the rank correlation rises with the samples",
        ),
        *(
            _predict(
                name=f"latency at batch {batch}",
                statement=f"ridge regression ranks latencies at batch size {batch} by a tau above 0.86 on each of four GPUs",
                method=f"least tau at batch {batch}",
                baseline="0.86",
                better="higher",
                claimed="0.931 to 0.983 for this network",
                comment="Other GPUs than the paper's, and each network at one of 25 resolutions. "
                + ("A single image may take as long as it takes to launch the layers, whatever is in them." * (batch == 1)),
            )
            for batch in prediction.BATCHES
        ),
    ),
    scales=(
        Scale(
            name="Once-for-All MobileNetV3: a sub-network of 245 M operations",
            build=partial(MobileNetV3, _LOWER),
            parameters=4_536_768,
            source="the published log of searches",
        ),
        Scale(
            name="Once-for-All MobileNetV3: the first sub-network of the log",
            build=partial(MobileNetV3, _HIGHER),
            parameters=5_029_656,
            source="the published log of searches",
        ),
    ),
    plot=plot,
)
