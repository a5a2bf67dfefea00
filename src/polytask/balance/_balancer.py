"""What every balancer is: named losses in, gradients on the parameters out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from polytask.register import Register

Backward = Callable[[Tensor], None]
"""Runs the backward pass of a scalar: ``Tensor.backward``, or ``Fabric.backward`` where precision or devices ask for it."""


class Balancer(nn.Module):
    """Turns the named losses of one step into gradients.

    A balancer is a module so that what it learns or remembers is in its ``state_dict``, moves with ``to``, and is owned by
    the optimizer like any other parameter; it never changes the model.

    Attributes:
        scale: ``"sum"`` when the step's size is that of the sum of the losses, ``"mean"`` when it is that of their mean,
            ``"own"`` when the method sets it in another way. A sum and a mean at one learning rate differ in step size by
            the number of tasks; comparisons state it.
    """

    scale: ClassVar[str] = "sum"

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


class LossWeighting(Balancer):
    """A balancer that needs one backward pass: it combines the losses into one."""

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar whose gradient is the step."""

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        backward(self.combine(losses))


balancers: Register[Callable[[], Balancer]] = Register("balancer")
"""Every balancer by name; each value, called without arguments, gives the method with the defaults of its paper."""
