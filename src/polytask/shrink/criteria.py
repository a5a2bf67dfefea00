"""Which units of a group matter least: a score for each unit, the smallest go first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.register import Register
from polytask.shrink.groups import Group, Member, Structure

Criterion: TypeAlias = Callable[[nn.Module, Group], Tensor]
"""From a network and a group to a score for each of its units, ``(units,)``."""

criteria: Register[Criterion] = Register("criterion")
"""Criteria by name; anything else that is a `Criterion` serves as well."""


@criteria.add("l1")
def l1(network: nn.Module, group: Group) -> Tensor:
    """The mean magnitude of the weights that make a unit, summed over the layers that do: for single layers the order of the
    L1 norms of filters (Li et al., *Pruning filters for efficient convnets*, ICLR 2017)."""
    return torch.stack([_means(w.abs(), member) for w, member in _makers(network, group)]).sum(0)


@criteria.add("l2")
def l2(network: nn.Module, group: Group) -> Tensor:
    """The root mean square of the weights that make a unit, summed over the layers that do."""
    return torch.stack([_means(w.square(), member).sqrt() for w, member in _makers(network, group)]).sum(0)


@criteria.add("bn_scale")
def bn_scale(network: nn.Module, group: Group) -> Tensor:
    """The mean magnitude of a unit's factors in norms, summed over the norms (Liu et al., *Learning efficient convolutional
    networks through network slimming*, ICCV 2017). `InputError` for a group without a norm that has factors."""
    members = [member for member in group.members if member.role == "scale"]
    if not members:
        raise InputError(f"group {group.name!r}: none of its layers is followed by a norm with factors, expected one")
    return torch.stack([_means(_tensor(network, member).abs(), member) for member in members]).sum(0)


@criteria.add("random")
def random(network: nn.Module, group: Group) -> Tensor:
    """Uniform random scores, of torch's random numbers: what a criterion has to be better than."""
    return torch.rand(group.units)


def weakest(network: nn.Module, group: Group, count: int, criterion: str | Criterion = "l1") -> list[int]:
    """The ``count`` units of a group with the smallest scores, the least first; of equal scores the first unit."""
    score = criteria[criterion] if isinstance(criterion, str) else criterion
    with torch.no_grad():
        scores = score(network, group).detach().float().cpu()
    if scores.shape != (group.units,):
        raise InputError(f"criterion: scores {tuple(scores.shape)} of group {group.name!r}, expected ({group.units},)")
    return [int(unit) for unit in scores.argsort(stable=True)[:count]]


def uniform(
    network: nn.Module, structure: Structure, ratio: float, criterion: str | Criterion = "l1"
) -> dict[str, list[int]]:
    """The weakest units of every group in the same ``ratio`` (0 up to 1), of each rounded down; one unit stays at least."""
    return {
        group.name: units
        for group in structure.groups
        if (units := weakest(network, group, min(int(ratio * group.units + 1e-9), group.units - 1), criterion))
    }


def overall(
    network: nn.Module, structure: Structure, ratio: float, criterion: str | Criterion = "l1"
) -> dict[str, list[int]]:
    """The units with the smallest scores of all groups together, ``ratio`` (0 up to 1) of all; one of each group stays.

    Scores are divided by their mean over the group, so that groups whose weights are small do not vanish first.
    """
    score = criteria[criterion] if isinstance(criterion, str) else criterion
    ranked: list[tuple[float, str, int]] = []
    with torch.no_grad():
        for group in structure.groups:
            scores = score(network, group).detach().float().cpu()
            order = scores.argsort(stable=True)[:-1].tolist()
            ranked += [(float(scores[unit] / scores.mean().clamp(min=1e-12)), group.name, unit) for unit in order]
    count = int(ratio * sum(group.units for group in structure.groups) + 1e-9)
    found: dict[str, list[int]] = {}
    for _, name, unit in sorted(ranked)[:count]:
        found.setdefault(name, []).append(unit)
    return found


def _makers(network: nn.Module, group: Group) -> Sequence[tuple[Tensor, Member]]:
    return [(_tensor(network, member), member) for member in group.members if member.makes]


def _tensor(network: nn.Module, member: Member) -> Tensor:
    module = network.get_submodule(member.layer)
    tensor = getattr(module, member.tensor.rpartition(".")[2])
    assert isinstance(tensor, Tensor)
    return tensor.float()


def _means(values: Tensor, member: Member) -> Tensor:
    """The mean over each unit's entries, ``(units,)``."""
    rows = values.movedim(member.dim, 0).flatten(1).mean(1) if values.ndim > 1 else values
    units = member.units.to(values.device)
    inside, count = units >= 0, int(units.max()) + 1
    total = torch.zeros(count, device=values.device).index_add(0, units[inside], rows[inside])
    return total / torch.bincount(units[inside], minlength=count)
