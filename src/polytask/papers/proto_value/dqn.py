"""Learning to act: double DQN, on frozen features or from the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.control import Environment, Interaction, Transition, epsilon_greedy
from polytask.errors import InputError
from polytask.nn.target import TargetNetwork, Updates
from polytask.training import fit


class DoubleDQN(nn.Module):
    """Values of actions, ``(N, ...)`` to ``(N, A)``: an encoder, or none for features, and one linear layer.

    ``y = clip(r) + gamma^steps (1 - done) target(x', argmax_a q(x', a))``, the loss is Huber's of ``y - q(x, a)`` (van
    Hasselt et al., AAAI 2016). A batch is a `polytask.data.control.Transition`; rewards are clipped after their sum over
    steps.

    Args:
        actions: ``A``.
        width: of the features.
        encoder: observations to features; none where observations are features already.
        gamma: the discount.
        period: updates from one copy into the target network to the next.
        clip: the largest reward, and minus the smallest; ``None`` does not clip.
    """

    tasks = ("reward",)

    def __init__(
        self,
        actions: int,
        width: int,
        encoder: nn.Module | None = None,
        *,
        gamma: float = 0.99,
        period: int = 2000,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.gamma, self.clip = gamma, clip
        self.network = nn.Sequential(encoder or nn.Identity(), nn.Linear(width, actions))
        nn.init.xavier_uniform_(self.network[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.network[-1].bias)  # type: ignore[arg-type]
        self.target = TargetNetwork(self.network, rate=1.0, period=period)
        self.updates = Updates(len(list(self.network.parameters())))

    def forward(self, observations: Tensor) -> Tensor:
        """``(N, A)``."""
        values: Tensor = self.network(observations)
        return values

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.network.parameters()

    def label_counts(self, batch: Transition) -> dict[str, Tensor]:
        """How many transitions the loss is the mean of."""
        return {"reward": torch.tensor(float(len(batch.action)), device=batch.action.device)}

    def losses(self, batch: Transition) -> dict[str, Tensor]:
        """``{"reward": ...}``."""
        if self.training:
            self.target.keep_up(self.network, self.updates, self.network.parameters())
        with torch.no_grad():
            best = self.network(batch.next).argmax(1, keepdim=True)
            ahead = self.target(self.network, batch.next).gather(1, best)[:, 0]
            reward = batch.reward if self.clip is None else batch.reward.clamp(-self.clip, self.clip)
            wanted = reward + batch.discount(self.gamma) * ahead.float()
        found = self.network(batch.observation).gather(1, batch.action[:, None])[:, 0]
        return {"reward": F.huber_loss(found.float(), wanted)}


def act_on_features(
    environment: Environment,
    features: nn.Module,
    width: int,
    interactions: int = 1_000_000,
    *,
    epsilon: float = 0.01,
    lr: float = 6.25e-5,
    period: int = 2000,
    seed: int = 0,
    **settings: Any,
) -> tuple[DoubleDQN, list[float]]:
    """The paper's online phase: a linear layer on frozen features learns to act, by `polytask.fit` on an `Interaction`.

    The replay holds features: an observation is encoded once. Updates every 4 steps on 32 transitions of up to 5 steps, a
    gradient norm of at most 10.

    Args:
        environment: where to act and to learn.
        features: observations to features ``(N, width)``, such as ``model.values.encoder``, frozen.
        width: of the features.
        interactions: steps in the environment.
        epsilon: the chance of a random action.
        lr: Adam's, constant.
        period: of the target network.
        seed: of the layer, the environment and the replay.
        settings: of `polytask.data.control.Interaction`.

    Returns:
        The values on features, and the returns of the episodes in order.
    """
    if any(parameter.requires_grad for parameter in features.parameters()):
        raise InputError("the features are trainable, expected frozen ones: call requires_grad_(False) on the encoder")
    device = next((parameter.device for parameter in features.parameters()), torch.device("cpu"))
    torch.manual_seed(seed)
    values = DoubleDQN(environment.actions, width, period=period)
    features.eval()
    stream = Interaction(
        environment,
        epsilon_greedy(lambda seen: values(seen.to(next(values.parameters()).device)), epsilon, seed),
        interactions,
        encode=lambda observations: features(observations.to(device)).cpu(),
        seed=seed,
        **settings,
    )
    fit(
        values,
        stream,
        steps=len(stream),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=lr, eps=1.5e-4),
        schedule="constant",
        clip=10.0,
        seed=seed,
    )
    return values, stream.returns
