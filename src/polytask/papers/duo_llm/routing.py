"""Routers that are trained behind the model, with a budget for how many layers of a token are big."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.data.examples import Examples
from polytask.papers.duo_llm.model import DuoLM, add_routers
from polytask.route import alternatives_of, budget_loss, watched_choices
from polytask.training import fit


class Routed(nn.Module):
    """A duo model with routers and its loss: cross-entropy and ``alpha`` times `polytask.route.budget_loss`.

    Args:
        model: with routers.
        budget: the part of a token's layers that use a choice, by its place: ``{0: 0.5}`` for half of them big.
        alpha: 3 by default; the paper's is not known to us.
    """

    def __init__(self, model: DuoLM, budget: Mapping[int, float], alpha: float = 3.0) -> None:
        super().__init__()
        self.model, self.budget, self.alpha = model, dict(budget), alpha

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The loss of a batch, one number: the budget is no task of its own."""
        tokens, targets = batch
        with watched_choices() as chances:
            logits = self.model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), targets["next"].flatten())
        return {"next": loss + self.alpha * budget_loss(chances, self.budget)}

    def shared_parameters(self) -> Any:
        """The routers."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


class _Sharpening:
    """Raises every layer's sharpness in even steps."""

    def __init__(self, model: DuoLM, steps: int, first: float, last: float) -> None:
        self.model, self.steps, self.first, self.last = model, steps, first, last

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        for layer in alternatives_of(self.model):
            layer.sharpness = self.first + (self.last - self.first) * min(1.0, step / self.steps)

    def record(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def with_routers(
    model: DuoLM,
    data: Examples,
    budget: Mapping[int, float],
    *,
    steps: int,
    alpha: float = 3.0,
    sharpness: tuple[float, float] = (1.0, 10.0),
    lr: float = 1e-2,
    batch_size: int = 32,
    seed: int = 0,
) -> DuoLM:
    """A copy of a trained model with routers that keep to ``budget``; all but the routers stays as it is.

    Training mixes the parts, ``softmax(tau * logits)``, with ``tau`` rising evenly over ``sharpness``, so that the hard
    choice of evaluation mode is near in the end. The paper raises it too; its schedule is not known to us.
    """
    torch.manual_seed(seed)
    routed = copy.deepcopy(model).requires_grad_(False)
    for parameter in add_routers(routed):
        parameter.requires_grad_(True)
    listener = _Sharpening(routed, steps, *sharpness)
    fit(Routed(routed, budget, alpha), data, steps=steps, batch_size=batch_size, lr=lr, seed=seed, listeners=[listener])
    return routed.eval()
