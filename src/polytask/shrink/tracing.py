"""Running a network once to see how its channels hang together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from polytask.errors import InputError
from polytask.nn.modes import evaluating
from polytask.shrink.channels import Channels, compact
from polytask.shrink.rules import RULES, Call, mixing, plain_name


@dataclass(frozen=True)
class Heads:
    """An attention: the module that it happens in, and a channel of each of its heads."""

    module: str
    ids: Tensor


class Tracer(TorchFunctionMode):
    """Follows the channels of every activation through the operations of torch, whatever code calls them.

    Each tensor has a twin of channel numbers of its shape. `polytask.shrink.rules` says what an operation does to the twins;
    an operation without a rule is taken to mix everything: what goes in is kept whole, and the reason is known.

    Attributes:
        channels: what is known.
        members: for each pair of a tensor of the network and a dimension the channels along it, and what they are to it.
        heads: the attentions that ran.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.channels = Channels()
        self.members: dict[tuple[int, int], tuple[Tensor, str]] = {}
        self.elements: dict[int, tuple[Tensor, Tensor]] = {}
        self.whole: dict[int, str] = {}
        self.heads: list[Heads] = []
        self.own = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self.running: list[str] = [""]
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}  # holds the tensors, so that no id is used twice

    # What rules read and write

    @property
    def place(self) -> str:
        """The module that is running, as errors name it."""
        return self.running[-1] or "the network itself"

    def of(self, tensor: Any) -> Tensor | None:
        """The channels of a tensor, in its shape, or ``None`` for a constant; those of a parameter are made when asked."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._twins:
            return self._twins[id(tensor)][1]
        if id(tensor) in self.own and tensor.numel() > 1:
            ids = self.channels.fresh(*tensor.shape)
            self.elements[id(tensor)] = (tensor, ids)
            self.give(tensor, ids)
            return ids
        return None

    def is_own(self, tensor: Any) -> bool:
        """Whether it is a parameter or a buffer of the network itself."""
        return isinstance(tensor, Tensor) and id(tensor) in self.own

    def give(self, tensor: Tensor, ids: Tensor) -> None:
        """Say which channels a tensor has; ``ids`` is broadcast to its shape."""
        self._twins[id(tensor)] = (tensor, compact(ids).expand(tensor.shape))

    def member(self, tensor: Any, dim: int, ids: Tensor, role: str) -> Tensor:
        """Tie ``ids`` to the places of a parameter along a dimension; gives the channels that an earlier use put there.

        Args:
            role: as of `polytask.shrink.Member`.
        """
        if not isinstance(tensor, Tensor):
            return ids
        if id(tensor) not in self.own:
            self.channels.freeze(ids, f"a weight in {self.place} is computed, expected a parameter of the network")
            return ids
        known, before = self.members.get((id(tensor), dim), (ids, role))
        self.members[id(tensor), dim] = known, before if before == role else "both"
        self.channels.tie(known, ids, f"a weight in {self.place} is used with and without channels")
        return known

    def keep_whole(self, tensor: Any, reason: str) -> None:
        """Remove nothing of a tensor; of a parameter none of the places that layers know, now or later."""
        if self.is_own(tensor) and id(tensor) not in self._twins:
            self.whole[id(tensor)] = reason
        elif (ids := self.of(tensor)) is not None:
            self.channels.freeze(ids, reason)

    def saw_heads(self, ids: Tensor) -> None:
        """An attention ran here, with these heads."""
        self.heads.append(Heads(self.running[-1], ids))

    # What torch calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        name = plain_name(func)
        if tensors or name == "setitem":
            call = Call(self, func, name, args, kwargs, output, f"`{name}` in {self.place}")
            RULES.get(name, mixing)(call)
        return output


@contextmanager
def _watched(network: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the name of the module that runs in ``running[-1]``."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: (running.pop(), None)[1], always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def traced(network: nn.Module, *inputs: Any, **named: Any) -> Tracer:
    """Run ``network(*inputs, **named)`` in evaluation mode, and see what its channels go through; outputs stay whole.

    Raises `InputError`, naming the module, when the network does not run on these inputs.
    """
    tracer = Tracer(network)
    try:
        with evaluating(network), torch.no_grad(), _watched(network, tracer.running), tracer:
            output = network(*inputs, **named)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{type(network).__name__}: cannot be traced: it does not run on the example inputs "
            f"({type(error).__name__}: {str(error).splitlines()[0]}): give inputs as it takes them"
        ) from error
    for tensor in tree_leaves(output):
        tracer.keep_whole(tensor, "they are the network's output")
    for (key, _), (ids, _) in tracer.members.items():
        if key in tracer.whole:
            tracer.channels.freeze(ids, tracer.whole[key])
    return tracer
