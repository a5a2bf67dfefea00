"""PAGCP: channels of a network of several tasks are pruned group by group, and each task's own loss has a veto.

The method is `polytask.shrink.prune_by_task`; `polytask.shrink.shrink` searches budgets with it.

>>> import torch
>>> import polytask as pt
>>> from polytask.cost import macs
>>> from polytask.shrink import Tolerances, find_structure, prune_by_task
>>> from polytask.training.evaluate import evaluate_losses
>>> data, seeded = pt.multidigits(tasks=("left", "ink"), size=200), torch.manual_seed(0)
>>> model = pt.Model(data.encoder(), data.tasks)
>>> fitted = pt.fit(model, data.train, steps=60, lr=3e-3)
>>> structure = find_structure(model, data.train[:2][0])
>>> losses = lambda network: evaluate_losses(network, data.validation)
>>> pruned = prune_by_task(model, structure, losses, lambda n: macs(n, data.train[:1][0]), Tolerances(0.1, 2.0))
>>> before, after = losses(model), losses(pruned.network)
>>> all(after[task] <= 2.0 * before[task] for task in before)
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.pagcp.digits import ARMS, FILES, Encoder, measure, plot
from polytask.papers.pagcp.yolo import YOLOv5

__all__ = ["ARMS", "PAPER", "Encoder", "YOLOv5"]

_claim = partial(Claim, run=measure, better="lower", needs=FILES, seeds=5)
_COMMENT = "Relative drop of the worst task in percent, at 60 % of the operations, before fine-tuning."


PAPER = Paper(
    slug="pagcp",
    title="Performance-aware Approximation of Global Channel Pruning for Multitask CNNs",
    family="compression",
    verbs=("balance", "shrink", "measure"),
    reference="T-PAMI 2023, arXiv 2303.11923",
    claims=(
        _claim(
            name="minor drop",
            statement="with 62 % of the operations pruned in two rounds of fine-tuning, the worst task loses less than 2 %",
            method="small drop",
            baseline="no drop",
            margin=-2.0,
            claimed="over 60 % of the operations with minor drop; YOLOv5l 47.0 to 45.5 mAP at 42.5 %",
            comment="Against the whole network with the same two further epochs. A small network has few channels to spare.",
        ),
        _claim(
            name="uniform",
            statement="the worst task loses less than with the same share of every layer's smallest filters removed",
            method="pagcp drop",
            baseline="uniform drop",
            claimed="better than L1 pruning; its figures were not found",
            comment=_COMMENT,
        ),
        _claim(
            name="global",
            statement="the worst task loses less than with the smallest filters of all layers removed",
            method="pagcp drop",
            baseline="global drop",
            claimed="better than rankings over layers; its figures were not found",
            comment=_COMMENT,
        ),
        _claim(
            name="veto",
            statement="the worst task loses less than where the sum of the losses decides",
            method="pagcp drop",
            baseline="summed drop",
            claimed="each task's loss has to be looked at",
            comment=_COMMENT,
        ),
        _claim(
            name="sequential",
            statement="the worst task loses less than where every layer is judged on the unpruned network",
            method="pagcp drop",
            baseline="at once drop",
            claimed="layers have to be judged on what was pruned before",
            comment=_COMMENT,
        ),
        _claim(
            name="after fine-tuning",
            statement="after one epoch of fine-tuning the worst task still loses less than with uniform pruning",
            method="pagcp tuned drop",
            baseline="uniform tuned drop",
            claimed="better than L1 pruning; its figures were not found",
            comment="Relative drop of the worst task in percent, at 60 % of the operations.",
        ),
    ),
    scales=tuple(
        Scale(
            name=f"YOLOv5{size}, COCO",
            build=partial(YOLOv5, size),
            parameters=parameters,
            source="the paper's table, which may count fused batch norms; its operations agree within 0.2 %",
            tolerance=0.01,
        )
        for size, parameters in (("m", 21_400_000), ("l", 46_700_000), ("x", 87_400_000))
    ),
    plot=plot,
)
