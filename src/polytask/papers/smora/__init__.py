"""SMoRA: each rank of a LoRA is an expert, and each token uses a few of them.

The method is `polytask.share.SMoRA`, inserted into any network: of a language model's blocks, ``insert(model, SMoRA(),
["all"], where="*_proj").freeze()``. Larger experts are its ``partition``. `rank_use` counts which ranks are chosen, and
`active_parameters` what a token costs:

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.smora import active_parameters, rank_use
>>> from polytask.share import SMoRA
>>> data = pt.multidigits(tasks=("left", "ink"), size=300)
>>> random = torch.manual_seed(0)
>>> nn = torch.nn
>>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(121, 64), nn.ReLU(), nn.Linear(64, 64))  # yours, trained before
>>> model = pt.Model(encoder, data.tasks, SMoRA(rank=16, active=4), width=64)  # frozen but for what is inserted
>>> fitted = pt.fit(model, data.train, steps=50, lr=1e-2)
>>> with rank_use(model) as use:
...     outputs = model(data.test.inputs, tasks=["left"])
>>> {place: bool(counts.sum() == 4 * len(data.test)) for place, counts in use.items()}  # four ranks of each layer
{'encoder.1': True, 'encoder.3': True}
>>> model.inserted.count()["inserted"], active_parameters(model)
(7968, 4212)

The authors' kernel gathers the factors of the ranks that a token chooses. Here all of the small products are computed, and
those not chosen are multiplied by 0: the same result, for a small share of the layer's own cost.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.smora.glyphs import FILES, measure
from polytask.papers.smora.llama import llama, qwen
from polytask.papers.smora.picture import plot
from polytask.papers.smora.use import active_parameters, rank_use

__all__ = ["PAPER", "active_parameters", "rank_use"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")

COUNTED = "counted; of the model's own parameters none is trained, and the paper's figure is not known here"


PAPER = Paper(
    slug="smora",
    title="Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning",
    family="tuning",
    verbs=("share", "shrink", "route"),
    reference="KDD 2026, arXiv 2501.15103",
    claims=(
        _claim(
            name="active ranks",
            statement="4 of 16 ranks classify better than a LoRA of rank 4, which has as many active, in percentage points",
            method="smora",
            baseline="lora 4",
            claimed="8 of 64 ranks about 6 % above rank 8 on 48 tasks, Llama-2-7B; a figure that was not checked",
        ),
        _claim(
            name="all ranks",
            statement="4 of 16 ranks classify better than a LoRA of rank 16, which uses all of them",
            method="smora",
            baseline="lora 16",
            claimed="8 of 64 ranks about 1.7 % above rank 64; a figure that was not checked",
            comment="A small network with six tasks has use for all ranks, and with the paper's bias steps a third of them "
            "gets nearly all of the load.",
        ),
        _claim(
            name="finest",
            statement="single ranks are better experts than blocks of two: 4 of 16 against 2 of 8, with the same gates",
            method="smora",
            baseline="blocks 2 of 8",
            claimed="finer partitions are better at equal total and active parameters",
        ),
        _claim(
            name="coarsest",
            statement="and better than blocks of four, of which one is chosen",
            method="smora",
            baseline="blocks 1 of 4",
            claimed="finer partitions are better at equal total and active parameters",
            comment="The gate of a single expert is 1, whatever the scores, so that its router learns nothing. The mixture "
            "of one in four, whose gate is relaxed, is the fairer baseline.",
        ),
        _claim(
            name="mixture of two",
            statement="4 of 16 ranks classify better than 2 of 8 LoRAs of rank 2 with softmax gates",
            method="smora",
            baseline="moe 2 of 8",
            claimed="better than mixtures of LoRAs",
        ),
        _claim(
            name="mixture of one",
            statement="and better than 1 of 4 LoRAs of rank 4 with softmax gates",
            method="smora",
            baseline="moe 1 of 4",
            claimed="better than mixtures of LoRAs",
        ),
        _claim(
            name="mixtures",
            statement="2 of 8 LoRAs of rank 2 classify better than one LoRA of rank 4",
            method="moe 2 of 8",
            baseline="lora 4",
            claimed="a mixture is one LoRA of which blocks are active, and more ranks serve tasks that conflict",
        ),
        _claim(
            name="balance",
            statement="with bias steps of 1e-3 the load is spread more evenly over ranks than with steps of 1e-5, by its "
            "standard deviation over its mean",
            method="smora balanced spread",
            baseline="smora spread",
            better="lower",
            claimed="a bias of each rank balances loads without a loss",
            comment="400 steps of 1e-5, the paper's, move no bias by more than 0.004. What evens the load here also moves "
            "examples between ranks as they learn: the measurement smora balanced has its accuracy.",
        ),
    ),
    scales=(
        Scale(name="Llama-2-7B", build=partial(llama, "7B"), parameters=6_738_415_616 + 232_783_872, source=COUNTED),
        Scale(name="Llama-2-13B", build=partial(llama, "13B"), parameters=13_015_864_320 + 364_380_160, source=COUNTED),
        Scale(name="Qwen2.5-7B", build=qwen, parameters=7_615_616_512 + 233_963_520, source=COUNTED),
    ),
    plot=plot,
)
