"""Which expert for which prompt, given what each would lose; and how good such choices were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from polytask.errors import InputError
from polytask.pareto import fronts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAMBDAS: tuple[float, ...] = (0.0, *np.logspace(-3, 2, 26).tolist())
"""Weights of a cost in [0, 1] at which a front is drawn: 0, and five for each power of ten from 0.001 to 100."""


def order(losses: ArrayLike, costs: ArrayLike | None = None, weights: ArrayLike | float = 1.0) -> np.ndarray:
    """Experts in the order of ``loss + weight * cost``, best first; equal ones by their cost, then by their place.

    Args:
        losses: ``(N, K)``, predicted or true; NaN comes last.
        costs: ``(K,)``; none by default.
        weights: one for all prompts, or ``(N,)``.

    Returns:
        ``(N, K)`` int64.

    >>> order([[1.0, 1.0, 0.5]], costs=[0.2, 0.1, 1.0])
    array([[1, 0, 2]])
    """
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2:
        raise InputError(f"losses of shape {losses.shape}, expected (prompts, experts)")
    costs = np.zeros(losses.shape[1]) if costs is None else np.asarray(costs, dtype=float)
    weights = np.broadcast_to(np.asarray(weights, dtype=float), losses.shape[:1])
    if costs.shape != losses.shape[1:]:
        raise InputError(f"costs of shape {costs.shape} for losses of shape {losses.shape}, expected one for each expert")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError("a weight of the costs is negative or not finite, expected a number from 0")
    objective = losses + weights[:, None] * costs
    return np.lexsort((np.broadcast_to(costs, losses.shape), objective), axis=1)  # stable, so the last key is the place


def choose(losses: ArrayLike, costs: ArrayLike | None = None, weights: ArrayLike | float = 1.0) -> np.ndarray:
    """The first expert of `order` for each prompt, ``(N,)``: the decision rule of Tryage."""
    chosen: np.ndarray = order(losses, costs, weights)[:, 0]
    return chosen


def soft_choice(losses: ArrayLike, temperature: float) -> np.ndarray:
    """``softmax(-loss / temperature)`` over experts, ``(N, K)``: how a choice is made smooth, to train experts along."""
    scores = -np.asarray(losses, dtype=float) / temperature
    exps = np.exp(scores - scores.max(1, keepdims=True))
    chances: np.ndarray = exps / exps.sum(1, keepdims=True)
    return chances


def incurred(losses: ArrayLike, chosen: ArrayLike) -> np.ndarray:
    """The true loss of what was chosen, ``(N,)``."""
    taken: np.ndarray = np.take_along_axis(np.asarray(losses, dtype=float), np.asarray(chosen)[:, None], 1)[:, 0]
    return taken


def regret(losses: ArrayLike, chosen: ArrayLike) -> float:
    """The mean of what the choice loses more than the best expert of each prompt; failed experts (NaN) are never best.

    >>> regret([[1.0, 2.0], [3.0, 1.0]], [0, 0])
    1.0
    """
    return float((incurred(losses, chosen) - np.nanmin(np.asarray(losses, dtype=float), axis=1)).mean())


def selection_accuracy(losses: ArrayLike, chosen: ArrayLike, within: float = 0.0) -> float:
    """How often the choice is a best expert, or loses at most ``within`` more, from 0 to 1.

    Where experts are nearly equal, the accuracy alone says little: look at the one within a small loss, and at `regret`.
    """
    return float((incurred(losses, chosen) <= np.nanmin(np.asarray(losses, dtype=float), axis=1) + within).mean())


@dataclass(frozen=True)
class Front:
    """What a router comes to as the weight of a cost rises.

    Attributes:
        weights: the weights, ``(W,)``.
        loss: the mean true loss of the chosen experts at each, ``(W,)``.
        cost: their mean cost, ``(W,)``; it never rises with the weight.
    """

    weights: np.ndarray
    loss: np.ndarray
    cost: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """``(W, 2)``: loss and cost, both better when lower, as `polytask.measure.hypervolume` takes them negated."""
        return np.stack([self.loss, self.cost], 1)

    @property
    def efficient(self) -> np.ndarray:
        """Which points no other point beats, ``(W,)`` bool."""
        found = np.zeros(len(self.points), dtype=bool)
        found[fronts(self.points, 1)[0]] = True
        return found


def sweep(predicted: ArrayLike, losses: ArrayLike, costs: ArrayLike, weights: Sequence[float] = LAMBDAS) -> Front:
    """Choose by ``predicted`` at each weight, and judge by the true ``losses``, both ``(N, K)``; the oracle's front has both
    alike.
    """
    costs = np.asarray(costs, dtype=float)
    choices = [choose(predicted, costs, weight) for weight in weights]
    loss = np.array([incurred(losses, chosen).mean() for chosen in choices])
    return Front(np.asarray(weights, dtype=float), loss, np.array([costs[chosen].mean() for chosen in choices]))


def plot_fronts(drawn: Mapping[str, Front], points: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Loss against cost: a line for each of ``drawn``, a dot for each of ``points``, ``{name: (loss, cost)}``, as of single
    experts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, front in drawn.items():
        kept = front.points[front.efficient]
        loss, cost = kept[np.argsort(kept[:, 1])].T
        axes.step(cost, loss, where="post", label=name)
        axes.plot(cost, loss, ".", color=axes.lines[-1].get_color())
    for name, (loss, cost) in (points or {}).items():
        axes.plot(cost, loss, "s", color="0.5", markersize=4)
        axes.annotate(name, (cost, loss), xytext=(4, 3), textcoords="offset points", fontsize=8, color="0.3")
    axes.set_xlabel("mean cost of the chosen experts")
    axes.set_ylabel("mean loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
