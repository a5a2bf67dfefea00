"""The claims' experiment: the family of predictors, and scores without learning, on the same splits of Cora and Citeseer."""

from __future__ import annotations

from pathlib import Path

import torch

from polytask.claim import Measurements
from polytask.data.graph import GraphData, LinkBatches, LinkSplit, load_graph, split_links
from polytask.measure import hits_at, pooled
from polytask.papers.ncn.heuristics import HEURISTICS
from polytask.papers.ncn.model import NCN
from polytask.papers.ncn.presets import Preset, preset
from polytask.training import fit

GRAPHS = ("cora", "citeseer")
FILES = tuple(f"planetoid/{name}.npz" for name in GRAPHS)
HIDDEN, BATCH, EPOCHS, EVERY = 128, 1152, 25, 2
"""The width (the paper's is 256), true links in a batch, epochs (the paper's are 100), epochs between evaluations."""
ARMS: dict[str, dict[str, object]] = {
    "gae": {"kind": "gae"},
    "gae+cn": {"kind": "count"},
    "ncn": {"kind": "ncn"},
    "ncn without tlr": {"kind": "ncn", "remove_targets": False},
    "ncnc": {"kind": "ncn", "depth": 1},
}
"""What is trained, all with the paper's hyper-parameters of the data set, which the authors chose for NCNC."""


def measure(seed: int, data: Path, epochs: int = EPOCHS) -> Measurements:
    """HR@100 and AUC on test links, in percent, of each arm on each graph, and the means over graphs as ``"mean ARM hits"``.

    The seed draws the split (70/10/20), the negatives, the weights and the batches. Every arm has the same epochs and
    learning rates, and reports the epoch at which its HR@100 on validation links was best.
    """
    found: dict[str, float] = {}
    for name, file in zip(GRAPHS, FILES, strict=True):
        graph = load_graph(data / file)
        split = split_links(graph, validation=0.1, test=0.2, seed=seed)
        for heuristic, score in HEURISTICS.items():
            positive, negative = (score(split.graph, pairs) for pairs in split.test)
            found[f"{name} {heuristic} hits"] = 100 * hits_at(positive, negative, 100)
            found[f"{name} {heuristic} auc"] = 100 * pooled(positive, negative)["auc"]
        for arm, settings in ARMS.items():
            values = trained(graph, split, preset(name), settings, seed, epochs).evaluate(split.test)["links"]
            found[f"{name} {arm} hits"], found[f"{name} {arm} auc"] = 100 * values["hits@100"], 100 * values["auc"]
    for arm in (*HEURISTICS, *ARMS):
        found[f"mean {arm} hits"] = sum(found[f"{name} {arm} hits"] for name in GRAPHS) / len(GRAPHS)
    return found


def trained(
    graph: GraphData, split: LinkSplit, settings: Preset, arm: dict[str, object], seed: int, epochs: int = EPOCHS
) -> NCN:
    """One arm, with the weights that were best on validation links, in evaluation mode."""
    assert graph.features is not None
    torch.manual_seed(seed)
    model = settings.build(split.graph, graph.features, hidden=HIDDEN, **arm)  # type: ignore[arg-type]
    batches = LinkBatches(split, BATCH, seed)
    fit(
        model,
        batches,
        split.validation,
        epochs=epochs,
        lr=settings.lr,
        optimizer=torch.optim.Adam,
        schedule="constant",
        monitor="links/hits@100",
        evaluate_every=EVERY * len(batches),
        seed=seed,
    )
    return model.eval()
