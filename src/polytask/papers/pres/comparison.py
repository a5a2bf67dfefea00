"""The claims' experiment: TGN with each half of PRES, with both and with none, at growing batches of one stream."""

from __future__ import annotations

from pathlib import Path

import torch

from polytask.claim import Measurements
from polytask.data.temporal import EventSplit, load_events, split_events
from polytask.papers.pres.model import PRES, distortion, pres
from polytask.training import fit

FILES = ("temporal_graphs/uci_collegemsg.npz",)
EVENTS, WIDTH, EPOCHS, EVALUATED = 20_000, 32, 3, 100
"""The stream's first events; the width of a state; epochs; the batch of evaluation, the same for all."""
BATCHES = (100, 400, 1600)
ARMS = {
    "tgn": {"gate": 1.0, "beta": 0.0},
    "coherence": {"gate": 1.0, "beta": 0.1},
    "correction": {"gate": 0.5, "beta": 0.0},
    "pres": {"gate": 0.5, "beta": 0.1},
}


def measure(seed: int, data: Path, epochs: int = EPOCHS) -> Measurements:
    """AP on test events in percent as ``"ARM BATCH ap"``, and the distortion of states by batches of 400, in percent, as
    ``"corrected distortion"`` with PRES's correction and ``"plain distortion"`` without it, by the same weights.

    The seed draws weights and negatives. Every arm has the same epochs, and reports the epoch at which its AP on validation
    events was best.
    """
    events = load_events(data / FILES[0])[:EVENTS]
    split, found = split_events(events), {}
    for size in BATCHES:
        for arm, settings in ARMS.items():
            model = trained(split, size, settings, seed, epochs)
            if (arm, size) == ("pres", 400):
                found["corrected distortion"] = 100 * distortion(model, split.validation, size)
                found["plain distortion"] = 100 * distortion(model, split.validation, size, corrected=False)
            model.observe(split.batches("validation", EVALUATED, seed=seed))
            found[f"{arm} {size} ap"] = 100 * model.evaluate(split.batches("test", EVALUATED, seed=seed))["links"]["ap"]
    return found


def trained(split: EventSplit, size: int, settings: dict[str, float], seed: int, epochs: int = EPOCHS) -> PRES:
    """One arm, with the weights and the state that were best on validation events, in evaluation mode."""
    torch.manual_seed(seed)
    model = pres(split.train.nodes, WIDTH, "identity", edge_width=split.train.width, **settings)  # type: ignore[arg-type]
    batches = split.batches("train", size, seed=seed)
    fit(
        model,
        batches,
        split.batches("validation", EVALUATED, seed=seed),
        epochs=epochs,
        lr=1e-3,
        optimizer=torch.optim.Adam,
        schedule="constant",
        monitor="links/ap",
        evaluate_every=len(batches),
        seed=seed,
    )
    return model.eval()
