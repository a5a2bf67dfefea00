"""The claims' experiment: each pretext task alone, and all five under several balancers, on three graphs and four tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytask.balance import Balancer, balancers
from polytask.balance.mgda import LossMGDA
from polytask.claim import Measurements
from polytask.data.graph import GraphData, LinkSplit, load_graph, split_links
from polytask.nn.graph import CSR
from polytask.papers.paretognn.batches import PretextBatches
from polytask.papers.paretognn.evaluation import TASKS, evaluate_links, evaluate_nodes
from polytask.papers.paretognn.model import PRETEXTS, ParetoGNN, pareto_gnn
from polytask.papers.paretognn.partition import spectral_partition
from polytask.papers.paretognn.parts import Induced, Neighbourhood
from polytask.training import fit

FILES = {
    "cora": "planetoid/cora.npz",
    "citeseer": "planetoid/citeseer.npz",
    "actor": "actor_geomgcn/actor.npz",
}
BALANCED = {"equal": "equal", "random": "rlw", "pcgrad": "pcgrad", "pareto": "pareto"}
"""What balances all five tasks, by the arm's name."""
ARMS = (*PRETEXTS, *BALANCED)
WORDS, WIDTHS, HIDDEN, LR, WEIGHT_DECAY = 256, (64, 32), 64, 1e-2, 1e-5
"""The most frequent words, which are the features; the widths of encoder and heads; AdamW's rate and decay. The rate is
the same for all: of 1e-3, 3e-3 and 1e-2 the best for each of four arms tried on Cora, by a seed that no claim has."""
STEPS, BATCH, EDGES, PART = 40, 128, 128, 512
"""Steps; nodes that a step contrasts; edges that it tells from as many pairs; nodes of the parts that tasks look at."""
FANOUTS, PENALTIES, PROBE = (10, 5), (2.0, 32.0), 100
"""Neighbours drawn around those edges; values of ``C`` to choose from; steps of the probe of links."""


def measure(seed: int, data: Path, steps: int = STEPS) -> Measurements:
    """In percent, for each graph, arm and task of `TASKS`, ``"GRAPH ARM TASK"``; over all graphs and tasks the mean, ``"ARM
    score"``, and the mean rank among arms, ``"ARM rank"``, 1 for the best; and ``"best single score"``, that of the pretext
    task that turned out best for this seed.

    The seed draws the held-out links, the weights, the batches and views, and the splits of nodes. Every arm begins with
    the same encoder, and has the same steps, rate and batches. One pre-training serves all four tasks: it sees the training
    links alone, and what is reported is of its last step.
    """
    found: dict[str, float] = {}
    for name, file in FILES.items():
        graph = load_graph(data / file)
        split, features = split_links(graph, validation=0.1, test=0.2, seed=seed), frequent(graph.features)
        parts = spectral_partition(graph.adjacency())
        for arm in ARMS:
            model = trained(split, features, arm, seed, steps)
            for task, value in judged(model, graph, split, parts, seed).items():
                found[f"{name} {arm} {task}"] = 100 * value
    columns = [[found[f"{name} {arm} {task}"] for arm in ARMS] for name in FILES for task in TASKS]
    table = np.array(columns)
    above = (table[:, :, None] < table[:, None, :]).sum(2) + ((table[:, :, None] == table[:, None, :]).sum(2) - 1) / 2
    for k, arm in enumerate(ARMS):
        found[f"{arm} score"], found[f"{arm} rank"] = float(table[:, k].mean()), float(1 + above[:, k].mean())
    found["best single score"] = max(found[f"{arm} score"] for arm in PRETEXTS)
    return found


def trained(split: LinkSplit, features: Tensor, arm: str, seed: int, steps: int = STEPS) -> ParetoGNN:
    """One arm, pre-trained on the training links."""
    torch.manual_seed(seed)
    near = Neighbourhood(hops=3, limit=PART // 4)
    model = pareto_gnn(
        split.graph,
        features,
        pretexts=PRETEXTS if arm in BALANCED else (arm,),
        widths=WIDTHS,
        hidden=HIDDEN,
        fanouts=FANOUTS,
        decor=PART,
        part=Induced(PART),
        contrasted=near,
    )
    batches = PretextBatches(split.graph, min(BATCH, split.graph.height), EDGES, seed=seed)
    balance = balancer(BALANCED.get(arm, "equal"))
    fit(model, batches, steps=steps, balance=balance, lr=LR, weight_decay=WEIGHT_DECAY, schedule="constant", seed=seed)
    return model


def balancer(name: str) -> Balancer:
    """The paper's, as ``"pareto"``, or one of `polytask.balance.balancers`."""
    return LossMGDA(normalise="l2") if name == "pareto" else balancers[name]()


def judged(model: ParetoGNN, graph: GraphData, split: LinkSplit, parts: Tensor, seed: int) -> dict[str, float]:
    """The four tasks: those of nodes with the whole graph, that of links with its training links."""
    whole = model.embed(graph.adjacency())
    found = evaluate_nodes(whole, graph.labels["class"], parts, seed, repeats=1, penalties=PENALTIES)
    return {**found, "link": evaluate_links(model.embed(), split, seed, steps=PROBE)["auc"]}


def frequent(features: Tensor | CSR | None, words: int = WORDS) -> Tensor:
    """``(N, words)`` dense: the columns that most nodes have, which needs no label."""
    assert isinstance(features, CSR)
    counts = torch.bincount(features.columns, minlength=features.width)
    kept = counts.argsort(descending=True, stable=True)[:words].sort().values
    return features @ torch.eye(features.width)[:, kept].contiguous()
