"""Duo-LLM: every layer has a big and a small feed-forward part, interchangeable by training with a draw for each token.

So an oracle can be found that says what choosing could come to: every pattern is tried. And routers can be held beside it.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.duo_llm import DuoLM, patterns, try_patterns, with_routers
>>> random = torch.manual_seed(0)
>>> model = DuoLM(vocabulary=4, width=16, layers=2, heads=2, big=32, small=4)
>>> rows = (torch.arange(9) + torch.randint(4, (64, 1))) % 4  # it counts
>>> data = pt.Examples(rows[:, :-1], {"next": rows[:, 1:]})
>>> fitted = pt.fit(model, data, steps=40, batch_size=16, lr=1e-2)
>>> tried = try_patterns(model.eval(), rows[:8, :-1], rows[:8, 1:])
>>> len(tried.patterns), patterns(2, big=1)
(4, [(0, 1), (1, 0)])
>>> bool(tried.having(1).oracle.mean() <= tried.having(1).fixed < 1.0)
True
>>> routed = with_routers(model, data, {0: 0.5}, steps=10)  # half of the layers big
>>> routed(rows[:, :-1]).shape
torch.Size([64, 8, 4])

The layer is `polytask.route.Alternatives`: it takes any modules, in any network.
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.duo_llm.characters import FILES, measure
from polytask.papers.duo_llm.model import DuoLM, SwiGLU, add_routers
from polytask.papers.duo_llm.oracle import Tried, patterns, try_patterns
from polytask.papers.duo_llm.picture import plot
from polytask.papers.duo_llm.routing import Routed, with_routers

__all__ = ["PAPER", "DuoLM", "Routed", "SwiGLU", "Tried", "add_routers", "patterns", "try_patterns", "with_routers"]

_claim = partial(Claim, run=measure, better="lower", needs=FILES, seeds=5)

_LABEL = (
    "The oracle sees the character that it is to predict: part of this is that the least of several losses is low. See the "
    "claims on what can be known."
)


PAPER = Paper(
    slug="duo_llm",
    title="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
    family="dynamic",
    verbs=("share", "route", "measure"),
    reference="arXiv 2410.10846",
    claims=(
        _claim(
            name="half",
            statement="an oracle with three of six layers big loses less than all layers big for all tokens",
            method="oracle at 3",
            baseline="oracle at 6",
            claimed="perplexity falls until 6 of 12 big layers, then rises",
            comment=_LABEL,
        ),
        _claim(
            name="one",
            statement="and so does an oracle with one big layer for each token",
            method="oracle at 1",
            baseline="oracle at 6",
            claimed="one big layer is better than all",
            comment=_LABEL,
        ),
        _claim(
            name="random",
            statement="the oracle over all patterns of three big layers loses less than one over ten of them",
            method="oracle at 3",
            baseline="random at 3",
            claimed="far below the best of 100 random patterns",
            comment="It cannot lose more. Here there are 20 patterns; the paper has 924.",
        ),
        _claim(
            name="router",
            statement="a router with a budget of three big layers loses more than the oracle",
            method="oracle at 3",
            baseline="router at 3",
            claimed="far from the oracle",
            comment=_LABEL,
        ),
        _claim(
            name="fixed",
            statement="and is within 0.05 nats of the best fixed pattern with as many big layers",
            method="router at 3",
            baseline="fixed for the router at 3",
            margin=-0.05,
            claimed="close to the best fixed pattern",
            comment="The fixed pattern is chosen on the tokens that it is judged on. Between whole numbers of layers its "
            "loss is on the line.",
        ),
        _claim(
            name="sure",
            statement="without the label, taking each token's surest pattern of three big layers loses less than all big",
            method="surest at 3",
            baseline="oracle at 6",
            claimed="not in its tables",
            comment="A control that the paper has not: is there something to gain that does not look at what is predicted?",
        ),
        _claim(
            name="noise",
            statement="the oracle over patterns loses less than one over as many noisy big models of the same mean loss",
            method="oracle at 3",
            baseline="noise at 3",
            claimed="not in its tables",
            comment="A control that the paper has not: what the least of 20 losses comes to without any patterns.",
        ),
    ),
    scales=(
        Scale(
            name="12 layers of width 2560, feed-forward parts of 10,240 and 640",
            build=partial(DuoLM, 32_000, 2560, 12, 20, 10_240, 640),
            parameters=1_399_257_600,
            source="the paper's 1.399 B: attention 314 M, big parts 944 M, small ones 59 M, and a tied embedding of 32,000",
        ),
    ),
    plot=plot,
)
