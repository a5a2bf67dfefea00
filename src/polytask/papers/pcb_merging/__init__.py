"""PCB-Merging: parameters of task vectors compete, by how much they matter to their task and how well the tasks agree.

`polytask.merge.PCB` is the rule, also for checkpoints on disk; `search_multipliers` adds the search for a multiplier of each
task's vector on validation data, and `compete` leaves a step out.

>>> import torch
>>> from polytask.merge import PCB, merge_state_dicts
>>> from polytask.papers.pcb_merging import search_multipliers
>>> generator = torch.Generator().manual_seed(0)
>>> base = {"w": torch.zeros(1000)}
>>> models = [{"w": torch.randn(1000, generator=generator)} for _ in range(2)]
>>> rule = PCB(ratio=0.2)
>>> wanted = merge_state_dicts(rule.but(weight=[1.2, 0.9]), models, base)  # stands in for what validation data like
>>> found = search_multipliers(lambda merged: -float((merged["w"] - wanted["w"]).norm()), models, base, rule)
>>> [round(weight, 2) for weight in found.best["weight"]]
[1.2, 0.9]
>>> merged = merge_state_dicts(rule.but(**found.best), models, base)
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers._scale import clip_image_encoder, t5
from polytask.papers.pcb_merging.ablation import compete
from polytask.papers.pcb_merging.glyphs import FILES, measure, plot
from polytask.papers.pcb_merging.multipliers import search_multipliers, shares

__all__ = ["PAPER", "compete", "search_multipliers", "shares"]

_claim = partial(Claim, run=measure, needs=FILES, better="higher")


PAPER = Paper(
    slug="pcb_merging",
    title="Parameter Competition Balancing for Model Merging",
    family="merging",
    verbs=("merge",),
    reference="NeurIPS 2024, arXiv 2410.02396",
    claims=(
        _claim(
            name="arithmetic",
            statement="PCB is more accurate than task arithmetic, both with the scale that validation chose",
            method="pcb",
            baseline="task arithmetic",
            claimed="outperforms existing merging methods",
        ),
        _claim(
            name="ties",
            statement="PCB is more accurate than TIES, both with what validation chose of as many settings",
            method="pcb",
            baseline="ties",
            claimed="outperforms existing merging methods",
            comment="The two hardly differ here, at any scale.",
        ),
        _claim(
            name="untuned",
            statement="PCB as it is, with scale 1, is more accurate than task arithmetic at its customary 0.3",
            method="pcb 1",
            baseline="task arithmetic 0.3",
            claimed="needs no training and, at its default scale, no validation data",
            comment="These experts are far from their base: 1 overshoots for PCB, as 0.3 does for task arithmetic.",
        ),
        _claim(
            name="search",
            statement="multipliers searched by validation make PCB more accurate",
            method="pcb es",
            baseline="pcb",
            claimed="a further gain; its size was not checked",
            comment="With the search PCB looks at validation data more often than without.",
        ),
        _claim(
            name="search for all",
            statement="with multipliers that are searched for both, PCB is more accurate than task arithmetic",
            method="pcb es",
            baseline="task arithmetic es",
            claimed="not compared in what was read",
        ),
        _claim(
            name="intra",
            statement="PCB is less accurate without the importance within a task",
            method="pcb",
            baseline="without intra",
            claimed="less accurate without",
        ),
        _claim(
            name="inter",
            statement="PCB is less accurate without the agreement between tasks",
            method="pcb",
            baseline="without inter",
            claimed="less accurate without",
            comment="Without it the largest entries of each task are left, whatever the others' signs are.",
        ),
        _claim(
            name="rescale",
            statement="PCB is less accurate when all that is left counts alike",
            method="pcb",
            baseline="without rescale",
            claimed="less accurate without",
            comment="Most coordinates are left to one task alone, and there strengths cancel.",
        ),
    ),
    scales=(
        Scale(
            name="CLIP ViT-B/32, the image encoder of the authors' script",
            build=partial(clip_image_encoder, "ViT-B/32"),
            parameters=113_448_705,
            source="the length of the flattened weights in a comment of the script",
        ),
        Scale(
            name="CLIP ViT-L/14, likewise",
            build=partial(clip_image_encoder, "ViT-L/14"),
            parameters=342_562_049,
            source="counted from the layers: a vision transformer of 303,966,208 and the text model's embeddings",
        ),
        Scale(
            name="T5-base",
            build=partial(t5, "base"),
            parameters=220_000_000,
            source="the paper's round number",
            tolerance=0.02,
        ),
        Scale(
            name="T5-large",
            build=partial(t5, "large"),
            parameters=770_000_000,
            source="the paper's round number, which is that of T5; the layers have 737,668,096",
            tolerance=0.05,
        ),
    ),
    plot=plot,
)
