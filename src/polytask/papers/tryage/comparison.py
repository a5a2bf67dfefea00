"""The claims: choosing one of nine language models for each of 700 passages by what a router predicts of them.

What has settings takes those whose choices have the lowest mean loss on validation passages, of ten: two encoders (the
frozen MiniLM, character n-grams) times five heads for the router, four penalties and a hidden layer, or five penalties for
a classifier. The controls are classifiers of the best expert and of the domain, which is told what the router is not; the
nearest model card; the best single model; chance; the true domain; the best expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytask.claim import Measurements
from polytask.measure import hypervolume
from polytask.papers.tryage.domains import FILES, Library, Part, library
from polytask.papers.tryage.joint import train_jointly
from polytask.route import (
    LAMBDAS,
    Bandit,
    NGramFeatures,
    Router,
    choose,
    incurred,
    normalised_costs,
    regret,
    selection_accuracy,
    sweep,
)

__all__ = ["ENCODERS", "FILES", "HEADS", "measure"]

ENCODERS = ("sentences", "n-grams")
HEADS: tuple[dict[str, float], ...] = ({"l2": 0.03}, {"l2": 0.1}, {"l2": 0.3}, {"l2": 1.0}, {"l2": 0.03, "hidden": 128})
INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)

FEW = 105
"""Prompts of which a bandit's router knows every expert's loss; of the other 945 it learns what it executes."""


class Features:
    """An encoder of the texts of a library, each encoded once: see `polytask.route.TextEncoder`."""

    def __init__(self, library: Library, encoder: str) -> None:
        parts = library.parts.values()
        texts = [*library.texts, *(text for part in parts for text in part.texts)]
        if encoder == "sentences":
            vectors = torch.from_numpy(np.concatenate([library.features, *(part.features for part in parts)]))
        else:
            vectors = NGramFeatures(width=2048).fit(library.parts["router"].texts)(texts)
        self._rows = dict(zip(texts, vectors, strict=True))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._rows[text] for text in texts])


def measure(seed: int, data: Path) -> Measurements:
    """For each way its ``accuracy``, ``accuracy within .01`` (percent), ``regret`` and ``loss`` in bits per character and
    ``cost`` (in [0, 1]), on test passages.

    ``hypervolume`` of the router, of the single experts and of the best choices, in loss and cost, from 8 bits and a cost of
    1.1; the fronts as ``router loss at I`` and ``router cost at I`` for the weights `polytask.route.LAMBDAS`; ``few regret``
    and ``bandit regret``; ``apart loss`` and ``joint loss``; ``expert NAME loss`` and ``cost``.
    """
    made = library(data, seed)
    test, costs = made.parts["test"], normalised_costs(made.experts, ["size"])[:, 0]
    encoders = {name: Features(made, name) for name in ENCODERS}
    routers = {name: fitted(made, encoder) for name, encoder in encoders.items()}
    best = min(routers, key=lambda name: _validation_loss(made, routers[name]))
    predicted = {name: router.predict(test.texts) for name, router in routers.items()}
    choices = {"router": choose(predicted[best])} | {name: choose(predicted[name]) for name in ENCODERS}
    choices |= controls(made, encoders)
    measured = {
        f"{name} {what}": value for name, some in choices.items() for what, value in judged(test, some, costs).items()
    }
    measured |= chance(test, costs)
    measured |= fronts(predicted[best], test, costs)
    for k, expert in enumerate(made.experts):
        measured |= {f"expert {expert.name} loss": float(test.losses[:, k].mean()), f"expert {expert.name} cost": costs[k]}
    measured |= learning_on(made, encoders["sentences"], seed)
    measured |= jointly(made, encoders[best])
    return {name: float(value) for name, value in measured.items()}


def fitted(made: Library, encoder: Features) -> Router:
    """The router whose head validates best."""
    train = made.parts["router"]
    routers = [Router.fit(encoder, made.experts, train.texts, train.losses, **head) for head in HEADS]  # type: ignore[arg-type]
    return min(routers, key=lambda router: _validation_loss(made, router))


def _validation_loss(made: Library, router: Router) -> float:
    held = made.parts["validation"]
    return float(incurred(held.losses, choose(router.predict(held.texts))).mean())


def controls(made: Library, encoders: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """What else chooses an expert for each test passage."""
    train, test = made.parts["router"], made.parts["test"]
    single = int(train.losses.mean(0).argmin())
    return {
        "best classifier": classified(made, encoders, train.losses.argmin(1)),
        "domain classifier": classified(made, encoders, train.domains),
        "card": (test.features @ made.cards.T).argmax(1),
        "single": np.full(len(test.texts), single),
        "true domain": test.domains,
        "oracle": choose(test.losses),
    }


def classified(made: Library, encoders: Mapping[str, Features], labels: np.ndarray) -> np.ndarray:
    """Logistic regression on labels of the router's prompts; encoder and penalty by the validation loss of its choices."""
    from sklearn.linear_model import LogisticRegression

    train, held, test = (made.parts[part] for part in ("router", "validation", "test"))
    best, chosen = np.inf, np.empty(0)
    for encoder in encoders.values():
        features = [encoder(part.texts).numpy() for part in (train, held, test)]
        for inverse in INVERSE_PENALTIES:
            model = LogisticRegression(C=inverse, max_iter=200, tol=1e-3).fit(features[0], labels)
            loss = float(incurred(held.losses, model.predict(features[1])).mean())
            if loss < best:
                best, chosen = loss, model.predict(features[2])
    return chosen


