"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import PerTask, Places, positive, positive_setting
from polytask.errors import InputError, suggest


def smooth_maximum(values: Tensor, mu: float) -> Tensor:
    """``mu log sum_k exp(v_k / mu)``, which is the largest of ``values`` ``(K,)`` as ``mu`` goes to 0."""
    return mu * (values / mu).logsumexp(0)


@balancers.add("stch")
class STCH(PerTask, LossWeighting):
    """The smoothed maximum of the tasks' losses, each beside what it was early in training.

    The step follows the gradient of ``K mu log sum_k exp(lambda_k f_k / mu)`` with ``f_k = log((L_k - z_k) / n_k)``. Lin et
    al., *Smooth Tchebycheff scalarization for multi-objective optimization*, ICML 2024, as in their code for multi-task
    learning, which measures each loss on a logarithmic scale from its average ``n_k`` in the last of five epochs of warm-up
    by ``sum_k f_k``. Steps know no epochs: here the warm-up has ``warmup`` losses of each task, and then ``window`` that are
    averaged. A task that is at its reference point, or below, is left out of a step.

    Args:
        mu: the smoothing, > 0; the less, the more the step is that of the worst task alone.
        preference: ``lambda_k > 0`` by task; a task that is not named has 1.
        reference: ``z_k``, the loss that a task could reach at best, by task; a task that is not named has 0.
        warmup: losses of each task before its average begins.
        window: losses to average.
    """

    scale = "own"
    lambdas: Tensor
    ideals: Tensor
    total: Tensor
    count: Tensor

    def __init__(
        self,
        mu: float = 1.0,
        preference: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
        warmup: int = 400,
        window: int = 100,
    ) -> None:
        super().__init__()
        positive_setting(mu=mu, **{f"preference of task {name!r}": value for name, value in (preference or {}).items()})
        if warmup < 0 or window < 1:
            raise InputError(f"warmup {warmup}, window {window}: expected at least 0 and 1")
        self.mu = mu
        self.preference = dict(preference or {})
        self.reference = dict(reference or {})
        self.warmup = warmup
        self.window = window

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in (*self.preference, *self.reference):
            if name not in tasks:
                raise InputError(f"preference or reference names an unknown task {name!r}: {suggest(name, tasks)}")
        lambdas = [self.preference.get(name, 1.0) for name in tasks]
        ideals = [self.reference.get(name, 0.0) for name in tasks]
        for name, numbers in (("lambdas", lambdas), ("ideals", ideals)):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)
        self.register_buffer("total", torch.zeros(len(tasks)))
        self.register_buffer("count", torch.zeros(len(tasks)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        names, values = tuple(losses), torch.stack(tuple(losses.values()))
        at = self.places(names)
        gaps = values - self.ideals[at].to(values)
        # Only a loss that has a reference may be below it.
        below = gaps.new_tensor([name in self.reference for name in names], dtype=torch.bool) if self.reference else None
        left, positives = positive(names, gaps if below is None else torch.where(below, gaps.clamp(min=0), gaps), "stch")
        if left != names:
            at = self.places(left)
        full = self.warmup + self.window
        over = bool((self.count == full).all())
        warm = over or bool((self.count[at] == full).all())
        nadir = self.total[at] / self.window
        if not over:
            self._remember(*self.agree(dict(zip(names, gaps.unbind(), strict=True))))
        if not left:
            return values.sum()
        logs = positives.log()
        if not warm:
            return logs.sum()
        lambdas = self.lambdas[at].to(values)
        return len(left) * smooth_maximum(lambdas * (logs - nadir.clamp(min=1e-30).log()), self.mu)

    def _remember(self, at: Places, gaps: Tensor) -> None:
        """Count the losses of each task, and add up those of its window."""
        seen = self.count[at]
        inside = (seen >= self.warmup) & (seen < self.warmup + self.window)
        self.total[at] += torch.where(inside, gaps, 0)
        self.count[at] = (seen + 1).clamp(max=self.warmup + self.window)
