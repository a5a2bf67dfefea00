"""The claims' experiment: NAT with fewer hops and without codes, TGN, and scores without learning, on one stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from polytask.claim import Measurements
from polytask.data.temporal import EventBatches, Events, EventSplit, hide_nodes, load_events, split_events
from polytask.events import EventModel, tgn
from polytask.measure import pooled
from polytask.nn.graph import TemporalMemory
from polytask.papers.nat.heuristics import HEURISTICS, scores
from polytask.papers.nat.model import NAT
from polytask.training import fit

FILES = ("temporal_graphs/uci_collegemsg.npz",)
EVENTS, BATCH, EPOCHS, LR = 20_000, 200, 3, 1e-3
"""The stream's first events; events in a batch; epochs (the paper's are up to 50); the rate (the paper's is 1e-4)."""
STATE, WIDTH, TIME = 72, 32, 8
"""The width of a state, for NAT and for TGN; of what NAT pools; of NAT's encoding of time,
which is that since an event."""
PARTS = 6
"""Stretches of the test, for the picture."""


def _nat(nodes: int, seed: int, **settings: object) -> EventModel:
    return NAT(nodes, WIDTH, state_width=STATE, time_width=TIME, times="since", seed=seed, **settings)  # type: ignore[arg-type]


ARMS: dict[str, Callable[[int, int], EventModel]] = {
    "nat": lambda nodes, seed: _nat(nodes, seed),
    "hop 1": lambda nodes, seed: _nat(nodes, seed, sizes=(32,)),
    "hop 0": lambda nodes, seed: _nat(nodes, seed, sizes=()),
    "no codes": lambda nodes, seed: _nat(nodes, seed, position_width=0),
    "tgn": lambda nodes, seed: tgn(TemporalMemory(nodes, STATE)),
}
"""What is trained, from the number of nodes and the seed; TGN attends to the last 10 neighbours."""


def measure(seed: int, data: Path, epochs: int = EPOCHS) -> Measurements:
    """AP in percent of all test scores together, as ``"ARM ap"`` and, on test events that touch a node that training has
    not seen, ``"ARM inductive ap"``; and ``"nat seconds"``, ``"tgn seconds"`` of a training epoch.

    For the picture: ``"ARM repeats"`` and ``"ARM new pairs"``, AP of test events between nodes that have met and of those
    between nodes that have not, each against all negatives; ``"ARM part K"``, AP in stretches of the test.

    The seed draws weights, negatives and hidden nodes. Every arm has the same epochs and rate, and reports the epoch at
    which its AP on validation events was best. Before the inductive test caches and memories begin anew, and see all events
    of training and validation, those of hidden nodes, too.
    """
    events = load_events(data / FILES[0])[:EVENTS]
    split = split_events(events)
    inductive = hide_nodes(split, seed=seed)
    past = Events.joined([split.train, split.validation])
    test = split.batches("test", BATCH, seed=seed)
    unseen = EventBatches(inductive.test, BATCH, past=past, seed=seed)
    met = torch.cat([positive for positive, _ in scores("edge bank", test, past)]) > 0
    found: dict[str, float] = {}
    for arm, build in ARMS.items():
        model, seconds = trained(split, build, seed, epochs)
        if arm in ("nat", "tgn"):
            found[f"{arm} seconds"] = seconds
        model.observe(split.batches("validation", BATCH, seed=seed))
        found |= _measured(arm, model.scores(test), met)
        model, _ = trained(inductive, build, seed, epochs)
        for part in ("train", "validation"):
            model.observe(split.batches(part, BATCH, seed=seed))
        found[f"{arm} inductive ap"] = 100 * model.evaluate(unseen)["links"]["ap"]
    for name in HEURISTICS:
        found |= _measured(name, scores(name, test, past), met)
        found[f"{name} inductive ap"] = _ap(scores(name, unseen, past))
    return found


def trained(
    split: EventSplit, build: Callable[[int, int], EventModel], seed: int, epochs: int = EPOCHS
) -> tuple[EventModel, float]:
    """One arm, with the weights and the state that were best on validation events, in evaluation mode; and the seconds of an
    epoch, validation counted."""
    torch.manual_seed(seed)
    model = build(split.train.nodes, seed)
    batches = split.batches("train", BATCH, seed=seed)
    fitted = fit(
        model,
        batches,
        split.batches("validation", BATCH, seed=seed),
        epochs=epochs,
        lr=LR,
        optimizer=torch.optim.Adam,
        schedule="constant",
        monitor="links/ap",
        evaluate_every=len(batches),
        seed=seed,
    )
    return model.eval(), fitted.seconds / epochs


def _ap(scored: list[tuple[Tensor, Tensor]]) -> float:
    positive, negative = (torch.cat(each) for each in zip(*scored, strict=True))
    return 100 * pooled(positive, negative)["ap"]


def _measured(arm: str, scored: list[tuple[Tensor, Tensor]], met: Tensor) -> dict[str, float]:
    """AP of all, over the test, and by whether the pairs had met, ``met`` ``(E,)``."""
    found = {f"{arm} ap": _ap(scored)}
    size = len(scored) / PARTS
    for part in range(PARTS):
        found[f"{arm} part {part}"] = _ap(scored[round(part * size) : round((part + 1) * size)])
    positive, negative = (torch.cat(each) for each in zip(*scored, strict=True))
    for name, those in (("repeats", met), ("new pairs", ~met)):
        found[f"{arm} {name}"] = 100 * pooled(positive[those], negative)["ap"]
    return found
