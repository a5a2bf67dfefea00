"""Experts and router trained in turn: each expert on what the router would send it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from polytask.route import Example, soft_choice

Predict: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Texts to predicted losses, ``(N, K)``."""


class Trainable(Protocol):
    """An expert that can be trained on weighed texts, anew or from where it is."""

    def fit(self, texts: Sequence[str], weights: np.ndarray) -> Any: ...

    def losses(self, examples: Sequence[Example]) -> Sequence[float]: ...


def train_jointly(
    experts: Sequence[Trainable],
    texts: Sequence[str],
    held: Sequence[str],
    fit_router: Callable[[np.ndarray], Predict],
    *,
    rounds: int = 2,
    temperature: float = 0.1,
    least: float = 0.01,
) -> Predict:
    """Lower the expected loss of the chosen expert, ``sum_i softmax(-l / temperature)_i L_i``, by turns.

    In each round the router is fitted to the experts' losses, and each expert to ``texts`` with the weights with which the
    router would choose it. The paper trains both at once, end to end; its temperature and schedule are not known to us.

    Args:
        experts: trained in place.
        texts: what they are trained on.
        held: what their losses are measured on, for the router: no expert is trained on these.
        fit_router: losses on ``held``, ``(N, K)``, to a router's predictions.
        rounds: 2 by default.
        temperature: in units of the loss.
        least: lower weights count as 0.

    Returns:
        The predictions of the router that was fitted last.
    """
    for _ in range(rounds):
        weights = soft_choice(fit_router(_losses(experts, held))(texts), temperature)
        for k, expert in enumerate(experts):
            expert.fit(texts, np.where(weights[:, k] >= least, weights[:, k], 0.0))
    return fit_router(_losses(experts, held))


def _losses(experts: Sequence[Trainable], texts: Sequence[str]) -> np.ndarray:
    examples = [Example(text) for text in texts]
    return np.array([expert.losses(examples) for expert in experts]).T
