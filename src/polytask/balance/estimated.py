"""Cheaper Gramians for any Gramian weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Evaluate, GradientBalancer, GramianWeighting, balancers
from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.balance.mgda import MGDA
from polytask.errors import InputError

By = Literal["exact", "representation", "sketch", "local"]


class Estimated(GradientBalancer):
    """A Gramian weighting that finds its inner products in a cheaper way, or less often.

    Args:
        inner: the method, or its name.
        by: where the inner products come from.

            - ``"exact"``: the gradients on the shared parameters of the whole step, as without this wrapper.
            - ``"representation"``: the gradients on what the tasks last have in common, as the encoder's output: one
              backward pass in all (Sener and Koltun, *Multi-task learning as multi-objective optimization*, NeurIPS 2018,
              Section 3.3, whose upper bound MGDA minimises then). The only one for parameters in pieces (FSDP).
            - ``"sketch"``: ``sketch`` random projections of the gradients; an inner product is off by a random error of mean
              0 and a standard deviation of at most ``3 / sqrt(sketch)`` of the product of the two norms. For layers so large
              that even their gradients' products weigh; several processes exchange ``K x sketch`` numbers.
            - ``"local"``: the mean over processes of each one's own inner products. The Gramian of a mean is not the mean of
              Gramians: this overstates norms by the gradients' noise, and is the same only for one process.

            But for the exact one, each accumulated batch is balanced by itself.
        every: steps between estimates; in between, the last weights hold, at the cost of one backward pass.
        momentum: how much of the last estimate stays in the next, in ``[0, 1)``: a running mean.
        sketch: random projections.

    Raises:
        InputError: settings that cannot be; ``"representation"`` when the tasks have none in common, as with batches of
            their own.
    """

    holds = False
    running: Tensor
    seen: Tensor
    last: Tensor
    count: Tensor

    def __init__(
        self,
        inner: str | GramianWeighting,
        by: By = "exact",
        every: int = 1,
        momentum: float = 0.0,
        sketch: int = 1024,
    ) -> None:
        super().__init__()
        made = balancers[inner]() if isinstance(inner, str) else inner
        if not isinstance(made, GramianWeighting):
            raise InputError(f"{type(made).__name__} is no Gramian weighting, expected one of those")
        if by not in get_args(By):
            raise InputError(f"by is {by!r}, expected one of {', '.join(map(repr, get_args(By)))}")
        if every < 1 or not 0 <= momentum < 1 or sketch < 1:
            raise InputError(f"every {every}, momentum {momentum}, sketch {sketch}: expected >= 1, in [0, 1), >= 1")
        self.inner, self.by, self.every, self.momentum, self.sketch = made, by, every, momentum, sketch
        self.scale = made.scale
        self.pieces = by == "representation"

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.inner.prepare(tasks)
        size = len(tasks)
        if size == 0 and (self.every > 1 or self.momentum > 0):
            raise InputError("a running estimate keeps numbers for each task: give the model an attribute 'tasks'")
        self.register_buffer("running", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(size, size, dtype=torch.bool))
        self.register_buffer("last", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        due = int(self.count) % self.every == 0
        self.count += 1
        by = self.by if due else "weights"
        if by == "exact":
            super().step(batches, shared, backward, processes)
            return
        for evaluate in batches:
            gradients = TaskGradients(shared, processes, by=by, sketch=self.sketch)
            gradients.add(evaluate(), backward)
            self._settle(gradients, due)

    def settle(self, gradients: TaskGradients) -> None:
        self._settle(gradients, due=True)

    def _settle(self, gradients: TaskGradients, due: bool) -> None:
        losses = gradients.losses
        if not losses:
            return
        if not due:
            gradients.write(self.last[self._places(losses)].cpu())
            return
        gramian = gradients.gramian()
        if not bool(gramian.isfinite().all()):  # an overflow, for the loss scaler to find
            gradients.write(torch.ones(len(gramian)))
            return
        weights = self.inner.weigh(self._remembered(gramian, losses), losses)
        if self.tasks:
            self.last[self._places(losses)] = weights.to(self.last)
        gradients.write(weights)

    def _remembered(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        if self.momentum == 0:
            return gramian
        places = torch.tensor(self._places(losses), device=self.running.device)
        index = places[:, None], places
        new = gramian.to(self.running)
        old = torch.where(self.seen[index], self.running[index], new)
        self.running[index] = self.momentum * old + (1 - self.momentum) * new
        self.seen[index] = True
        return self.running[index].cpu()

    def _places(self, losses: Mapping[str, float]) -> list[int]:
        return [self.tasks.index(name) for name in losses]


@balancers.add("mgda_ub")
def mgda_ub() -> Estimated:
    """MGDA on the gradients of the shared representation: an upper bound of its problem (Sener and Koltun, 2018)."""
    return Estimated(MGDA(), "representation")
