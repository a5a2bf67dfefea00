"""Target networks: slower copies of a network, from which it learns; and how many updates its parameters have had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.errors import InputError


class TargetNetwork(nn.Module):
    """A copy of a network's parameters and buffers that follows them: ``copy <- (1 - rate) copy + rate parameters``.

    The copy is in buffers, so that checkpoints have it and no optimizer does; the network itself stays with who calls.

    Args:
        network: what is copied.
        rate: how far the copy goes, above 0 and at most 1: a soft target; 1 with a ``period`` is a hard one.
        period: calls of `follow` from one move to the next.
        lag: move towards the parameters as they were before the last update, not as they are after it. Costs another copy.

    >>> network = nn.Linear(2, 1, bias=False)
    >>> target = TargetNetwork(network, rate=0.25)
    >>> with torch.no_grad():
    ...     before = network.weight.clone()
    ...     _ = network.weight.add_(4.0)
    >>> target.follow(network)
    >>> bool(target(network, torch.eye(2)).T.allclose(before + 1.0))
    True
    """

    def __init__(self, network: nn.Module, rate: float = 0.01, period: int = 1, lag: bool = False) -> None:
        super().__init__()
        if not 0 < rate <= 1 or period < 1:
            raise InputError(f"rate {rate}, period {period}: expected 0 < rate <= 1 and period >= 1")
        self.rate, self.period, self.lag = rate, period, lag
        self.copy, self.waiting = _Copy(network), _Copy(network) if lag else None
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, network: nn.Module, *inputs: Any) -> Any:
        """``network(*inputs)`` with the copy in the place of its parameters, without gradient."""
        return functional_call(network, self.copy.state(), inputs)

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """To be called after each update of ``network``: every ``period`` calls the copy moves."""
        calls = self.get_buffer("calls")
        calls += 1
        if int(calls) % self.period:
            return
        if self.waiting is None:
            self.copy.mix(network, self.rate)
        else:
            self.copy.load_state_dict(self.waiting.state_dict())
            self.waiting.mix(network, self.rate)

    def keep_up(self, network: nn.Module, updates: Updates, parameters: Iterable[Tensor]) -> None:
        """To be called wherever ``network`` may have been updated: `follow` once for each change that ``updates`` finds.

        At the first, where weights may have been loaded since this was made, it becomes what ``network`` is.
        """
        if updates.look(parameters):
            if int(updates.get_buffer("count")) == 1:
                self.reset(network)
            else:
                self.follow(network)

    @torch.no_grad()
    def reset(self, network: nn.Module) -> None:
        """Be what ``network`` is."""
        for copy in (self.copy, self.waiting):
            if copy is not None:
                copy.mix(network, 1.0)
        self.get_buffer("calls").zero_()


class _Copy(nn.Module):
    """A network's parameters and buffers, as buffers; a dot in a name, which no buffer may have, is a slash."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, tensor in _tensors(network):
            self.register_buffer(name.replace(".", "/"), tensor.detach().clone())

    def state(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): tensor for name, tensor in self.named_buffers()}

    def mix(self, network: nn.Module, rate: float) -> None:
        own = self.state()
        for name, tensor in _tensors(network):
            if rate < 1 and tensor.is_floating_point() and isinstance(tensor, nn.Parameter):
                own[name].lerp_(tensor, rate)
            else:
                own[name].copy_(tensor)


def _tensors(network: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


class Updates(nn.Module):
    """How often parameters were found changed, by a look at their sums.

    Training calls ``losses`` once for each batch; a balancer may call it again from the same weights, and so may a step of
    several accumulated batches. What happens once for each update, as a target network's move does, then goes by this. It is
    in buffers: a run that goes on from a checkpoint counts on.

    Args:
        parameters: how many tensors there are to look at.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.full((parameters,), torch.nan))

    @torch.no_grad()
    def look(self, parameters: Iterable[Tensor]) -> bool:
        """Whether any of them differs from the last look; true at the first. `count` is how often it was."""
        known = self.get_buffer("sums")
        sums = torch.stack([p.detach().sum(dtype=known.dtype) for p in parameters])
        new = not torch.equal(sums, known)
        if new:
            known.copy_(sums)
            self.get_buffer("count").add_(1)
        return new
