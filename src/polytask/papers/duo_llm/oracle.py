"""What choosing could come to: the best pattern of big and small layers for each token, found by trying them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.papers.duo_llm.model import DuoLM
from polytask.route import alternatives_of, choosing

Pattern = tuple[int, ...]
"""A choice for each layer: 0 big, 1 small, 2 none."""


def patterns(layers: int, big: int | None = None, choices: int = 2) -> list[Pattern]:
    """All patterns, or those with exactly ``big`` big layers.

    >>> patterns(3, 1)
    [(0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """
    every = product(range(choices), repeat=layers)
    return [pattern for pattern in every if big is None or pattern.count(0) == big]


class Tried(NamedTuple):
    """What every pattern comes to on some tokens, in nats.

    Attributes:
        patterns: which.
        losses: ``(patterns, N, T)``, the cross-entropy of the next token.
        entropies: ``(patterns, N, T)``, of what is predicted, for which no label is needed.
    """

    patterns: list[Pattern]
    losses: Tensor
    entropies: Tensor

    def having(self, big: int) -> Tried:
        """Those with exactly ``big`` big layers."""
        kept = [i for i, pattern in enumerate(self.patterns) if pattern.count(0) == big]
        return Tried([self.patterns[i] for i in kept], self.losses[kept], self.entropies[kept])

    @property
    def oracle(self) -> Tensor:
        """Each token's loss under its best pattern, ``(N, T)``."""
        return self.losses.amin(0)

    @property
    def fixed(self) -> float:
        """The mean loss of the pattern that is best for all tokens together."""
        return float(self.losses.flatten(1).mean(1).min())

    @property
    def surest(self) -> Tensor:
        """Each token's loss under the pattern whose prediction has the least entropy, ``(N, T)``."""
        return self.losses.gather(0, self.entropies.argmin(0, keepdim=True))[0]


@torch.no_grad()
def try_patterns(model: DuoLM, tokens: Tensor, targets: Tensor, every: Sequence[Pattern] | None = None) -> Tried:
    """Run whole sequences under each pattern: exact, one pass for each.

    The paper does not say which pattern the tokens before have while one token's varies; here it is the same one.

    Args:
        model: in evaluation mode.
        tokens, targets: ``(N, T)``.
        every: the patterns; all by default.
    """
    layers = alternatives_of(model)
    every = patterns(len(layers), choices=len(layers[0].names)) if every is None else every
    losses, entropies = [], []
    for pattern in every:
        with choosing(model, pattern):
            log_chances = model(tokens).float().log_softmax(-1)
        losses.append(F.nll_loss(log_chances.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets))
        entropies.append(-(log_chances.exp() * log_chances).sum(-1))
    return Tried(list(every), torch.stack(losses), torch.stack(entropies))
