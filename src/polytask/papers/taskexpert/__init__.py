"""TaskExpert: dense predictions from features that each task assembles of shared experts and of its own memory.

`MemorialExperts` is a way of sharing for features of several levels; `TaskExpert` a model that has it, with the tasks'
heads.

>>> import torch
>>> import polytask as pt
>>> from polytask.nn.vit import ViT
>>> from polytask.papers.taskexpert import MemorialExperts, TaskExpert
>>> encoder = ViT((32, 48), patch=8, embedding=24, depth=2, heads=2, levels=(1, 2))
>>> tasks = [pt.Task.segmentation("classes", classes=5), pt.Task.pixel_regression("depth")]
>>> model = TaskExpert(encoder, tasks, MemorialExperts(levels=2, experts=3, channels=16), intermediate=0.5)
>>> targets = {"classes": torch.randint(5, (4, 32, 48)), "depth": torch.randn(4, 1, 32, 48)}
>>> fitted = pt.fit(model, pt.Examples(torch.randn(4, 3, 32, 48), targets), steps=2, batch_size=4)
>>> with pt.share.watched_gates(model) as gates:
...     depth = model.eval()(torch.randn(4, 3, 32, 48), tasks=["depth"])["depth"]
>>> tuple(depth.shape), len(gates), tuple(gates[0].dense(4).shape)  # a gate for each level, over 3 experts and the memory
((4, 1, 16, 24), 2, (4, 1, 1, 4))
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.nn.vit import ViT
from polytask.paper import Paper, Scale
from polytask.papers._dense import nyud, pascal_context
from polytask.papers.taskexpert.camvid import FILES, measure, plot
from polytask.papers.taskexpert.memory import MemorialExperts
from polytask.papers.taskexpert.model import ConvHead, TaskExpert
from polytask.task import Task

__all__ = ["PAPER", "ConvHead", "MemorialExperts", "TaskExpert"]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)

_RECALLED = "on the paper's tables every step of the ladder is an improvement, as remembered; the figures were not found"
_COMMENT = "In percent of single-task models' metrics; as many parameters."
_COUNTED = (
    "ViT + levels (N params(E) + T (params(G) + params(U))) + tokens + heads, by this reconstruction's layers; the paper's "
    "own figure was not found"
)


def _at_scale(width: int, heads: int, levels: tuple[int, ...], size: tuple[int, int], tasks: list[Task]) -> TaskExpert:
    return TaskExpert(ViT(size, 16, width, levels[-1], heads, levels=levels, drop_path=0.15), tasks)


PAPER = Paper(
    slug="taskexpert",
    title="TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts",
    family="vision",
    verbs=("share", "route", "measure"),
    reference="ICCV 2023, arXiv 2307.15324",
    claims=(
        _claim(
            name="shared",
            statement="memorial experts are better than one projection of the same levels for all tasks, in delta_m",
            method="full delta",
            baseline="shared delta",
            claimed="better than earlier decoders on all nine metrics of PASCAL-Context and NYUD-v2",
            comment=_COMMENT,
        ),
        _claim(
            name="separate",
            statement="memorial experts are better than a projection of the same levels for each task, in delta_m",
            method="full delta",
            baseline="separate delta",
            claimed="better than earlier decoders on all nine metrics of PASCAL-Context and NYUD-v2",
            comment=_COMMENT,
        ),
        _claim(
            name="gates",
            statement="gates that depend on the input are better than learned weights that do not, in delta_m",
            method="full delta",
            baseline="static delta",
            claimed=_RECALLED,
            comment=f"{_COMMENT} The latter have 11 experts instead of gates.",
        ),
        _claim(
            name="uniform",
            statement="gates that depend on the input are better than equal weights, in delta_m",
            method="full delta",
            baseline="uniform delta",
            claimed=_RECALLED,
            comment=f"{_COMMENT} The latter have 11 experts instead of gates.",
        ),
        _claim(
            name="memory",
            statement="a memory that is read, as one of the experts, is better than one that is written only, in delta_m",
            method="full delta",
            baseline="write only delta",
            claimed=_RECALLED,
            comment=_COMMENT,
        ),
        _claim(
            name="levels",
            statement="memorial experts at all levels are better than experts at the last one, in delta_m",
            method="full delta",
            baseline="no memory delta",
            claimed=_RECALLED,
            comment=f"{_COMMENT} The latter see one level where the former see four, and spend what that saves on wider "
            "features: 34 channels, in their heads too, where the former have 16. In a short training from scratch width "
            "counts for more than early levels do.",
        ),
    ),
    scales=(
        Scale(
            name="ViT-L, PASCAL-Context, 512 x 512, five tasks",
            build=partial(_at_scale, 1024, 16, (6, 12, 18, 24), (512, 512), pascal_context()),
            parameters=325_878_937,
            source=_COUNTED,
        ),
        Scale(
            name="ViT-B, NYUD-v2, 448 x 576, four tasks",
            build=partial(_at_scale, 768, 12, (3, 6, 9, 12), (448, 576), nyud()),
            parameters=103_299_725,
            source=_COUNTED,
        ),
    ),
    plot=plot,
)
