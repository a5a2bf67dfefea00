"""Learning from what was executed: only the chosen expert's loss is seen, and only its row changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from polytask.errors import InputError
from polytask.route.router import Router

WIDEST = 4096


class Bandit:
    """A router that goes on learning while it is used, epsilon-greedily.

    Each expert's row is the ridge solution of what it was executed on, with the row that the router came with as the prior:
    ``b = argmin sum_n (y_n - x_n b)^2 + strength |b - b_0|^2``, kept up to date by the formula of Sherman and Morrison in
    ``D^2`` operations and as many numbers for each expert.

    The features should be of the size that the prior was fitted on; at most `WIDEST` of them.

    Args:
        router: what it begins with; it is not changed.
        epsilon: how often an expert is drawn evenly from all, 0.1 by default.
        strength: how much evidence the prior counts for.
        seed: of what is drawn.

    >>> from polytask.route import Expert, NGramFeatures
    >>> experts = [Expert("a"), Expert("b")]
    >>> router = Router.fit(NGramFeatures(width=64), experts, ["one", "two"], [[1.0, 2.0], [1.0, 2.0]])
    >>> bandit = Bandit(router, epsilon=0)
    >>> for _ in range(20):
    ...     bandit.learn("one", "a", 5.0)
    >>> bandit.choose("one")
    'b'
    """

    def __init__(self, router: Router, epsilon: float = 0.1, strength: float = 1.0, seed: int = 0) -> None:
        if not 0 <= epsilon <= 1 or strength <= 0:
            raise InputError(f"bandit: epsilon {epsilon}, strength {strength}, expected from 0 to 1, and above 0")
        experts, width = router.rows.shape[1:]
        if width > WIDEST:
            raise InputError(f"bandit: {width} coefficients for each expert, expected at most {WIDEST}: a narrower encoder")
        self._router, self.epsilon = router, epsilon
        self._rows = router.rows[0].double().clone()
        self._inverse = torch.eye(width, dtype=torch.float64).repeat(experts, 1, 1) / strength
        self._draws = np.random.default_rng(seed)

    @property
    def router(self) -> Router:
        """The router as it is now, without its ensemble."""
        return replace(self._router, rows=self._rows[None].to(self._router.rows.dtype))

    def choose(self, prompt: str, weights: Mapping[str, float] | None = None) -> str:
        """The expert to execute."""
        names = [expert.name for expert in self._router.experts]
        if self._draws.random() < self.epsilon:
            return names[int(self._draws.integers(len(names)))]
        chosen: str = self.router.route(prompt, weights).expert
        return chosen

    def learn(self, prompt: str, expert: str, loss: float) -> None:
        """Take in what the executed expert lost on a prompt without flags; `InputError` for a loss that is not finite."""
        if not np.isfinite(loss):
            raise InputError(f"expert {expert!r}: loss {loss}, expected a finite number")
        place = self._router._place(expert)
        features = self._router.features([prompt])[0].double()
        x = torch.cat([features, features.new_ones(1)])
        inverse, row = self._inverse[place], self._rows[place]
        gain = inverse @ x
        gain = gain / (1 + x @ gain)
        row += gain * (loss - row @ x)
        inverse -= torch.outer(gain, inverse @ x)
