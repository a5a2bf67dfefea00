"""Channels that a batch norm's factor switches off: priced by what they cost, made sparse in training, removed when dead."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from polytask.cost import Counts, count, macs
from polytask.errors import InputError
from polytask.shrink.folding import fold
from polytask.shrink.groups import Group, Removed, Structure, find_structure
from polytask.shrink.masks import Masks
from polytask.shrink.removal import remove


@dataclass(frozen=True)
class Atoms:
    """The channels of one group, each with a factor that switches it off.

    Attributes:
        group: its name; each of its units is an atom.
        norm: the batch norm whose factors they are, the last one before they are read.
        macs: the multiply-accumulate operations of one atom: its part of all layers that make, filter or read it.
        price: ``macs`` over its mean over all atoms of the network, as it was when they were found.
    """

    group: str
    norm: str
    macs: float
    price: float


class Slimming:
    """A network whose atoms are made sparse while it trains, and removed once they are dead.

    Network slimming (Liu et al., ICCV 2017) with a price for each channel: the penalty is ``sum_b p_b sum_c |gamma_bc|``,
    over the factors of norms ``b``, with ``p_b`` the operations of one channel, normalised so that its mean over all
    channels is 1 (Mei et al., *AtomNAS*, ICLR 2020). Add it to the losses, times a weight such as `ramp` gives.

    An atom is a channel of a group that one layer makes, besides depthwise convolutions, and that a batch norm follows.
    Channels of residual streams, which several layers make, are none.

    Args:
        network: trained by anybody; its atoms are found by one run, and removed in place.
        inputs: one example of what it takes; operations are counted for it, and constants measured on it.
        norms: a pattern of names of batch norms, such as ``"*.depthwise.1"``; others have no atoms.

    Raises `InputError` where no channels are of this kind.

    Attributes:
        structure: of the network now.
        atoms: group by group.
        macs: the network's multiply-accumulate operations now, for the example.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    >>> slimming = Slimming(network, torch.randn(1, 3, 4, 4))
    >>> slimming.atoms
    (Atoms(group='0', norm='1', macs=128.0, price=1.0),)
    >>> float(slimming.penalty().detach())
    8.0
    >>> network[1].weight.data[2:] = 0
    >>> masks = slimming.remove(slimming.dead(network))
    >>> network[0].out_channels, network[4].in_features
    (2, 8)
    """

    def __init__(self, network: nn.Module, *inputs: Any, norms: str = "*") -> None:
        self.network, self.inputs = network, inputs
        self.structure = find_structure(network, *inputs)
        self.atoms = find_atoms(network, self.structure, *inputs, norms=norms)
        self._look()

    def penalty(self) -> Tensor:
        """The priced sum of the factors' magnitudes, a scalar with a gradient; the number of atoms if all factors are 1."""
        norms, prices = self._weighed
        factors = torch.cat([norm.weight for norm in norms])  # type: ignore[misc]
        return (factors.abs() * prices.to(factors)).sum()

    def magnitudes(self, network: nn.Module) -> dict[str, Tensor]:
        """The magnitude of each atom's factor in ``network`` or a copy of it, by group; of several channels the largest."""
        found = {}
        for atoms in self.atoms:
            norm, group = network.get_submodule(atoms.norm), self.structure[atoms.group]
            values, units = norm.weight.detach().abs().float().cpu(), _units(group, atoms.norm)  # type: ignore[operator]
            inside = units >= 0
            found[atoms.group] = torch.zeros(group.units).scatter_reduce(0, units[inside], values[inside], "amax")
        return found

    def dead(self, *networks: nn.Module, threshold: float = 1e-3) -> dict[str, list[int]]:
        """The atoms whose factors are at most ``threshold`` in each of ``networks``; of a group that is dead all but one.

        Args:
            networks: this one, a moving average of it, or both.
            threshold: 1e-3 as in SuperTickets' code (You et al., ECCV 2022).
        """
        each = [self.magnitudes(network) for network in networks]
        found = {}
        for atoms in self.atoms:
            largest = torch.stack([magnitudes[atoms.group] for magnitudes in each]).amax(0)
            dead = largest <= threshold
            dead[largest.argmax()] = False
            if dead.any():
                found[atoms.group] = torch.nonzero(dead).flatten().tolist()
        return found

    def smallest(self, network: nn.Module, budget: float) -> dict[str, list[int]]:
        """The atoms with the smallest factors in ``network``, as few as bring the operations down to ``budget``.

        One of each group stays. Raises `InputError` where that is too much.
        """
        ranked: list[tuple[float, str, int]] = []
        for name, magnitudes in self.magnitudes(network).items():
            order = magnitudes.argsort(stable=True)[:-1].tolist()
            ranked += [(float(magnitudes[unit]), name, unit) for unit in order]
        ranked.sort()

        def left(number: int) -> float:
            return self.macs - self.saving(first(number))

        def first(number: int) -> dict[str, list[int]]:
            found: dict[str, list[int]] = {}
            for _, name, unit in ranked[:number]:
                found.setdefault(name, []).append(unit)
            return found

        # Atoms that share a layer save less together than apart: what they save apart says how many go at least.
        apart = list(accumulate((self._each[name] for _, name, _ in ranked), initial=0.0))
        number = bisect_left(apart, self.macs - budget)
        if number < len(apart) and left(number) > budget:
            number = bisect_left(range(len(apart)), True, lo=number + 1, key=lambda n: left(n) <= budget)
        if number == len(apart):
            least = left(len(ranked))
            raise InputError(f"a budget of {budget:,.0f} operations, and {least:,.0f} are left with one atom in each group")
        return first(number)

    def saving(self, removed: Removed) -> int:
        """The operations that removing these atoms saves."""
        return self.macs - macs(remove(self.network, self.structure, removed), *self.inputs) if removed else 0

    def remove(
        self,
        removed: Removed,
        *,
        optimizer: Optimizer | None = None,
        averages: Sequence[nn.Module] = (),
        masks: Masks | None = None,
    ) -> Masks:
        """Remove atoms from the network in place; what they gave everywhere alike stays in what follows them (`fold`).

        Parameters become new objects: wrap the network for several processes, or compile it, anew. Processes whose factors
        are the same remove the same.

        Args:
            removed: as `dead` and `smallest` give it.
            optimizer: of the network, whose state loses the same places.
            averages: copies of the network, such as ``module`` of ``torch.optim.swa_utils.AveragedModel``, made smaller too.
            masks: with which the network computes (`Masks.effective`; remove outside that block).

        Returns:
            The masks of what is left, none where none are given.
        """
        masks = masks or Masks({})
        for network in (self.network, *averages):
            fold(network, self.structure, removed, *self.inputs, masks=masks)
            own = optimizer if network is self.network else None
            remove(network, self.structure, removed, optimizer=own, inplace=True)
        masks = masks.without(self.structure, removed)
        self.structure = self.structure.after(removed)
        self._look()
        return masks

    def _look(self) -> None:
        """Count the network as it is: its operations and those of each atom; and the price of each factor of its norms."""
        counts = count(self.network, *self.inputs)
        self.macs = counts.total.macs
        self._each = {atoms.group: _operations(self.structure[atoms.group], counts) for atoms in self.atoms}
        prices = [a.price * (_units(self.structure[a.group], a.norm) >= 0) for a in self.atoms]
        self._weighed = [self.network.get_submodule(atoms.norm) for atoms in self.atoms], torch.cat(prices)


