"""The protocol: a panel, one model for all domains, and one model for each, on the same pairs and in as many steps.

All are two layers over frozen sentence features. A step has a batch of one domain, each domain as often: the panel and the
model for all see the same batches, the models of each domain share the steps between them. Weights have the lowest loss on
validation pairs, which are of the training domains, as machines label them: no rated response is used for training or for
choosing. The settings below are fixed for all and were not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.data.mixture import Mixture
from polytask.model import Model
from polytask.papers.poe.agreement import by_system, ceiling, interval, turn_level
from polytask.papers.poe.dialogues import DOMAINS, RATED, Dialogues, Rated, load
from polytask.papers.poe.panel import LABELS, NearestDomain, Panel
from polytask.share import Adapter
from polytask.task import Task
from polytask.training import fit

WIDTH, BOTTLENECK = 256, 16
STEPS, BATCH, RATE = 600, 64, 1e-3
EVALUATIONS = 10
FEW, FEW_STEPS = 32, 60
"""Exchanges of a new domain, and the steps that are taken on their pairs."""

Rows = Sequence[Rated]
Data = Mapping[str, Examples]


def measure(seed: int, data: Path) -> Measurements:
    """Spearman's correlations with the mean rating: ``METHOD on SET``, and the mean over sets, ``METHOD``.

    Methods that know the domain: ``expert`` of the panel, and the domain's own model, ``separate``; where no domain is
    known, in FED, all of them, as for ``panel`` and ``separate mean``. The others are ``pooled``, ``logits``, ``max`` and
    ``gate`` for other ways to ask the panel, and ``cosine`` and ``length`` without training. ``METHOD by system`` is the
    mean over each set's systems. ``METHOD unseen`` is the mean over sets whose domain was left out of training, and ``METHOD
    few`` that after training on a few exchanges of it. ``human`` is the agreement of one rater with the others.
    """
    dialogues = load(data, seed)
    panel, pooled, separate = _trained(dialogues, DOMAINS)
    gate = NearestDomain({domain: rows.inputs for domain, rows in _examples(dialogues, DOMAINS)[0].items()}, _context)
    scores: dict[str, dict[str, Tensor]] = {}
    for name, rows in dialogues.rated.items():
        inputs, domain = dialogues.features(rows), RATED[name]
        own = {model: _score(separate[model], inputs, model) for model in DOMAINS}
        mean = torch.stack(list(own.values())).mean(0)
        scores[name] = {
            "panel": panel.score(inputs),
            "expert": panel.score(inputs, domain),
            "pooled": _score(pooled, inputs, DOMAINS[0]),
            "separate": own[domain] if domain else mean,
            "separate mean": mean,
            "logits": panel.score(inputs, combine="logits"),
            "max": panel.score(inputs, combine="max"),
            "gate": panel.score(inputs, combine=gate),
            "cosine": _cosine(inputs),
            "length": torch.tensor([float(len(row.response.split())) for row in rows]),
        }
    measured: dict[str, float] = {}
    for name, rows in dialogues.rated.items():
        ratings, systems = [row.ratings for row in rows], [row.system for row in rows]
        measured[f"human on {name}"] = ceiling(ratings)
        for method, found in scores[name].items():
            measured[f"{method} on {name}"] = turn_level(found, ratings)
            measured[f"{method} by system on {name}"] = by_system(found, ratings, systems)
    measured = _means(measured | _left_out(dialogues))
    for name, rows in dialogues.rated.items():
        shown = interval(scores[name]["panel"], [row.ratings for row in rows])
        measured |= {f"panel on {name}, low": shown.low, f"panel on {name}, high": shown.high}
    return measured


def _left_out(dialogues: Dialogues) -> dict[str, float]:
    """Every domain that has rated responses is left out once."""
    measured: dict[str, float] = {}
    for domain in dict.fromkeys(domain for domain in RATED.values() if domain):
        others = [other for other in DOMAINS if other != domain]
        panel, pooled, separate = _trained(dialogues, others)
        few = dialogues.examples({domain: dialogues.train[domain][:FEW]}, [domain], among=others)
        added = panel.add(domain)
        _fit(added.model, few, None, FEW_STEPS, dialogues.seed)
        tuned = _shared(pooled.encoder, [domain], pooled.heads[others[0]])
        sets = {name: rows for name, rows in dialogues.rated.items() if RATED[name] == domain}
        before = {name: _score(pooled, dialogues.features(rows), others[0]) for name, rows in sets.items()}
        _fit(tuned, few, None, FEW_STEPS, dialogues.seed)
        alone = _shared(_encoder(), [domain])
        _fit(alone, few, None, FEW_STEPS, dialogues.seed)
        for name, rows in sets.items():
            inputs, ratings = dialogues.features(rows), [row.ratings for row in rows]
            every = [_score(separate[other], inputs, other) for other in others]
            found = {
                "panel unseen": panel.score(inputs),
                "pooled unseen": before[name],
                "separate unseen": torch.stack(every).mean(0),
                "panel few": added.score(inputs, domain),
                "pooled few": _score(tuned, inputs, domain),
                "separate few": _score(alone, inputs, domain),
            }
            measured |= {f"{method} on {name}": turn_level(score, ratings) for method, score in found.items()}
    return measured


def _trained(dialogues: Dialogues, domains: Sequence[str]) -> tuple[Panel, Model, dict[str, Model]]:
    """A panel, a model for all of ``domains``, and a model for each."""
    train, held = _examples(dialogues, domains)
    seed = dialogues.seed
    torch.manual_seed(seed)
    panel = Panel.build(_encoder(), domains, Adapter(BOTTLENECK), width=WIDTH)
    _fit(panel.model, train, held, STEPS, seed)
    torch.manual_seed(seed)
    pooled = _shared(_encoder(), domains)
    _fit(pooled, train, held, STEPS, seed)
    separate = {}
    for domain in domains:
        torch.manual_seed(seed)
        separate[domain] = _shared(_encoder(), [domain])
        _fit(separate[domain], {domain: train[domain]}, {domain: held[domain]}, STEPS // len(domains), seed)
    return panel, pooled, separate


def _examples(dialogues: Dialogues, domains: Sequence[str]) -> tuple[Data, Data]:
    return dialogues.examples(dialogues.train, domains), dialogues.examples(dialogues.validation, domains)


def _encoder() -> nn.Sequential:
    layers = [nn.Linear(4 * 384, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers)


def _shared(encoder: nn.Module, domains: Sequence[str], head: nn.Module | None = None) -> Model:
    """A model whose domains have one head."""
    model = Model(encoder, [Task.classification(domain, classes=LABELS) for domain in domains], width=WIDTH)
    for domain in domains:
        model.heads[domain] = head or model.heads[domains[0]]
    return model


def _fit(model: Model, train: Data, held: Data | None, steps: int, seed: int) -> None:
    mixture = Mixture(train, sampling="uniform", batch_size=min(BATCH, *map(len, train.values())))
    often = max(1, steps // EVALUATIONS)
    fit(model, mixture, held, steps=steps, lr=RATE, evaluate_every=often, monitor="loss" if held else None, seed=seed)
    model.eval()


@torch.no_grad()
def _score(model: Model, inputs: Tensor, domain: str) -> Tensor:
    good: Tensor = model(inputs, [domain])[domain].softmax(-1)[:, -1]
    return good


def _context(inputs: Tensor) -> Tensor:
    return inputs[:, :384]


def _cosine(inputs: Tensor) -> Tensor:
    return torch.cosine_similarity(inputs[:, :384], inputs[:, 384:768])


def _means(measured: Mapping[str, float]) -> dict[str, float]:
    """With the mean over sets of each method."""
    methods = dict.fromkeys(name.rsplit(" on ", 1)[0] for name in measured)
    found = dict(measured)
    for method in methods:
        values = [value for name, value in measured.items() if name.rsplit(" on ", 1)[0] == method]
        found[method] = sum(values) / len(values)
    return found
