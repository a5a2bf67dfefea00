"""Whether experts still lose what a router predicts: prompts of another kind than those that it learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from polytask.errors import InputError
from polytask.route.router import Decision, Router


class Monitor:
    """A cumulative sum for each expert of what it lost more than predicted (Page, *Continuous inspection schemes*, 1954).

    ``S <- max(0, S + (loss - predicted - mean) / deviation - slack)``, with the mean and the standard deviation of that
    difference on held-out prompts; an expert drifts while ``S`` is above ``limit``. With the defaults a normal difference
    raises an alarm once in about 19,000 prompts, and a rise by one deviation is seen after about 17. An expert whose losses
    come back to what is predicted is trusted again.

    Args:
        router: it is not changed.
        texts: held-out prompts, on which the router was not fitted: on its own it is too good.
        losses: ``(N, K)``, NaN where not known; each expert needs at least two that are known.
        slack: in deviations, what is not counted.
        limit: in deviations.

    Raises:
        InputError: for losses of another shape, or too few of an expert.

    >>> from polytask.route import Expert, NGramFeatures
    >>> router = Router.fit(NGramFeatures(), [Expert("a"), Expert("b")], ["one", "two"] * 4, [[1.0, 2.0], [1.1, 2.1]] * 4)
    >>> monitor = Monitor(router, ["one", "two"] * 4, [[1.0, 2.0], [1.1, 2.1]] * 2 + [[1.2, 2.2], [0.9, 1.9]] * 2)
    >>> decision = router.route("three")
    >>> monitor.choose(decision)
    'a'
    >>> for _ in range(20):
    ...     monitor.observe(decision, "a", 3.0)
    >>> monitor.drifting, monitor.choose(decision)
    (('a',), 'b')
    """

    def __init__(
        self, router: Router, texts: Sequence[str], losses: ArrayLike, *, slack: float = 0.5, limit: float = 8.0
    ) -> None:
        table = np.asarray(losses, dtype=float)
        names = [expert.name for expert in router.experts]
        if table.shape != (len(texts), len(names)):
            raise InputError(f"losses of shape {table.shape}, expected ({len(texts)}, {len(names)}): prompts, experts")
        known = np.isfinite(table).sum(0)
        if few := next((f"{name!r}: {count}" for name, count in zip(names, known, strict=True) if count < 2), None):
            raise InputError(f"held-out losses of expert {few} known, expected at least 2")
        more = table - router.predict(texts)
        self.slack, self.limit = slack, limit
        self._usual = dict(zip(names, np.nanmean(more, 0).tolist(), strict=True))
        self._deviation = dict(zip(names, np.maximum(np.nanstd(more, 0, ddof=1), 1e-12).tolist(), strict=True))
        self.sums = dict.fromkeys(names, 0.0)

    def observe(self, decision: Decision, expert: str, loss: float) -> None:
        """Take in what an expert lost on the prompt of a decision; one that failed, with NaN, counts as at the limit."""
        usual, deviation = self._usual[expert], self._deviation[expert]
        more = (loss - decision.predicted[expert] - usual) / deviation if np.isfinite(loss) else self.limit
        self.sums[expert] = max(0.0, self.sums[expert] + more - self.slack)

    @property
    def drifting(self) -> tuple[str, ...]:
        """The experts that lose more than predicted."""
        return tuple(name for name, total in self.sums.items() if total > self.limit)

    def choose(self, decision: Decision) -> str:
        """The decision's expert, or where that drifts the next in order that does not; the decision's if all do."""
        return next((name for name in (decision.expert, *decision.order) if name not in self.drifting), decision.expert)
