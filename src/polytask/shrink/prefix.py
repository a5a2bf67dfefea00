"""What runs before a change is computed once: outputs of modules, recorded in one evaluation and given back in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Prefix:
    """The outputs of all modules that end, in a call of the network, before the first of some changed modules begins.

    Networks that differ only in changed modules share it: within `applied`, the first that is evaluated leaves its outputs,
    and each further one is given them. Evaluations have to call the network on the same batches in the same order, in
    evaluation mode.

    Args:
        changed: names of the modules that differ.
        limit: bytes to keep; what comes after is computed again each time.
    """

    def __init__(self, changed: Sequence[str], limit: int) -> None:
        self.changed, self.left = set(changed), limit
        self._kept: dict[tuple[int, str, int], Any] = {}  # by the network's call, the module, and the module's call in it
        self._recorded = False

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Record from ``network``, or give back, in this block."""
        state = _State()
        wrapped = []
        for name, module in network.named_modules():
            if "forward" not in module.__dict__:
                module.forward = self._wrapper(name, module.forward, state)
                wrapped.append(module)
        try:
            yield
            self._recorded = True
        finally:
            for module in wrapped:
                del module.__dict__["forward"]

    def _wrapper(self, name: str, forward: Callable[..., Any], state: _State) -> Callable[..., Any]:
        def top(*args: Any, **kwargs: Any) -> Any:
            state.begin()
            try:
                return forward(*args, **kwargs)
            finally:
                state.inside = False

        def below(*args: Any, **kwargs: Any) -> Any:
            if name in self.changed:
                state.changed = True
            if not state.inside or state.changed:
                return forward(*args, **kwargs)
            key = state.call, name, state.times[name]
            state.times[name] += 1
            if key in self._kept:
                return _copied(self._kept[key])
            output = forward(*args, **kwargs)
            if not (self._recorded or state.changed):
                self._keep(key, output)
            return output

        return below if name else top

    def _keep(self, key: tuple[int, str, int], output: Any) -> None:
        call, name, _ = key
        inner = [k for k in self._kept if k[0] == call and k[1].startswith(f"{name}.")]
        size = _bytes(output) - sum(_bytes(self._kept[k]) for k in inner)
        if size <= self.left:
            for k in inner:  # what is below it will not be called
                del self._kept[k]
            self.left -= size
            self._kept[key] = _copied(output)


class _State:
    """Where an evaluation is."""

    def __init__(self) -> None:
        self.call, self.inside, self.changed = -1, False, False
        self.times: Counter[str] = Counter()

    def begin(self) -> None:
        self.call, self.inside, self.changed = self.call + 1, True, False
        self.times.clear()


def _copied(output: Any) -> Any:
    """Copies, since what follows may work in place."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)


def _bytes(output: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree_leaves(output) if isinstance(x, torch.Tensor))
