"""Model breadcrumbs: task vectors without their outliers and without their small changes, added up.

`Breadcrumbs` is a merging rule like any other, for models in memory and for checkpoints of any size.

>>> import torch
>>> from polytask.merge import TaskArithmetic, merge_state_dicts
>>> from polytask.papers.breadcrumbs import Breadcrumbs
>>> generator = torch.Generator().manual_seed(0)
>>> base = {"weight": torch.zeros(40, 50)}
>>> signal = [torch.zeros(40, 50) for _ in range(4)]  # what each task needs: every tenth weight, each its own
>>> for k, needed in enumerate(signal):
...     needed.view(-1)[k::10] = 1.0
>>> def tuned(needed):  # ... and what fine-tuning leaves besides: noise everywhere, and a few outliers
...     outliers = 20.0 * (torch.rand(40, 50, generator=generator) > 0.995)
...     return {"weight": needed + outliers + 0.3 * torch.randn(40, 50, generator=generator)}
>>> models = [tuned(needed) for needed in signal]
>>> def error(rule):
...     return float((merge_state_dicts(rule, models, base)["weight"] - sum(signal)).square().mean())
>>> error(Breadcrumbs(density=0.1, gamma=0.01, scale=1.0)) < error(TaskArithmetic(scale=1.0)) / 10
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.merge import Breadcrumbs
from polytask.paper import Paper, Scale
from polytask.papers._scale import clip_vision, t5
from polytask.papers.breadcrumbs.growing import FILES, grow, measure, plot

__all__ = ["PAPER", "Breadcrumbs", "grow"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=10)


_encoder = partial(clip_vision, projected=True)
_CLIP = "counted from the layers of CLIP's image encoder with its projection; the paper's own figure was not found"

PAPER = Paper(
    slug="breadcrumbs",
    title="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
    family="merging",
    verbs=("merge", "shrink", "scale"),
    reference="ECCV 2024, arXiv 2312.06795",
    claims=(
        _claim(
            name="merged",
            statement="with settings chosen for six experts, breadcrumbs merges them better than task arithmetic, in points "
            "of the experts' accuracy",
            method="breadcrumbs retuned 6",
            baseline="task arithmetic retuned 6",
            better="higher",
            claimed="better multi-task models than earlier merging",
        ),
        _claim(
            name="retuning",
            statement="when experts join, breadcrumbs loses less by keeping its settings of two than task arithmetic does",
            method="breadcrumbs gap",
            baseline="task arithmetic gap",
            better="lower",
            claimed="settings chosen once stay good as tasks are added",
        ),
        _claim(
            name="frozen",
            statement="with settings of two experts kept, merges of three to six are better by breadcrumbs than by task "
            "arithmetic",
            method="breadcrumbs frozen",
            baseline="task arithmetic frozen",
            better="higher",
            claimed="settings chosen once stay good as tasks are added",
        ),
        _claim(
            name="retuning-ties",
            statement="when experts join, breadcrumbs loses less by keeping its settings of two than TIES does",
            method="breadcrumbs gap",
            baseline="ties gap",
            better="lower",
            claimed="settings chosen once stay good as tasks are added",
            comment="TIES, here by the mean as in its paper, averages what agrees, so that its merged task vector hardly "
            "grows with the number of experts; that of breadcrumbs is a sum, and grows.",
        ),
        _claim(
            name="outliers",
            statement="dropping the largest changes too is better than keeping the largest alone, six experts, both tuned",
            method="breadcrumbs retuned 6",
            baseline="largest retuned 6",
            better="higher",
            claimed="both ends of the magnitudes are dropped; the ablation's figures were not found",
        ),
        _claim(
            name="random",
            statement="the band of magnitudes is better than a random mask of its density, six experts, both tuned",
            method="breadcrumbs retuned 6",
            baseline="random retuned 6",
            better="higher",
            claimed="an ablation of ours",
        ),
    ),
    scales=(
        Scale(
            name="CLIP ViT-B/32, image encoder",
            build=partial(_encoder, "ViT-B/32"),
            parameters=87_849_216,
            source=_CLIP,
        ),
        Scale(
            name="CLIP ViT-B/16, image encoder",
            build=partial(_encoder, "ViT-B/16"),
            parameters=86_192_640,
            source=_CLIP,
        ),
        Scale(
            name="CLIP ViT-L/14, image encoder",
            build=partial(_encoder, "ViT-L/14"),
            parameters=303_966_208,
            source=_CLIP,
        ),
        Scale(
            name="T5-base",
            build=partial(t5, "base"),
            parameters=222_903_552,
            source="counted from T5's layers; rounded to 220 million in its paper",
        ),
    ),
    plot=plot,
)
