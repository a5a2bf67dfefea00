"""What every balancer is: named losses in, gradients on the parameters out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.register import Register

Evaluate = Callable[[], Mapping[str, Tensor]]
"""Computes the losses of a batch."""


class Balancer(nn.Module):
    """Turns the named losses of one step into gradients.

    A balancer is a module so that what it learns or remembers is in its ``state_dict``, moves with ``to``, and is owned by
    the optimizer like any other parameter; it never changes the model.

    Attributes:
        scale: ``"sum"`` when the step's size is that of the sum of the losses, ``"mean"`` when it is that of their mean,
            ``"own"`` when the method sets it in another way. A sum and a mean at one learning rate differ in step size by
            the number of tasks; comparisons state it.
        pieces: whether it works on parameters of which each process has a piece (FSDP).
        joins: whether `step` itself makes the gradients on the shared parameters those of the joined batch of all processes.
    """

    scale: str = "sum"
    joins: bool = False
    pieces: bool = False

    def prepare(self, tasks: Sequence[str]) -> None:
        """Called once before training with the names of all tasks; creates per-task state."""
        self.tasks = tuple(tasks)

    @abstractmethod
    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        """Add this step's gradients to ``.grad`` of every parameter.

        Args:
            losses: scalar losses of the tasks in this step; a task that is absent from the step is absent here.
            shared: the parameters that all tasks share, among which conflicts are settled.
            backward: runs a backward pass.
        """

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        """Add the gradients of a step of one or several batches, which may be computed as often as the method needs.

        By default gradients of batches are found one by one, and add up.

        Args:
            batches: each computes the losses of one batch, weighed by their share in the step.
            shared: the parameters that all tasks share.
            backward: runs a backward pass; a constant factor in it (a loss scale, a share) holds for all.
            processes: those that take part in the step, each with batches of its own; what this method leaves in ``.grad``
                is averaged over them, except on ``shared`` where the method `joins` it itself.
        """
        for evaluate in batches:
            losses = evaluate()
            if losses:
                self.backward(losses, shared, backward)


class LossWeighting(Balancer):
    """A balancer that needs one backward pass: it combines the losses into one."""

    pieces = True

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar whose gradient is the step."""

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        backward(self.combine(losses))


class GradientBalancer(Balancer):
    """A balancer that looks at the gradient of every task on the shared parameters before it steps.

    Whatever it decides on the shared parameters, each task's own parameters get the gradient of its loss. In a step of
    several batches, or of several processes, it decides once, on the gradients of all of them together.

    Attributes:
        holds: whether `settle` needs the gradients on each parameter, or only inner products and weighted sums.
    """

    joins = True
    holds: bool = True

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        self.step([lambda: losses], shared, backward)

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        gradients = TaskGradients(shared, processes, len(batches), hold=self.holds)
        for evaluate in batches:
            gradients.add(evaluate(), backward)
        self.settle(gradients)

    @abstractmethod
    def settle(self, gradients: TaskGradients) -> None:
        """Decide, and leave the step's gradients on the shared parameters."""


class GramianWeighting(GradientBalancer):
    """A balancer that steps along a weighted sum of the task gradients, with weights found from their inner products."""

    holds = False

    @abstractmethod
    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        """The weights of the task gradients, ``(K,)``.

        Args:
            gramian: inner products of the task gradients on the shared parameters, ``(K, K)``, float64, on the CPU, finite.
            losses: the values of the losses by task, in the order of the rows; only tasks that are in the step.
        """

    def settle(self, gradients: TaskGradients) -> None:
        if gradients.losses:
            gradients.write(self.weights_of(gradients))

    def weights_of(self, gradients: TaskGradients) -> Tensor:
        """The weights ``(K,)`` of these gradients, of at least one task."""
        gramian = gradients.gramian()
        finite = bool(gramian.isfinite().all())
        # Not finite is an overflow, which the loss scaler has to find in the gradients.
        return self.weigh(gramian, gradients.losses) if finite else torch.ones(len(gramian))


class JacobianAggregator(GradientBalancer):
    """A balancer that makes each coordinate of the step from the same coordinate of the task gradients."""

    @abstractmethod
    def aggregate(self, jacobian: Tensor, losses: Mapping[str, float], block: int) -> Tensor:
        """The step on a block of shared parameters, ``(P,)``.

        Args:
            jacobian: the task gradients on this block, ``(K, P)``.
            losses: the values of the losses by task, in the order of the rows; only tasks that are in the step.
            block: the number of the block, the same in each step: a key to what is remembered of it.
        """

    def settle(self, gradients: TaskGradients) -> None:
        gradients.write_blocks(lambda jacobian, block: self.aggregate(jacobian, gradients.losses, block))


balancers: Register[Callable[[], Balancer]] = Register("balancer")
"""Every balancer by name; each value, called without arguments, gives the method with the defaults of its paper."""
