"""Learning the distributions of several tasks from the same networks: REINFORCE with importance weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.shrink.search.distributions import Distributions, Precise, mixture
from polytask.shrink.search.space import Rows

SELF_NORMALISED = 8
"""From so many samples on the importance weights are divided by their sum: a little bias, much less variance."""


class MultiTaskReinforce(Precise):
    """Every task's distribution climbs its own expected reward, on samples that all tasks share.

    A batch of ``S`` networks is drawn from the mixture ``q = (1/T) sum_t pi_t`` and evaluated once for all tasks. With
    ``rho_t = pi_t(a) / q(a)``, which is never above ``T``, the gradient of ``E_{pi_t}[R_t]`` is (Wu et al., *FBNetV5: neural
    architecture search for multiple tasks in one run*, arXiv 2111.10007, 2021)

        ``E_q[rho_t (R_t(a) - b_t) d log pi_t(a)]``

    and each update is a step along its estimate. So a search costs the same for any number of tasks. That networks are
    sampled once for all tasks and weighed is the paper's; its behaviour policy, its baseline and what it does where weights
    degenerate are not known: the mixture, and what follows, are a reconstruction.

    The baseline ``b_t`` is a moving average of the reward over earlier batches, weighed by ``rho_t``; of the first batch it
    is the mean of the others. So it never holds the sample that it is for. With at least 8 samples weights are divided by
    their sum. A task whose effective sample size ``(sum rho)^2 / sum rho^2`` is too small makes no step.

    Args:
        distributions: what is learned, in place.
        samples: how many networks make a batch.
        lr: the length of a step, along the gradient by logits.
        standardise: rewards in standard deviations of the quality over all networks so far; penalties are added to that, so
            that a `Goal`'s weight means the same for tasks of any scale.
        memory: how much of the moving average is kept at each batch.
        effective: the least effective sample size, as a share of the samples; by default a quarter, or with more than two
            tasks ``1 / 2T``, half of what is left to each task once their distributions have parted.
        by_entropy: samples in proportion to the mean entropy of the distributions, so that a batch gets smaller as they
            become certain, but never smaller than the number of tasks: as FP-NAS does (Yan et al., CVPR 2021).

    Attributes:
        updates: how many batches were learned from, a buffer.
        skipped: ``(T,)``, how many of them each task did not use.
    """

    baseline: Tensor
    moments: Tensor
    updates: Tensor
    skipped: Tensor

    def __init__(
        self,
        distributions: Distributions,
        *,
        samples: int = 12,
        lr: float = 1.0,
        standardise: bool = True,
        memory: float = 0.9,
        effective: float | None = None,
        by_entropy: bool = False,
    ) -> None:
        super().__init__()
        tasks = len(distributions.tasks)
        if samples < 1 or not 0 < lr < math.inf or not 0 <= memory < 1 or not 0 <= (effective or 0) <= 1:
            raise InputError(
                f"samples {samples}, lr {lr}, memory {memory}, effective {effective}: expected at least 1, above 0, "
                "at least 0 and below 1, from 0 to 1"
            )
        self.distributions, self.samples, self.lr = distributions, samples, lr
        self.standardise, self.memory, self.by_entropy = standardise, memory, by_entropy
        self.effective = min(0.25, 1 / (2 * tasks)) if effective is None else effective
        self.register_buffer("baseline", torch.full((2, tasks), math.nan))  # of qualities and of penalties
        self.register_buffer("moments", torch.zeros(3, tasks))  # of qualities: count, mean, sum of squared deviations
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros(tasks, dtype=torch.int64))
        self._most = float(torch.tensor(distributions.space.sizes).log().sum())

    @property
    def count(self) -> int:
        """How many networks the next batch has."""
        if not self.by_entropy or not self._most:
            return self.samples
        share = float(self.distributions.entropy().mean()) / self._most
        return min(self.samples, max(len(self.distributions.tasks), round(self.samples * share)))

    def ratios(self, rows: Rows) -> Tensor:
        """``(T, S)``: ``rho_t = pi_t(a) / q(a)``, between 0 and ``T``."""
        log_probs = self.distributions.log_prob(rows)
        return (log_probs - mixture(log_probs)).exp()

    def gradient(self, rows: Rows, ratios: Tensor, advantages: Tensor) -> Tensor:
        """``(T, G, O)``: the estimate, of ``rho_t`` and of ``R_t - b_t``, both ``(T, S)``."""
        sums = ratios.sum(1, keepdim=True) if ratios.shape[1] >= SELF_NORMALISED else ratios.shape[1]
        return self.distributions.gradient(rows, ratios / sums * advantages)

    def update(self, rows: Rows, quality: Any, penalty: Any = 0.0) -> Tensor:
        """Learn from a batch; the effective sample sizes ``(T,)``.

        Args:
            rows: ``(S, G)``, the networks, drawn from the mixture as it is now.
            quality: ``(S, T)``, of each network for each task; higher is better. A task does not learn from a network for
                which its reward is not finite, as where an evaluation failed.
            penalty: ``(S, T)`` too, what is taken off the quality, standardised or not.
        """
        like = self.distributions.logits
        quality = torch.as_tensor(quality).to(like).T
        penalty = torch.as_tensor(penalty).to(like).expand(quality.T.shape).T
        known = (quality + penalty).isfinite()
        ratios = self.ratios(rows) * known
        parts = [torch.where(known, part, 0.0) for part in (quality, penalty)]
        scale = self._scale(parts[0], known)
        above = [_above(part, known, baseline) for part, baseline in zip(parts, self.baseline, strict=True)]
        advantages = above[0] / scale[:, None] - above[1]
        effective = effective_size(ratios)
        enough = (effective >= self.effective * known.sum(1)) & known.any(1)
        step = self.gradient(rows, ratios, advantages)
        self.distributions.move(self.lr * torch.where(enough[:, None, None], step, 0.0))
        self._remember(parts, known, ratios)
        self.updates += 1
        self.skipped += ~enough
        return effective

    def _scale(self, quality: Tensor, known: Tensor) -> Tensor:
        """``(T,)``: the standard deviation of earlier qualities; of this batch's where there are none; 1 where it is 0."""
        if not self.standardise:
            return torch.ones(len(quality)).to(quality)
        count, _, squares = self.moments if bool((self.moments[0] > 1).all()) else _moments(quality, known)
        deviation = (squares / count.clamp(min=1)).sqrt()
        return torch.where(deviation > 0, deviation, 1.0)

    def _remember(self, parts: list[Tensor], known: Tensor, ratios: Tensor) -> None:
        total = ratios.sum(1)
        for baseline, part in zip(self.baseline, parts, strict=True):
            mean = (ratios * part).sum(1) / total
            moved = torch.where(baseline.isnan(), mean, self.memory * baseline + (1 - self.memory) * mean)
            baseline.copy_(torch.where(total > 0, moved, baseline))
        count, mean, squares = self.moments
        more, new, spread = _moments(parts[0], known)
        both = (count + more).clamp(min=1)
        apart = new - mean
        squares = squares + spread + apart.square() * count * more / both
        self.moments.copy_(torch.stack([count + more, mean + apart * more / both, squares]))


