"""Penalties: what a module adds to the loss of the pass that it takes part in, as gates do that balance their experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Penalty:
    """A module's terms of the loss: it makes one in its constructor, and adds to it in training passes that want it.

    >>> import torch
    >>> class Small(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight, self.penalty = nn.Parameter(torch.ones(2)), Penalty()
    ...     def forward(self, x):
    ...         if self.training and self.penalty.wanted:
    ...             self.penalty.add(0.1 * self.weight.square().sum())
    ...         return x * self.weight
    >>> small = Small()
    >>> with penalties(small) as found:
    ...     y = small(torch.ones(2))
    >>> round(sum(found).item(), 3)
    0.2

    Attributes:
        wanted: whether anyone collects penalties; else what it would cost to compute them is saved. It stays so after a
            pass: a block that is computed again in the backward pass, as activation checkpointing does, has to do the same
            again, though what it adds then is not kept.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._collecting = False
        self._value: Tensor | None = None

    def add(self, value: Tensor) -> None:
        """Add a scalar, weighed as the loss shall have it."""
        if self._collecting:
            self._value = value if self._value is None else self._value + value

    def start(self) -> None:
        """Forget what was added, and want more."""
        self.wanted, self._collecting, self._value = True, True, None

    def take(self) -> Tensor | None:
        """The sum of what was added since `start`; what is added from now on is not kept."""
        value, self._collecting, self._value = self._value, False, None
        return value

    def __deepcopy__(self, memo: object) -> Penalty:
        return Penalty()  # what is held belongs to a graph, and graphs are not copied

    def __reduce__(self) -> tuple[type[Penalty], tuple[()]]:
        return Penalty, ()


@contextmanager
def penalties(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block the modules of ``model`` add their penalties; after it they are in the list. None in evaluation mode.

    `polytask.Model` does this around each batch, and adds them to the losses; a loop of your own does it itself.
    """
    found: list[Tensor] = []
    held: list[Penalty] = []
    if model.training:
        attributes = (getattr(module, "penalty", None) for module in model.modules())
        held = [attribute for attribute in attributes if isinstance(attribute, Penalty)]
    for penalty in held:
        penalty.start()
    try:
        yield found
    finally:
        found.extend(value for penalty in held if (value := penalty.take()) is not None)
