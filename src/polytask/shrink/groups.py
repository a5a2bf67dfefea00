"""Groups of channels that can be removed from a network, found by running it once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.shrink.channels import varies
from polytask.shrink.tracing import Tracer, traced

Role: TypeAlias = Literal["out", "in", "both", "scale", "beside"]
Removed: TypeAlias = Mapping[str, Iterable[int]]
"""What is removed: by the group's name the numbers of its units."""


@dataclass(frozen=True, eq=False)
class Member:
    """A dimension of a parameter or buffer along which the group's channels are.

    Attributes:
        tensor: its name in the network.
        dim: the dimension.
        role: ``"out"`` for a weight that makes the channels, ``"in"`` for one that reads them, ``"both"`` for a tied weight
            that does either, ``"scale"`` for the factor of a norm, ``"beside"`` for what else belongs to a channel: a bias,
            a norm's statistics, an embedding of positions.
        units: int64, as long as the dimension: which unit of the group each place belongs to, -1 for none of it.
    """

    tensor: str
    dim: int
    role: Role
    units: Tensor

    @property
    def layer(self) -> str:
        """The module that the tensor belongs to, ``""`` for the network itself."""
        return self.tensor.rpartition(".")[0]

    @property
    def makes(self) -> bool:
        """Whether it is a weight that makes the channels."""
        return self.role in ("out", "both")


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that several layers share, which are removed from all of them at once.

    Attributes:
        name: the first layer that makes the channels.
        units: how many there are to choose from: a unit is a channel, or the channels that go together, such as a head of
            attention or a group of a grouped convolution or norm.
        members: where the channels are.
        counters: attributes of modules that say how many units there are, such as an attention's number of heads.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    counters: tuple[tuple[str, str], ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules that make the channels."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.makes))

    @property
    def channels(self) -> int:
        """How many channels the first of `layers` makes for the group."""
        first = next(member for member in self.members if member.makes)
        return int((first.units >= 0).sum())

    def __repr__(self) -> str:
        return f"Group({self.name!r}, units={self.units}, channels={self.channels}, layers={list(self.layers)})"


@dataclass(frozen=True, eq=False)
class Structure:
    """What can be removed from a network, and why the rest cannot.

    It names tensors and holds none, so that it is of use for copies of the network, and after training.

    Attributes:
        groups: in the order in which they run.
        kept: for each layer whose channels are kept the reason.
    """

    groups: tuple[Group, ...]
    kept: Mapping[str, str]

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        if name in self.kept:
            raise InputError(f"the channels of {name!r} cannot be removed: {self.kept[name]}")
        raise InputError(f"no group {name!r}: {suggest(name, [group.name for group in self.groups])}")

    def checked(self, removed: Removed) -> dict[str, list[int]]:
        """``removed`` with its numbers sorted; `InputError` for unknown groups and units, and where no unit would stay."""
        found = {}
        for name, numbers in removed.items():
            group, units = self[name], sorted({int(number) for number in numbers})
            wrong = [unit for unit in units if not 0 <= unit < group.units]
            if wrong:
                raise InputError(f"group {name!r}: unit {wrong[0]}, expected numbers from 0 to {group.units - 1}")
            if len(units) == group.units:
                raise InputError(f"group {name!r}: all {group.units} units are to be removed, expected one to stay at least")
            if units:
                found[name] = units
        return found

    def places(self, removed: Removed) -> dict[tuple[str, int], Tensor]:
        """For each tensor and dimension that loses some a mask over its places, true where one is removed."""
        masks: dict[tuple[str, int], Tensor] = {}
        for name, units in self.checked(removed).items():
            for member in self[name].members:
                gone = torch.isin(member.units, torch.tensor(units))
                key = member.tensor, member.dim
                masks[key] = masks[key] | gone if key in masks else gone
        return masks

    def after(self, removed: Removed) -> Structure:
        """The structure of the network that lost these units: what stays is numbered anew, in the same order."""
        gone, chosen = self.places(removed), self.checked(removed)
        groups = []
        for group in self.groups:
            number = torch.full((group.units + 1,), -1)  # the last is for places of no unit, -1
            left = torch.ones(group.units, dtype=torch.bool)
            left[chosen.get(group.name, [])] = False
            number[:-1][left] = torch.arange(int(left.sum()))
            members = tuple(
                replace(m, units=number[m.units[~gone[m.tensor, m.dim]] if (m.tensor, m.dim) in gone else m.units])
                for m in group.members
            )
            groups.append(replace(group, units=int(left.sum()), members=members))
        return replace(self, groups=tuple(groups))


