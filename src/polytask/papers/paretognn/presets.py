"""The paper's settings, by data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.nn.graph import CSR
from polytask.papers.paretognn.model import ParetoGNN, pareto_gnn

STEPS, BATCH, WEIGHT_DECAY = 10_000, 1024, 1e-5
"""Steps of AdamW at a constant rate, nodes in a batch, and its weight decay, for all data sets."""


@dataclass(frozen=True)
class Preset:
    """One data set's settings, from the authors' code.

    Attributes:
        lr: of AdamW.
        decor: nodes that the decorrelation looks at.
        rates: of dropped edges and masked features in the views of ``"minsg"`` and of ``"decor"``.
        widths: of the encoder's layers.
    """

    lr: float
    decor: int = 10_000
    rates: tuple[float, float] = (0.3, 0.2)
    widths: tuple[int, ...] = (512, 256)

    def build(self, graph: CSR, features: Tensor | CSR, **settings: Any) -> ParetoGNN:
        """`pareto_gnn` with these settings, unless ``settings`` say otherwise."""
        own = {"decor": self.decor, "rates": self.rates, "widths": self.widths}
        return pareto_gnn(graph, features, **{**own, **settings})


PRESETS: dict[str, Preset] = {
    "pubmed": Preset(1e-3),
    "actor": Preset(1e-3, decor=5_000),
    "squirrel": Preset(1e-3),
    "wiki_cs": Preset(5e-4),
    "computer": Preset(5e-4),
    "photo": Preset(1e-4),
    "physics": Preset(1e-4, rates=(0.5, 0.5)),
    "arxiv": Preset(1e-4, decor=20_000, widths=(512, 512, 256)),
    "cs": Preset(5e-5, rates=(0.5, 0.5)),
    "chameleon": Preset(5e-5, decor=1_500),
}
"""By data set. For ogbn-arxiv there are three layers, whose widths are taken to be these; for ogbn-products the rate is not
known."""


def preset(name: str) -> Preset:
    """The settings for a data set; an unknown name is an error that suggests the nearest."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: {suggest(name, PRESETS)}")
    return PRESETS[name]
