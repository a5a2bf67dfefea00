"""TAME: experts for tasks that nobody announces, found by a rise of the loss, chosen by a selector, and pruned.

`polytask.route.continual.TAME` takes any stream of batches and any networks:

>>> import torch
>>> from polytask.route.continual import TAME, fit_selector
>>> def batches(task, count, generator=torch.Generator().manual_seed(0)):  # two tasks that contradict each other, far apart
...     for _ in range(count):
...         x = torch.randn(64, 2, generator=generator) + torch.tensor([6.0 * task, 0.0])
...         yield x, (x[:, 1] > 0).long() ^ task
>>> _ = torch.manual_seed(0)
>>> tame = TAME(lambda: torch.nn.Linear(2, 2), first=0.7, window=40, buffer=200)
>>> for task in (0, 1, 0):
...     events = [tame.step(*batch) for batch in batches(task, 40)]
...     print(task, events[-1].expert, sum(event.created for event in events))
0 0 1
1 1 1
0 0 0
>>> selector = fit_selector(torch.nn.Linear(2, 2), tame.samples(), epochs=60)
>>> routed = tame.routed(selector)  # a module like any other
>>> x, y = next(batches(1, 1))
>>> bool((routed(x).argmax(1) == y).float().mean() > 0.9)
True

The claims are about MNIST, of which 10,000 training digits are used: see `polytask.papers.tame.comparison`.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.tame.comparison import FILES, measure
from polytask.papers.tame.networks import LeNet
from polytask.papers.tame.picture import plot
from polytask.route.continual import TAME, fit_selector

__all__ = ["PAPER", "TAME", "LeNet", "fit_selector"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")

PAPER = Paper(
    slug="tame",
    title="TAME: Task Agnostic Continual Learning using Multiple Experts",
    family="dynamic",
    verbs=("share", "shrink", "route", "measure"),
    reference="CVPR workshops 2024, arXiv 2210.03869",
    claims=(
        _claim(
            name="forgetting",
            statement="on split MNIST TAME is better than one network on the same stream by 10 points at least",
            method="split tame",
            baseline="split single",
            margin=10,
            claimed="better than earlier task-agnostic methods; its tables' figures were not found",
        ),
        _claim(
            name="replay",
            statement="and better than one network that replays from a buffer of the same size",
            method="split tame",
            baseline="split replay",
            claimed="better than earlier task-agnostic methods",
            comment="Replay keeps the same 1,000 examples and takes twice as many a step; five tasks are few.",
        ),
        _claim(
            name="boundaries",
            statement="TAME is at most 3 points worse than when it is told where tasks change",
            method="split tame",
            baseline="split told",
            margin=-3,
            claimed="as good as methods that are given the tasks, or better",
        ),
        _claim(
            name="experts",
            statement="it makes as many experts as there are tasks, five: on average less than half of one too few",
            method="split experts",
            baseline="split tasks",
            margin=-0.5,
            claimed="shifts are detected",
            comment="A task lasts for 64 batches. The window's losses still fall then, so that its mean and deviation are "
            "large, and a task that the last expert happens to do half well is missed: one expert then learns two tasks. "
            "A step that goes wrong raises the loss as well, and makes an expert too many.",
        ),
        _claim(
            name="false alarms",
            statement="and no more than that: less than half of one too many",
            method="split experts",
            baseline="split tasks",
            better="lower",
            margin=-0.5,
            claimed="shifts are detected",
        ),
        _claim(
            name="selector",
            statement="the selector is at most 5 points worse than choosing each input's own expert",
            method="split tame",
            baseline="split chosen",
            margin=-5,
            claimed="an ablation of ours",
        ),
        _claim(
            name="random selector",
            statement="and better than a random one by 20 points at least",
            method="split tame",
            baseline="split random",
            margin=20,
            claimed="an ablation of ours",
        ),
        _claim(
            name="pruned",
            statement="with 98 % of the experts' weights and half of the selector's gone it loses at most 3 points",
            method="split pruned",
            baseline="split tame",
            margin=-3,
            claimed="comparable model size: 98 % are pruned in the authors' code",
        ),
        _claim(
            name="permuted",
            statement="on permuted MNIST TAME is better than one network on the same stream",
            method="permuted tame",
            baseline="permuted single",
            claimed="better than earlier task-agnostic methods",
            comment="Two epochs of 32 batches for each permutation are too few for a window of 35 falling losses: no "
            "change was found in any seed, so that TAME is the one network. The authors take ten epochs of 469.",
        ),
        _claim(
            name="recurring",
            statement="when a task comes back, TAME goes on with its expert: for tasks 0, 1, 2, 1, 3 it makes no more than "
            "4 experts, to less than half of one",
            method="recurring experts",
            baseline="recurring tasks",
            better="lower",
            margin=-0.5,
            claimed="old experts are re-activated",
        ),
    ),
    scales=(
        Scale(
            name="LeNet expert of two classes",
            build=partial(LeNet, 2),
            parameters=61_026,
            source="counted from the layers: 156 + 2,416 + 48,120 + 10,164 + 170",
        ),
        Scale(
            name="LeNet expert of ten classes",
            build=partial(LeNet, 10),
            parameters=61_706,
            source="counted from the layers: 156 + 2,416 + 48,120 + 10,164 + 850",
        ),
    ),
    plot=plot,
)
