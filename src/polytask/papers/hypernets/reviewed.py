"""The review's worked example: an MLP out of embeddings makes all weights of a network, in one of four ways."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from polytask.errors import InputError, suggest
from polytask.share.hypernetwork import (
    MLP,
    Architecture,
    Chunks,
    Context,
    Heads,
    Hyperfan,
    HyperNetwork,
    Once,
    PerLayer,
    Strategy,
    Tasks,
)

STRATEGIES: dict[str, tuple[Strategy, MLP]] = {
    "once": (Once(), MLP((100, 100))),
    "layers": (PerLayer(embedding=0), MLP((100, 100))),
    "heads": (Heads(2), MLP((100,))),
    "chunks": (Chunks(100, embedding=0), MLP((100, 100))),
}
"""By name: the strategy, and the generator's body. Of split heads the second hidden layer is the heads' own, 50 each.

Each task has an embedding of 16 for each layer or chunk. The number of chunks is a setting; 100 is not the review's."""


def reviewed(target: nn.Module, context: Context, strategy: str = "once", body: Architecture | None = None) -> HyperNetwork:
    """A hypernetwork as in the review's example: all weights are predicted, and the generator alone is trained.

    The initial weights are by hyperfan-in, one of the remedies that the review lists; which one its example uses, if any,
    is not known here.

    Args:
        target: the network; its own weights are taken away.
        context: what conditions. Only `Tasks` have an embedding for each layer and chunk; for others these have an embedding
            of 16 each, which is joined to the context.
        strategy: of `STRATEGIES`; ``"once"`` by default.
        body: another body than that of `STRATEGIES`, which has ReLU.

    Raises:
        InputError: for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: {suggest(strategy, STRATEGIES)}")
    kind, usual = STRATEGIES[strategy]
    if isinstance(kind, PerLayer | Chunks) and not isinstance(context, Tasks):
        kind = replace(kind, embedding=16)
    return HyperNetwork(target, context, body or usual, kind, residual=False, start=Hyperfan())


def at_scale(strategy: str) -> HyperNetwork:
    """For two tasks, a target of 784-100-10, 79,510 weights."""
    target = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    return reviewed(target, Tasks(["first", "second"]), strategy)
