"""Adapters as sources: a bank of them in one batched product, and methods of transfer that put their outputs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.share.adapter import ACTIVATIONS, Adapter, Bottleneck
from polytask.share.insertion import Insertable, Inserted, insert


@dataclass(frozen=True, kw_only=True)
class Transfer(Insertable):
    """What methods of transfer have in common: for each task they learn how to put the outputs of ``S`` adapters together.

    Args:
        sources: the names, in order, of adapters that were trained before and stay as they are, as `transferred` gives them:
            they are buffers, so that nothing trains them and nothing counts them. Or a number of new adapters, which are
            shared and trained along; 8 by default.
        adapter: what each source is.
    """

    sources: int | Sequence[str] = 8
    adapter: Adapter = field(default_factory=Adapter)

    def __post_init__(self) -> None:
        if isinstance(self.adapter, Mapping):  # as a saved file has it
            object.__setattr__(self, "adapter", Adapter(**self.adapter))
        if not isinstance(self.sources, int):
            object.__setattr__(self, "sources", tuple(self.sources))
            if len(set(self.names)) < len(self.names):
                raise InputError(f"{self.name}: sources {list(self.names)}, expected no name twice")
        if not self.names:
            raise InputError(f"{self.name}: sources {self.sources!r}, expected at least one")

    @property
    def types(self) -> tuple[type[nn.Module], ...]:
        return self.adapter.types

    @property
    def names(self) -> tuple[str, ...]:
        """The sources' names; new ones are numbered."""
        return tuple(map(str, range(self.sources))) if isinstance(self.sources, int) else tuple(self.sources)

    def bank(self, module: nn.Module) -> Sources:
        """The sources at one module, as adapters begin."""
        part = self.adapter.build(module, self.names)
        return Sources([part.of(name) for name in self.names], self.adapter.activation, not isinstance(self.sources, int))


class Sources(nn.Module):
    """``S`` bottlenecks at one module: ``down (S, r, in)``, ``up (S, out, r)`` and their biases, parameters or buffers.

    Called with ``(..., in)`` it gives what each of them adds, ``(..., S, out)``.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __init__(self, bottlenecks: Sequence[Bottleneck], activation: str, frozen: bool) -> None:
        super().__init__()
        self.activation = activation
        for name, layers in {"down": [b.down for b in bottlenecks], "up": [b.up for b in bottlenecks]}.items():
            for tensor, kind in ((name, "weight"), (f"{name}_bias", "bias")):
                stacked = torch.stack([layer.get_parameter(kind).detach() for layer in layers])
                if frozen:
                    self.register_buffer(tensor, stacked)
                else:
                    self.register_parameter(tensor, nn.Parameter(stacked))

    def hidden(self, x: Tensor) -> Tensor:
        """What all bottlenecks have inside, ``(..., S * r)``."""
        down, bias = self.down.flatten(0, 1).to(x.dtype), self.down_bias.flatten().to(x.dtype)
        return ACTIVATIONS[self.activation](F.linear(x, down, bias))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x).view(*x.shape[:-1], *self.down.shape[:2])
        return torch.einsum("...sr,sor->...so", hidden, self.up.to(hidden.dtype)) + self.up_bias.to(hidden.dtype)

    def scaled(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """One layer ``(out, S * r)``, and its bias ``(out,)``, that gives the sum of all that the bottlenecks add, each
        multiplied by its row of ``coefficients (S, out)`` or ``(S, 1)``."""
        weight = coefficients[..., None] * self.up
        return weight.transpose(0, 1).flatten(1), (coefficients * self.up_bias).sum(0)


def transferred(
    inserted: Inserted, method: Transfer, tasks: Sequence[str], sources: Sequence[str] | None = None
) -> Inserted:
    """``method`` over trained adapters, in their place: the second stage of AdapterFusion and ScaLearn.

    The adapters become sources: copies that stay as they are, in this order, whatever is trained afterwards, so that
    `Inserted.freeze` leaves only what ``method`` learns. ``inserted`` is taken out and keeps its adapters: other methods can
    start from the same.

    Args:
        inserted: an insertion of `Adapter`.
        method: what to put in its place; bottleneck, place and so on are those of ``inserted``.
        tasks: what to learn, tasks that are among the sources or others.
        sources: the tasks of ``inserted`` whose adapters are used; all by default.
    """
    if not isinstance(inserted.method, Adapter):
        raise InputError(f"an insertion of {inserted.method.name}, expected one of adapter")
    for source in sources or ():
        if source not in inserted.tasks:
            raise InputError(f"unknown source {source!r}: {suggest(source, inserted.tasks)}")
    names = inserted.tasks if sources is None else tuple(sources)
    method = replace(method, sources=names, adapter=inserted.method)
    inserted.remove()
    found = insert(inserted.model, method, tasks, lambda name, module: name in inserted.parts, inserted.name)
    for place, part in found.parts.items():
        into: Any = part
        adapters: Any = inserted.parts[place]
        bank = Sources([adapters.of(name) for name in names], method.adapter.activation, frozen=True)
        into.sources.load_state_dict(bank.state_dict())
    return found