def find_structure(network: nn.Module, *inputs: Any, **named: Any) -> Structure:
    """The groups of channels that can be removed from ``network``, found by running ``network(*inputs, **named)`` once.

    Any module can be traced whose forward runs: what it calls is followed through torch's operations, residual sums,
    concatenations, grouped and depthwise convolutions, layers that are shared or tied, and attention by
    ``scaled_dot_product_attention``, of which whole heads are removed. Channels are kept whole that reach the network's
    output, a norm that averages over them (``nn.LayerNorm``), recurrent layers, ``nn.MultiheadAttention``, or an operation
    that is not known. What is found is tried out: a third of the units is removed from a copy, which has to give on these
    inputs what the masked network gives; a group with which it does not, as where code has a number of channels written
    down, is kept.

    Args:
        network: is not changed; it runs in evaluation mode without gradients.
        inputs, named: an example of what it takes; one or two examples are enough.

    Raises:
        InputError: the network does not run on the inputs, or no channels can be removed; the message names an operation or
            a reason.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    >>> find_structure(network, torch.randn(1, 3, 4, 4)).groups
    (Group('0', units=8, channels=8, layers=['0']),)
    """
    from polytask.shrink.removal import working

    structure = _structure(network, traced(network, *inputs, **named))
    structure = working(network, structure, inputs, named)
    if not structure.groups:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(structure.kept.items())[:3])
        raise InputError(
            f"{type(network).__name__}: no channels can be removed ({reasons or 'no layer makes some'}): expected layers "
            "whose channels only go through operations that polytask.shrink.rules knows"
        )
    return structure


def _structure(network: nn.Module, tracer: Tracer) -> Structure:
    names = {id(tensor): name for name, tensor in (*network.named_buffers(), *network.named_parameters())}
    roots, frozen = tracer.channels.solve()
    members = {place: (roots[ids.numpy()], role) for place, (ids, role) in tracer.members.items()}
    for key, (tensor, ids) in tracer.elements.items():
        found = roots[ids.numpy()]
        dims = [dim for dim in range(found.ndim) if varies(found, dim)]
        if len(dims) == 1:
            members[key, dims[0]] = (np.moveaxis(found, dims[0], -1).reshape(-1, found.shape[dims[0]])[0], "beside")
        else:
            frozen |= dict.fromkeys(np.unique(found).tolist(), f"{names[id(tensor)]} differs in several dimensions") | frozen
    places: dict[int, list[tuple[int, int]]] = {}
    for place, (found, _) in members.items():
        for root in np.unique(found).tolist():
            if root not in frozen:
                places.setdefault(root, []).append(place)
    alike: dict[tuple[tuple[int, int], ...], set[int]] = {}
    for root, where in places.items():
        alike.setdefault(tuple(where), set()).add(root)
    groups: dict[str, Group] = {}
    for shared, units in alike.items():
        made = next((place for place in shared if members[place][1] in ("out", "both")), None)
        if made is None or len(units) < 2:
            continue
        order = [root for root in dict.fromkeys(members[made][0].tolist()) if root in units]
        number = np.full(roots.max() + 1, -1)
        number[order] = np.arange(len(order))
        found_members = tuple(
            Member(names[key], dim, members[key, dim][1], torch.from_numpy(number[members[key, dim][0]]))  # type: ignore[arg-type]
            for key, dim in shared
        )
        layer = names[made[0]].rpartition(".")[0]
        same = sum(name.partition("#")[0] == layer for name in groups)
        attentions = [heads for heads in tracer.heads if units & set(roots[heads.ids.numpy()].tolist())]
        counters = dict.fromkeys(c for heads in attentions for c in _counters(network, heads.module, len(heads.ids)))
        name = f"{layer}#{same + 1}" if same else layer
        groups[name] = Group(name, len(order), found_members, tuple(counters))
    kept: dict[str, str] = {}
    for (key, _), (found, role) in members.items():
        reason = next((frozen[root] for root in found.tolist() if root in frozen), None)
        if role in ("out", "both") and reason is not None:
            kept.setdefault(names[key].rpartition(".")[0], reason)
    return Structure(tuple(groups.values()), kept)


_COUNTERS = ("heads", "num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "num_key_value_heads")


def _counters(network: nn.Module, module: str, heads: int) -> Sequence[tuple[str, str]]:
    owner = network.get_submodule(module)
    return [(module, name) for name in _COUNTERS if getattr(owner, name, None) == heads]