def effective_size(ratios: Tensor) -> Tensor:
    """``(T,)``: ``(sum rho)^2 / sum rho^2`` of ``(T, S)``: ``S`` where all are equal, 1 where one is all, 0 of zeros."""
    squares = ratios.square().sum(1)
    return torch.where(squares > 0, ratios.sum(1).square() / squares.clamp(min=torch.finfo(ratios.dtype).tiny), 0.0)


def _above(values: Tensor, known: Tensor, baseline: Tensor) -> Tensor:
    """``(T, S)``: values above the baseline ``(T,)``, or where that is NaN above the mean of the others; 0 if not known."""
    others = known.sum(1, keepdim=True) - 1
    rest = torch.where(others > 0, (values.sum(1, keepdim=True) - values) / others.clamp(min=1), values)
    below = torch.where(baseline[:, None].isnan(), rest, baseline[:, None])
    return torch.where(known, values - below, 0.0)


def _moments(values: Tensor, known: Tensor) -> Tensor:
    """``(3, T)``: of the known ones the count, the mean, and the sum of squared deviations."""
    count = known.sum(1).to(values)
    mean = values.sum(1) / count.clamp(min=1)
    squares = torch.where(known, values - mean[:, None], 0.0).square().sum(1)
    return torch.stack([count, mean, squares])
