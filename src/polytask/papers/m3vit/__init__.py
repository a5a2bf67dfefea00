"""M3ViT: a vision transformer whose experts are chosen by each task's gates, so that one task runs on its experts alone.

`M3ViT` is an encoder for `polytask.Model`, `DenseModel` one with the paper's decoders; `expert_major` and `token_major`
count what a schedule of the experts' weights loads and holds.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.m3vit import DenseModel, M3ViT, expert_major
>>> tasks = [pt.Task.segmentation("classes", classes=5), pt.Task.pixel_regression("depth")]
>>> sizes = {"size": (32, 48), "patch": 8, "embedding": 24, "depth": 2, "heads": 2, "experts": 8, "k": 2}
>>> encoder = M3ViT(["classes", "depth"], **sizes)
>>> model = DenseModel(encoder, tasks, channels=16, stages=3, aware=(0, 1))
>>> images = torch.randn(4, 3, 32, 48)
>>> targets = {"classes": torch.randint(5, (4, 32, 48)), "depth": torch.randn(4, 32, 48)}
>>> fitted = pt.fit(model, pt.Examples(images, targets), steps=2, batch_size=4)
>>> with pt.share.watched_gates(encoder) as layers:
...     depth = model.eval()(images, tasks=["depth"])["depth"]  # one pass, by the gates of depth
>>> tuple(depth.shape), expert_major(layers[0].experts.flatten(0, 1), expert_bytes=4 * 1200).resident
((4, 1, 32, 48), 9600)
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.nn.vit import ViT
from polytask.paper import Paper, Scale
from polytask.papers._dense import nyud, pascal_context
from polytask.papers.m3vit.camvid import FILES, measure, plot
from polytask.papers.m3vit.decoder import DenseModel, PUPHead, TaskAware
from polytask.papers.m3vit.encoder import M3ViT, MoE
from polytask.papers.m3vit.routing import Traffic, expert_major, expert_use, token_major

__all__ = [
    "PAPER",
    "DenseModel",
    "M3ViT",
    "MoE",
    "PUPHead",
    "TaskAware",
    "Traffic",
    "expert_major",
    "expert_use",
    "token_major",
]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5)

_PASCAL = [task.name for task in pascal_context()]
_NYUD = [task.name for task in nyud()][:2]
_COUNTED = "counted from the layers that the authors' code builds, encoder without decoders; the paper states none"
_FEWER = "better than encoder-focused multi-task models, on PASCAL-Context and NYUD-v2"

PAPER = Paper(
    slug="m3vit",
    title="M^3ViT: Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning with Model-Accelerator Co-design",
    family="vision",
    verbs=("share", "route", "scale", "measure"),
    reference="NeurIPS 2022, arXiv 2210.14793",
    claims=(
        _claim(
            name="experts",
            statement="experts with a gate for each task are better than a dense encoder that tasks share, in delta_m",
            method="multi-gate delta",
            baseline="dense delta",
            better="higher",
            claimed=_FEWER,
            comment="In percent of single-task models' metrics, at the same steps; a step of the former makes three passes.",
        ),
        _claim(
            name="passes",
            statement="the same where the dense encoder makes as many passes, if that is better on validation data",
            method="multi-gate delta",
            baseline="chosen dense delta",
            better="higher",
            claimed=_FEWER,
            comment="In percent of single-task models' metrics. Three times the epochs help a dense encoder more than "
            "experts do: at this size, and without pre-training, none of the models is near the end of its training.",
        ),
        _claim(
            name="gates",
            statement="a gate for each task is better than one gate for all, with the same experts, in delta_m",
            method="multi-gate delta",
            baseline="one gate delta",
            better="higher",
            claimed="disentangles the parameter spaces of tasks",
            comment="In percent of single-task models' metrics; with one gate a step makes one pass.",
        ),
        _claim(
            name="conflicts",
            statement="with a gate for each task fewer pairs of tasks' gradients conflict than in a dense encoder",
            method="multi-gate conflicts",
            baseline="dense conflicts",
            better="lower",
            claimed="avoids different tasks' training conflicts",
            comment="In percent of three pairs at four looks during training: too few looks to tell a moderate difference.",
        ),
        _claim(
            name="divergence",
            statement="tasks' gates choose different experts: a divergence of at least a tenth of the largest there is",
            method="multi-gate divergence",
            baseline="one gate divergence",
            better="higher",
            margin=0.1,
            claimed="activates only the task's experts",
            comment="The mean Jensen-Shannon divergence of tasks' use of experts, 0 with one gate for all, 1 at most.",
        ),
    ),
    scales=(
        Scale(
            name="ViT-small with 16 experts, PASCAL-Context, 512 x 512, five gates",
            build=partial(M3ViT, _PASCAL),
            parameters=43_463_040,
            source=_COUNTED,
        ),
        Scale(
            name="ViT-small with 16 experts, NYUD-v2, 480 x 640, two gates",
            build=partial(M3ViT, _NYUD, (480, 640)),
            parameters=43_420_032,
            source=_COUNTED,
        ),
        Scale(
            name="ViT-small, dense, 512 x 512",
            build=partial(ViT, (512, 512), 16, 384, 12, 12),
            parameters=21_982_848,
            source=_COUNTED,
        ),
    ),
    plot=plot,
)
