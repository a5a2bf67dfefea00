"""Channels removed for good: smaller tensors in the same modules, and an optimizer's state with them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from polytask.errors import InputError
from polytask.shrink.groups import Removed, Structure

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Shrunk:
    """What was removed from a network, as JSON values: `resize` makes the same of a network as it was built.

    A network that lost channels has it as its attribute ``shrunk``, and saved models keep it.

    Attributes:
        shapes: of the tensors that are smaller, by name.
        counters: attributes of modules that count units, by name, such as ``"block.attention.heads"``.
        removed: the units by group, an entry for each removal, with numbers of the network as it was then: a record.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    removed: Sequence[Mapping[str, Sequence[int]]] = ()


def remove(
    network: Network, structure: Structure, removed: Removed, *, optimizer: Optimizer | None = None, inplace: bool = False
) -> Network:
    """``network`` without some units of its groups: physically smaller, with the outputs of the masked network.

    Gradients and an optimizer's state lose the same places, so that training goes on as it would have. Parameters become new
    objects in the same modules: remove channels before the network is compiled or wrapped for several processes, and tell
    other holders of its parameters, such as a moving average of the weights.

    Args:
        network: the network that ``structure`` was found for, or a copy of it.
        structure: what `find_structure` gave.
        removed: for each group the numbers of the units to remove, from 0.
        optimizer: of the network, whose parameters and state are made smaller; then the network itself is changed.
        inplace: change the network itself; a copy by default.

    Raises:
        InputError: an unknown group or unit, no unit that stays, or a network of another form. Nothing is changed then.

    >>> from polytask.shrink import find_structure
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> remove(network, find_structure(network, torch.randn(1, 4)), {"0": [0, 1, 5]})
    Sequential(
      (0): Linear(in_features=4, out_features=5, bias=True)
      (1): ReLU()
      (2): Linear(in_features=5, out_features=2, bias=True)
    )
    """
    chosen = structure.checked(removed)
    places = structure.places(chosen)
    tensors = _tensors(network)
    keep: dict[str, dict[int, Tensor]] = {}
    for (name, dim), gone in places.items():
        if name not in tensors or tensors[name].ndim <= dim or tensors[name].shape[dim] != len(gone):
            shape = tuple(tensors[name].shape) if name in tensors else "missing"
            raise InputError(
                f"{name} is {shape}, expected {len(gone)} places along dimension {dim}: find its structure again"
            )
        keep.setdefault(name, {})[dim] = torch.nonzero(~gone).flatten()
    network = network if inplace or optimizer is not None else copy.deepcopy(network)
    tensors = _tensors(network)
    new: dict[int, Tensor] = {}
    for name, dims in keep.items():
        old = tensors[name]
        made = _selected(old.detach(), dims)
        if isinstance(old, nn.Parameter):
            made = nn.Parameter(made, old.requires_grad)
            made.grad = None if old.grad is None else _selected(old.grad, dims)
            if optimizer is not None:
                _replace_in(optimizer, old, made, dims)
        new[id(old)] = made
    _put(network, new)
    counters = {}
    for name, units in chosen.items():
        for module, attribute in structure[name].counters:
            owner = network.get_submodule(module)
            setattr(owner, attribute, getattr(owner, attribute) - len(units))
            counters[f"{module}.{attribute}".lstrip(".")] = getattr(owner, attribute)
    before: Shrunk = getattr(network, "shrunk", None) or Shrunk()
    shapes = {name: list(tensor.shape) for name, tensor in _tensors(network).items() if name in keep}
    network.shrunk = Shrunk(  # type: ignore[assignment]
        {**before.shapes, **shapes}, {**before.counters, **counters}, [*before.removed, chosen]
    )
    return network


def resize(network: nn.Module, shrunk: Shrunk) -> None:
    """Make ``network``, as it was built, of the sizes that `remove` left, in place; values are to be loaded.

    Raises `InputError` for a tensor or attribute that the network lacks, or a size that is not smaller.
    """
    tensors, new = _tensors(network), {}
    for name, shape in shrunk.shapes.items():
        old = tensors.get(name)
        if old is None or old.ndim != len(shape) or any(a > b or a < 1 for a, b in zip(shape, old.shape, strict=True)):
            found = "missing" if old is None else str(tuple(old.shape))
            raise InputError(f"{name} is {found}, expected at least {tuple(shape)}, of which channels were removed")
        made: Tensor = old.new_zeros(tuple(shape))
        new[id(old)] = nn.Parameter(made, old.requires_grad) if isinstance(old, nn.Parameter) else made
    _put(network, new)
    for name, value in shrunk.counters.items():
        module, _, attribute = name.rpartition(".")
        try:
            owner = network.get_submodule(module)
        except AttributeError as error:
            raise InputError(f"{name}: no such module, expected one that counts {value} units") from error
        setattr(owner, attribute, value)
    network.shrunk = shrunk  # type: ignore[assignment]


