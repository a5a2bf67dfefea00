"""AdaMerging: how much of each task vector goes into a merged model, learned from unlabelled inputs.

The coefficients of task arithmetic, one for each task vector (task-wise) or for each task vector and tensor (layer-wise), go
down the entropy of the merged model's predictions; AdaMerging++ does so with task vectors that TIES has trimmed and elected
signs of. Models, task vectors and losses are the user's own; heads stay as they are.

>>> import torch
>>> from torch import nn
>>> from polytask.papers.adamerging import Coefficients, entropy, learn, trim_and_elect
>>> generator = torch.manual_seed(0)
>>> encoder, heads = nn.Linear(8, 4, bias=False), {"a": nn.Linear(4, 3), "b": nn.Linear(4, 5)}
>>> vectors = [{"weight": torch.randn(4, 8)} for task in heads]  # theta_k - theta_0
>>> inputs = {task: torch.randn(20, 32, 8) for task in heads}  # batches without labels
>>> coefficients = Coefficients(encoder, trim_and_elect(vectors, density=0.5))  # without trim_and_elect: AdaMerging
>>> losses = learn(coefficients, inputs, lambda merged, task, x: entropy(heads[task](merged(x))), steps=40, lr=1e-2)
>>> sum(losses[-1].values()) < sum(losses[0].values())
True
>>> done = encoder.load_state_dict(coefficients.merged())

The authors' code takes two batches of 16 inputs of each task a step, which is one batch of 32 here, and 500 steps. Its other
settings are the defaults of `Coefficients` and `learn`; its layers are tensors, as they are here. Its trimming keeps one
entry more than the fraction that was asked for, and all that equal it in size.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.merge.coefficients import Coefficients, entropy, learn, load_weights, rule_by_tensor, save_weights
from polytask.merge.rules.ties import trim_and_elect
from polytask.paper import Paper, Scale
from polytask.papers._scale import clip_vision
from polytask.papers.adamerging.glyphs import FILES, measure
from polytask.papers.adamerging.picture import plot

__all__ = [
    "PAPER",
    "Coefficients",
    "entropy",
    "learn",
    "load_weights",
    "rule_by_tensor",
    "save_weights",
    "trim_and_elect",
]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5, better="higher")


PAPER = Paper(
    slug="adamerging",
    title="AdaMerging: Adaptive Model Merging for Multi-Task Learning",
    family="merging",
    verbs=("merge", "measure"),
    reference="ICLR 2024, arXiv 2310.02575",
    claims=(
        _claim(
            name="layer-wise",
            statement="one coefficient for each tensor classifies better than one for each task, in percentage points",
            method="layer-wise",
            baseline="task-wise",
            claimed="80.2 against 71.1 % on eight tasks, ViT-B/32",
        ),
        _claim(
            name="arithmetic",
            statement="layer-wise AdaMerging classifies better than task arithmetic at 0.3, where it starts",
            method="layer-wise",
            baseline="arithmetic",
            claimed="about 11 points above task arithmetic",
            comment="0.3 is far above the best scale of task arithmetic here. The next claim has the stronger baseline.",
        ),
        _claim(
            name="tuned",
            statement="layer-wise AdaMerging, without labels, classifies better than task arithmetic at the scale that is "
            "best on labelled validation data",
            method="layer-wise",
            baseline="tuned",
            claimed="about 11 points above task arithmetic",
            comment="The lowest entropy is not the best accuracy: it takes the weights of the first layers nearly back to "
            "the base. A merged model that is often wrong becomes surer of what is wrong, too.",
        ),
        _claim(
            name="other half",
            statement="the same on inputs that it has not adapted to: it adapts to one half of the test inputs, and is "
            "scored on the other",
            method="layer-wise, other half",
            baseline="tuned, other half",
            claimed="not in the paper, which adapts to the very inputs that it scores",
        ),
        _claim(
            name="plus plus",
            statement="layer-wise AdaMerging++ classifies better than layer-wise AdaMerging",
            method="layer-wise++",
            baseline="layer-wise",
            claimed="81.2 against 80.2 %",
        ),
        _claim(
            name="ties",
            statement="layer-wise AdaMerging++ classifies better than TIES at the scale that is best on labelled validation "
            "data",
            method="layer-wise++",
            baseline="ties tuned",
            claimed="81.2 %, better than TIES",
            comment="TIES alone is the best merged model here, near its own default scale, and entropy leads away from it: "
            "see tuned.",
        ),
        _claim(
            name="unseen tasks",
            statement="of experts on all tasks but two, layer-wise AdaMerging makes a model that is better on these two "
            "than tuned task arithmetic does",
            method="layer-wise, unseen",
            baseline="tuned, unseen",
            claimed="better on unseen tasks than task arithmetic",
            comment="The base itself is better on these two tasks than any merged model: here experts have nothing to give "
            "to tasks that they were not trained on.",
        ),
        _claim(
            name="noise",
            statement="under Gaussian noise on the test images layer-wise AdaMerging is better than tuned task arithmetic",
            method="layer-wise, noise",
            baseline="tuned, noise",
            claimed="better under corruptions than task arithmetic",
            comment="AdaMerging adapts to the noisy images; the scale of task arithmetic was chosen on clean ones.",
        ),
        _claim(
            name="correlation",
            statement="before adaptation a prediction's entropy goes with its cross-entropy: Spearman's correlation over "
            "test inputs, the mean over tasks, is above 0",
            method="spearman",
            baseline="no correlation",
            claimed="positive; the method rests on it",
        ),
    ),
    scales=(
        Scale(
            name="CLIP ViT-B/32, the vision encoder",
            build=partial(clip_vision, "ViT-B/32"),
            parameters=87_456_000,
            source="the vision model of transformers, as fusion_bench's documentation counts it; the paper states none",
        ),
        Scale(
            name="CLIP ViT-L/14, the vision encoder",
            build=partial(clip_vision, "ViT-L/14"),
            parameters=303_179_776,
            source="the vision model of transformers; the paper states none",
        ),
    ),
    plot=plot,
)
