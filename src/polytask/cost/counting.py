"""Multiply-accumulate operations, parameters and bytes of activations, counted on the meta device."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from polytask.errors import InputError

_VECTORS: dict[Any, Callable[..., int]] = {  # products that torch's own counter leaves out; multiply-accumulates
    torch.ops.aten.mv: lambda matrix, vector, **_: matrix.numel(),
    torch.ops.aten.addmv: lambda _, matrix, vector, **__: matrix.numel(),
    torch.ops.aten.dot: lambda a, b, **_: a.numel(),
}

_SAVING = ("native_", "_native_", "cudnn_", "max_pool")  # what they give besides the first is for a backward pass


@dataclass(frozen=True)
class Count:
    """What a module costs for given inputs.

    Attributes:
        macs: multiply-accumulate operations of convolutions and matrix products, those of attention included. Norms,
            activation functions, sums and look-ups in embeddings are not counted, as is the custom of papers.
        parameters: those of the module and all below it, a shared one once.
        activation_bytes: what the operations of one forward pass write into new memory; views and operations in place write
            none. Attention by ``scaled_dot_product_attention`` counts as fused: its matrix of weights is never written.
    """

    macs: int = 0
    parameters: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class Counts:
    """The cost in total, and by submodule.

    Attributes:
        total: of the whole module.
        modules: by submodule's name, of all that happens inside it; a module that is called twice counts twice. Operations
            outside every submodule are in the total alone.
    """

    total: Count
    modules: Mapping[str, Count]


def count(network: nn.Module, *inputs: Any, device: str = "meta", **named: Any) -> Counts:
    """Count what ``network(*inputs, **named)`` costs in evaluation mode, without computing anything.

    Convolutions (grouped and transposed too), linear layers, matrix products, attention, fused or not, and recurrent layers
    (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``; a product for each step and gate) are counted by what they multiply.

    Args:
        network: any module; its weights are neither read nor copied, and it does not change.
        inputs, named: tensors, of which the shapes count, and other arguments; containers of tensors too.
        device: where the pass runs. A network whose way depends on values cannot run on ``"meta"``: give ``"cpu"``, and a
            copy of it runs there on the inputs as they are.

    Raises:
        InputError: the network cannot run so; the message has the reason that torch gave.

    >>> counts = count(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.empty(1, 3, 10, 10))
    >>> counts.total
    Count(macs=21600, parameters=224, activation_bytes=6400)
    >>> counts.modules["0"].activation_bytes
    3200
    """
    counter, _ = run_counted(network, *inputs, device=device, **named)
    parameters = {name: _parameters(module) for name, module in network.named_modules() if name}
    modules = {name: Count(counter.macs[name], own, counter.bytes[name]) for name, own in parameters.items()}
    return Counts(Count(counter.macs[""], _parameters(network), counter.bytes[""]), modules)


def macs(network: nn.Module, *inputs: Any) -> int:
    """The multiply-accumulate operations of ``network(*inputs)``: of convolutions and matrix products, as papers count.

    Args:
        network: any module; its weights are neither read nor copied.
        inputs: tensors, of which the shapes count, and other arguments.

    >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10))
    21600
    """
    return run_counted(network, *inputs)[0].macs[""]


def run_counted(network: nn.Module, *inputs: Any, device: str = "meta", **named: Any) -> tuple[Counting, Any]:
    """The operations in evaluation mode by submodule, ``""`` for all, and the output on ``device``."""
    if device == "meta":
        tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
        twin = copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors})
    else:
        twin = copy.deepcopy(network).to(device)
    arguments, options = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (inputs, named))
    counter = Counting()
    try:
        with torch.no_grad(), torch.device(device), counter.tracker, counter, _Fused(counter):
            output = twin.eval()(*arguments, **options)
    except (NotImplementedError, RuntimeError) as error:
        where = counter.tracker_path() or type(network).__name__
        raise InputError(
            f"{where}: cannot run on the device {device!r} ({str(error).splitlines()[0]}): give inputs that fit"
            + (", or device='cpu' where its way depends on values" if device == "meta" else "")
        ) from error
    return counter, output


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations that are dispatched while it is active, for each module that they happen in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.tracker = ModuleTracker()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.paused:
            known, packet = flop_registry.get(func._overloadpacket), func._overloadpacket
            if known is not None:
                self.add(macs=known(*args, **kwargs, out_val=output) // 2)
            elif packet in _VECTORS:
                self.add(macs=_VECTORS[packet](*args, **kwargs))
            old = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            written = output[0] if packet.__name__.startswith(_SAVING) else output
            new = {_storage(x): x.untyped_storage().nbytes() for x in tree_leaves(written) if isinstance(x, Tensor)}
            self.add(written=sum(size for key, size in new.items() if key not in old))
        return output

    def add(self, macs: int = 0, written: int = 0) -> None:
        """Count for all modules that are running."""
        for name in self.running():
            self.macs[name] += macs
            self.bytes[name] += written

    def running(self) -> set[str]:
        """The names of the modules that are running; ``""`` for the whole."""
        paths = {name.partition(".")[2] for name in self.tracker.parents if name != "Global"}
        return paths | {""}

    def tracker_path(self) -> str:
        """The innermost module that is running, as far as it can be told."""
        return max(self.running(), key=len)


class _Fused(TorchFunctionMode):
    """Counts attention as one operation, on every device: two products, and its output."""

    def __init__(self, counter: Counting) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        self.counter.paused = True
        try:
            output = func(*args, **kwargs)
        finally:
            self.counter.paused = False
        each = query.numel() // query.shape[-1] * key.shape[-2]
        size = output.numel() * output.element_size()
        self.counter.add(each * (query.shape[-1] + value.shape[-1]), size)
        return output


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