def masked(network: Network, structure: Structure, removed: Removed) -> Network:
    """A copy of ``network`` of the same size, with 0 in all that reads the removed units: `remove` agrees with it."""
    network = copy.deepcopy(network)
    tensors = _tensors(network)
    chosen = structure.checked(removed)
    read = {(m.tensor, m.dim) for name in chosen for m in structure[name].members if m.role in ("in", "both")}
    with torch.no_grad():
        for (name, dim), gone in structure.places(chosen).items():
            if (name, dim) in read:
                tensors[name].index_fill_(dim, torch.nonzero(gone).flatten().to(tensors[name].device), 0)
    return network


def working(network: nn.Module, structure: Structure, inputs: Sequence[Any], named: Mapping[str, Any]) -> Structure:
    """``structure`` with those groups only of which a part can be removed on these inputs as it would be masked."""
    generator = torch.Generator().manual_seed(0)
    tried = {
        group.name: torch.randperm(group.units, generator=generator)[: max(1, group.units // 3)].tolist()
        for group in structure.groups
    }
    if not tried or _trouble(network, structure, tried, inputs, named) is None:
        return structure
    kept, good = dict(structure.kept), []
    for group in structure.groups:
        reason = _trouble(network, structure, {group.name: tried[group.name]}, inputs, named)
        if reason is None:
            good.append(group)
        else:
            kept.setdefault(group.name, reason)
    return replace(structure, groups=tuple(good), kept=kept)


def _trouble(
    network: nn.Module, structure: Structure, removed: Removed, inputs: Sequence[Any], named: Mapping[str, Any]
) -> str | None:
    try:
        with torch.no_grad():
            expected = masked(network, structure, removed).eval()(*inputs, **named)
            found = remove(network, structure, removed).eval()(*inputs, **named)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return f"without some of them it does not run ({reason}): read sizes from tensors, as x.flatten(1) does"
    for a, b in zip(_floating(expected), _floating(found), strict=True):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max().clamp(min=1e-6))):
            return "without some of them it gives other outputs than with masks: an operation depends on their number"
    return None


def _floating(output: Any) -> Iterable[Tensor]:
    return [x.float() for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_buffers()), **dict(network.named_parameters())}


def _selected(tensor: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    for dim, places in keep.items():
        tensor = tensor.index_select(dim, places.to(tensor.device))
    return tensor


def _replace_in(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, keep: Mapping[int, Tensor]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: _selected(value, keep) if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }


def _put(network: nn.Module, new: Mapping[int, Tensor]) -> None:
    """Put new tensors in the place of those with these ids, under all their names, and tell the layers their sizes."""
    for module in network.modules():
        changed = False
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) in new:
                    held[name] = new[id(tensor)]  # type: ignore[assignment]
                    changed = True
        if changed:
            _tell(module)


def _tell(module: Any) -> None:
    """Set a layer's numbers of channels by its tensors' shapes."""
    match module:
        case nn.modules.conv._ConvNd():
            first, second = module.weight.shape[:2]
            if module.groups > 1:
                each = (module.weight.shape[0] if module.transposed else module.out_channels) // module.groups
                if module.transposed:
                    each = module.in_channels // module.groups
                    module.groups = first // each
                    module.in_channels, module.out_channels = first, second * module.groups
                else:
                    module.groups = first // each
                    module.in_channels, module.out_channels = second * module.groups, first
            else:
                module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.batchnorm._BatchNorm() | nn.modules.instancenorm._InstanceNorm():
            module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))
        case nn.GroupNorm():
            size = module.num_channels // module.num_groups
            module.num_channels = len(module.weight)
            module.num_groups = module.num_channels // size
        case nn.Embedding():
            module.embedding_dim = module.weight.shape[1]
        case nn.PReLU():
            module.num_parameters = len(module.weight)
        case _ if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
            module.nx, module.nf = module.weight.shape