def judged(test: Part, chosen: np.ndarray, costs: np.ndarray) -> dict[str, float]:
    """How good choices were."""
    return {
        "accuracy": 100 * selection_accuracy(test.losses, chosen),
        "accuracy within .01": 100 * selection_accuracy(test.losses, chosen, 0.01),
        "regret": regret(test.losses, chosen),
        "loss": float(incurred(test.losses, chosen).mean()),
        "cost": float(costs[chosen].mean()),
    }


def chance(test: Part, costs: np.ndarray) -> dict[str, float]:
    """The expectation of choosing any expert evenly."""
    each = [judged(test, np.full(len(test.texts), k), costs) for k in range(len(costs))]
    return {f"random {what}": float(np.mean([one[what] for one in each])) for what in each[0]}


def fronts(predicted: np.ndarray, test: Part, costs: np.ndarray) -> dict[str, float]:
    """Loss against cost as the weight of the cost rises, and what the fronts cover."""
    single = np.stack([test.losses.mean(0), costs], 1)
    swept = {"router": sweep(predicted, test.losses, costs), "oracle": sweep(test.losses, test.losses, costs)}
    covered = {"singles": single} | {name: front.points for name, front in swept.items()}
    worst = (-8.0, -1.1)  # what a byte needs without any model; a little more than the dearest expert
    found = {f"{name} hypervolume": hypervolume(-points, worst) for name, points in covered.items()}
    for name, front in swept.items():
        for i in range(len(LAMBDAS)):
            found |= {f"{name} loss at {i}": float(front.loss[i]), f"{name} cost at {i}": float(front.cost[i])}
    return found


def learning_on(made: Library, encoder: Features, seed: int) -> dict[str, float]:
    """A router of few labelled prompts, and what it is after each other prompt has taught it one expert's loss."""
    train, test = made.parts["router"], made.parts["test"]
    order = np.random.default_rng(seed).permutation(len(train.texts))
    few = order[:FEW]
    start = Router.fit(encoder, made.experts, [train.texts[i] for i in few], train.losses[few], l2=0.3)
    bandit = Bandit(start, epsilon=0.1, seed=seed)
    names = [expert.name for expert in made.experts]
    for i in order[FEW:]:
        chosen = bandit.choose(train.texts[i])
        bandit.learn(train.texts[i], chosen, train.losses[i, names.index(chosen)])
    made_of = {"few": start, "bandit": bandit.router}
    return {f"{name} regret": regret(test.losses, choose(router.predict(test.texts))) for name, router in made_of.items()}


def jointly(made: Library, encoder: Features) -> dict[str, float]:
    """The loss of the routed test passages once the experts were trained on what the router would send them.

    ``apart loss`` is the same router's with the experts as they were.
    """
    train, test = made.parts["router"], made.parts["test"]
    models = [copy(model) for model in made.models]

    def fit_router(losses: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
        return Router.fit(encoder, made.experts, train.texts, losses, l2=0.3).predict

    apart = float(incurred(test.losses, choose(fit_router(train.losses)(test.texts))).mean())
    predict = train_jointly(models, made.texts, train.texts, fit_router)
    losses = np.stack([model.bits(test.texts) for model in models], 1)
    return {"apart loss": apart, "joint loss": float(incurred(losses, choose(predict(test.texts))).mean())}
