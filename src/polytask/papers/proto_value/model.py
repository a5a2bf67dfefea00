"""The model: one encoder, and for each of many sets of observations the values of ending up in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.control import Transition, TransitionBatches
from polytask.errors import InputError
from polytask.nn.heads import HeadBank
from polytask.nn.target import TargetNetwork, Updates
from polytask.papers.proto_value.cumulants import Cumulants


class Values(nn.Module):
    """An encoder and a bank of heads."""

    def __init__(self, encoder: nn.Module, heads: HeadBank) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, observations: Tensor, action: Tensor | None = None) -> Tensor:
        """``(N, m)``: the values of the actions ``(N,)``, or the means over all actions, those of the uniform policy."""
        features = self.encoder(observations)
        return self.heads.mean(features) if action is None else self.heads.taken(features, action)


class ProtoValues(nn.Module):
    """Learns features, without reward, from the values of many sets of observations under the uniform random policy.

    The cumulant ``r_i(x)`` of task ``i`` is 1 in a random set ``S_i``, so that its value is the successor measure
    ``E[sum_t gamma^t 1{X_t in S_i}]``. On transitions of any policy,

    ``y_i = r_i(x) + gamma (1 - done) mean_b target_i(x', b)``, ``loss = mean (y_i - q_i(x, a))^2 / 2``

    over examples and tasks. Thresholds of the sets have a loss of their own, which alone trains during the first ``warm_up``
    updates. Farebrother et al., ICLR 2023.

    `polytask.fit` trains it: a batch is a `polytask.data.control.Transition` of one step, whose rewards are not looked at.

    Args:
        encoder: observations to ``(N, width)``.
        cumulants: what the ``m`` tasks are paid for.
        actions: how many there are.
        width: the encoder's, when it has no attribute ``width``.
        gamma: the discount.
        rate: of the target network, which follows at each update.
        warm_up: updates before values are trained; none where there are no thresholds.
        lag: the target follows the parameters as they were before the last update, as in the authors' code.
    """

    def __init__(
        self,
        encoder: nn.Module,
        cumulants: Cumulants,
        actions: int,
        *,
        width: int | None = None,
        gamma: float = 0.99,
        rate: float = 0.01,
        warm_up: int = 62_500,
        lag: bool = True,
    ) -> None:
        super().__init__()
        width = width or getattr(encoder, "width", None)
        if width is None or not 0 <= gamma < 1 or warm_up < 0:
            raise InputError(
                f"width {width}, gamma {gamma}, warm_up {warm_up}: expected the encoder's width, 0 <= gamma < 1, at least 0"
            )
        self.gamma, self.warm_up, self.cumulants = gamma, warm_up, cumulants
        self.values = Values(encoder, HeadBank(width, cumulants.tasks, actions))
        self.target = TargetNetwork(self.values, rate, lag=lag)
        self.updates = Updates(len(list(self._trained())))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the losses: ``"values"``, the mean over all ``m``, and ``"thresholds"`` where there are some."""
        learned = any(parameter.requires_grad for parameter in self.cumulants.parameters())
        return ("values", "thresholds") if learned else ("values",)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the encoder."""
        return self.values.encoder.parameters()

    def label_counts(self, batch: Transition) -> dict[str, Tensor]:
        """How many transitions each loss is the mean of."""
        return {name: torch.tensor(float(len(batch.action)), device=batch.action.device) for name in self.tasks}

    def losses(self, batch: Transition) -> dict[str, Tensor]:
        """``{"values": ..., "thresholds": ...}``; without ``"values"`` while training waits for the thresholds.

        Raises:
            InputError: transitions of several steps, whose cumulants in between are not known.
        """
        if int(batch.steps.max()) > 1:
            raise InputError(f"transitions of {int(batch.steps.max())} steps, expected 1")
        if self.training:
            self.target.keep_up(self.values, self.updates, self._trained())
        cumulants, quantile = self.cumulants(batch.observation)
        losses: dict[str, Tensor] = {}
        if not self._waits():
            ahead = self.target(self.values, batch.next)
            wanted = cumulants + batch.discount(self.gamma)[:, None] * ahead.float()
            found = self.values(batch.observation, batch.action)
            losses["values"] = 0.5 * (wanted - found.float()).square().mean()
        return losses if quantile is None else {**losses, "thresholds": quantile}

    @torch.no_grad()
    def features(self, observations: Tensor) -> Tensor:
        """``(N, width)``: what the encoder makes of observations, without gradient."""
        features: Tensor = self.values.encoder(observations)
        return features

    @torch.no_grad()
    def evaluate(self, data: TransitionBatches) -> dict[str, dict[str, float]]:
        """Of one pass over ``data``: ``-loss`` of the values, and the mean share of observations in a set."""
        losses, shares = [], []
        for batch in data.epoch(0):
            device = next(self.values.parameters()).device
            moved = Transition(*(tensor.to(device) for tensor in batch))
            losses.append(self.losses(moved)["values"])
            shares.append(self.cumulants(moved.observation)[0].mean())
        return {
            "values": {"fit": -float(torch.stack(losses).mean())},
            "thresholds": {"share": float(torch.stack(shares).mean())},
        }

    def _waits(self) -> bool:
        early = int(self.updates.get_buffer("count")) <= self.warm_up
        return self.training and "thresholds" in self.tasks and early

    def _trained(self) -> Iterator[nn.Parameter]:
        for module in (self.values, self.cumulants):
            yield from (parameter for parameter in module.parameters() if parameter.requires_grad)


def adam(
    batch_size: int = 256, lr: float = 6.25e-5, eps: float = 1.5e-4
) -> Callable[[list[dict[str, Any]]], torch.optim.Adam]:
    """The paper's optimizer for `polytask.fit`: Adam, its rate given for batches of 32, growing with their fourth root."""
    rate = lr * (batch_size / 32) ** 0.25
    return lambda groups: torch.optim.Adam(groups, lr=rate, eps=eps)
