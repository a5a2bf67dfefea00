"""TALL-masks and Consensus merging: which weights of a multi-task vector each task needs, and which hardly any task needs.

The parts are in `polytask.merge`: `best_scales`, `TaskMasks` and the rule `Consensus`.

>>> import torch
>>> from polytask.merge import Consensus, TaskMasks, best_scales, merge_state_dicts
>>> random = torch.manual_seed(0)
>>> base = {"w": torch.zeros(1000)}
>>> experts = {task: {"w": torch.randn(1000) * (torch.rand(1000) < 0.3)} for task in "abc"}
>>> def on_validation_data(task, weights):
...     return -float((weights["w"] - experts[task]["w"]).abs().mean())
>>> scales = best_scales(base, experts, on_validation_data)
>>> masks = TaskMasks.build(base, experts, scales)
>>> one = merge_state_dicts(Consensus(k=2, mask_scale=list(scales.values()), scale=0.5), list(experts.values()), base)
>>> all(on_validation_data(task, masks.weights(task)) > on_validation_data(task, one) for task in masks.tasks)
True
>>> round(masks.bytes().ratio, 3)  # (2 * 32 + 3) / (32 * 4)
0.523
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers._scale import clip_image_encoder
from polytask.papers.tall_masks.comparison import ALPHAS, DENSITIES, magnitude_masks, study
from polytask.papers.tall_masks.glyphs import FILES, measure, plot
from polytask.papers.tall_masks.text import FILES as TEXT_FILES
from polytask.papers.tall_masks.text import measure_text

__all__ = ["ALPHAS", "DENSITIES", "PAPER", "magnitude_masks", "study"]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=10)
_text = partial(Claim, run=measure_text, better="higher", needs=TEXT_FILES, seeds=5)


PAPER = Paper(
    slug="tall_masks",
    title="Localizing Task Information for Improved Model Merging and Compression",
    family="merging",
    verbs=("share", "merge", "shrink"),
    reference="ICML 2024, arXiv 2405.07813",
    claims=(
        _claim(
            name="recovery",
            statement="one task vector with a mask for each task loses less than 3 % of the experts' accuracy",
            method="tall",
            baseline="individual",
            margin=-3.0,
            claimed="more than 99 % recovered; 99.7 % with ViT-L/14 at 20 tasks",
            comment="In percent of the experts' accuracy. Small networks may interfere more than CLIP does.",
        ),
        _claim(
            name="masks",
            statement="masks that compare with the multi-task vector keep more than masks of equal size by magnitude alone",
            method="tall",
            baseline="magnitude",
            claimed="magnitude masks are the paper's baseline; its figures were not found",
            comment="In percent of the experts' accuracy; each task's two masks have the same number of weights.",
        ),
        _claim(
            name="tuned",
            statement="the same where the size of the masks by magnitude is chosen by validation, with as many trials",
            method="tall",
            baseline="tuned magnitude",
            claimed="magnitude masks are the paper's baseline; its figures were not found",
            comment="In percent of the experts' accuracy.",
        ),
        _text(
            name="recovery on text",
            statement="on text, one task vector with a mask for each task loses less than 3 % of the experts' accuracy",
            method="text tall",
            baseline="text individual",
            margin=-3.0,
            claimed="more than 99 % recovered, on language tasks too",
            comment="In percent of the experts' accuracy, on four tasks; the last two layers of MiniLM are fine-tuned.",
        ),
        _text(
            name="masks on text",
            statement="on text, such masks keep more than masks of equal size by magnitude alone",
            method="text tall",
            baseline="text magnitude",
            claimed="magnitude masks are the paper's baseline; its figures were not found",
            comment="In percent of the experts' accuracy; each task's two masks have the same number of weights.",
        ),
        _claim(
            name="consensus",
            statement="without the weights that fewer than two tasks need, task arithmetic is better",
            method="consensus",
            baseline="task arithmetic",
            claimed="improves task arithmetic at up to 20 vision tasks",
            comment="In percent of the experts' accuracy; both choose their scale by validation, of the same thirteen. The "
            "consensus takes a larger one; a scale below the paper's least, 0.1, may do what dropping weights does.",
        ),
        _claim(
            name="ties",
            statement="without the weights that fewer than two tasks need, TIES is better",
            method="consensus ties",
            baseline="ties",
            claimed="improves TIES at up to 20 vision tasks",
            comment="In percent of the experts' accuracy; both choose their scale by validation, of the same thirteen. TIES "
            "also chooses whether to add up or to average what agrees. It has dropped small and contrary changes before; of "
            "the weights that a single task still needs, that task may lose more than the others gain.",
        ),
    ),
    scales=(
        Scale(
            name="CLIP ViT-B/32, the image encoder's checkpoint",
            build=partial(clip_image_encoder, "ViT-B/32"),
            parameters=113_448_705,
            source="the length of these checkpoints' task vectors, as a comment in the code of PCB-Merging has it",
        ),
        Scale(
            name="CLIP ViT-L/14, the image encoder's checkpoint",
            build=partial(clip_image_encoder, "ViT-L/14"),
            parameters=342_562_049,
            source="counted from the layers as that of ViT-B/32; the vision transformer alone has 303,179,776",
        ),
    ),
    plot=plot,
)