def find_atoms(network: nn.Module, structure: Structure, *inputs: Any, norms: str = "*") -> tuple[Atoms, ...]:
    """The atoms of a network, group by group, with their operations for ``inputs``; arguments as for `Slimming`."""
    counts = count(network, *inputs)
    found: list[tuple[Group, str, float]] = []
    for group in structure.groups:
        makers = [m for m in group.members if m.makes and not _depthwise(network.get_submodule(m.layer))]
        scales = [m.layer for m in group.members if m.role == "scale" and fnmatchcase(m.layer, norms)]
        scales = [name for name in scales if isinstance(network.get_submodule(name), _BatchNorm)]
        if len(makers) == 1 and scales:
            found.append((group, scales[-1], _operations(group, counts)))
    if not found:
        raise InputError(
            f"{type(network).__name__}: no channels that one layer makes are followed by a batch norm called {norms!r}, "
            "expected some"
        )
    mean = sum(group.units * each for group, _, each in found) / sum(group.units for group, *_ in found)
    return tuple(Atoms(group.name, norm, each, each / mean) for group, norm, each in found)


def ramp(time: float, value: float, free: float = 0.0, warm: float = 25.0) -> float:
    """A weight over time, in epochs or steps: 0 before ``free``, then in proportion up to ``value`` at ``warm``, then that.

    >>> [ramp(epoch, 1.8e-4, free=5, warm=25) for epoch in (0, 5, 15, 25, 300)]
    [0.0, 0.0, 9e-05, 0.00018, 0.00018]
    """
    if time >= warm:
        return value
    return value * max(time - free, 0) / (warm - free)


def _operations(group: Group, counts: Counts) -> float:
    """Those of one of its units, in all layers that make, filter or read it."""
    total = 0.0
    for member in group.members:
        if member.makes or member.role == "in":
            share = float((member.units >= 0).sum()) / len(member.units)
            total += counts.modules.get(member.layer, counts.total).macs * share / group.units
    return total


def _units(group: Group, norm: str) -> Tensor:
    """Which atom each factor of a norm belongs to, -1 for none."""
    return next(member.units for member in group.members if member.role == "scale" and member.layer == norm)


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1
