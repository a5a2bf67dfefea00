"""Which parameters of a network are predicted, and where each of them lies in one flat vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest


@dataclass(frozen=True)
class Entry:
    """A predicted parameter.

    Attributes:
        names: its name in the network; several where it is used in several places (tied weights).
        shape: its shape.
        gain: whether it scales what a normalisation gives, and so is 1 in an ordinary network: the ``weight`` of a module
            whose class is called a ``...Norm...``.
    """

    names: tuple[str, ...]
    shape: torch.Size
    gain: bool

    @property
    def numel(self) -> int:
        return self.shape.numel()

    @property
    def fan_in(self) -> int:
        """How many inputs one output has: of ``(out, in, ...)`` the product of all but the first."""
        return self.numel // self.shape[0]

    @property
    def layer(self) -> str:
        """The name of the module that has it."""
        return self.names[0].rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """Predicted parameters in their order in the network; ``P`` numbers in all."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, network: nn.Module, predict: str | Sequence[str] = "*") -> Layout:
        """The layout of the parameters whose names fit the pattern ``predict``, or one of several (``"*.weight"``)."""
        patterns = [predict] if isinstance(predict, str) else list(predict)
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        every = [name for several in names.values() for name in several]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in every):
                raise InputError(f"predict {pattern!r}: no parameter has such a name: {suggest(pattern, every)}")
        norms = [place for place, module in network.named_modules() if "Norm" in type(module).__name__]
        gains = {f"{place}.weight".lstrip(".") for place in norms}
        return cls(
            tuple(
                Entry(tuple(several), parameter.shape, several[0] in gains)
                for parameter, several in names.items()
                if any(fnmatchcase(name, pattern) for name in several for pattern in patterns)
            )
        )

    @property
    def numel(self) -> int:
        """``P``."""
        return sum(entry.numel for entry in self.entries)

    @property
    def layers(self) -> list[int]:
        """How many numbers the predicted parameters of each module have, module by module."""
        sizes: dict[str, int] = {}
        for entry in self.entries:
            sizes[entry.layer] = sizes.get(entry.layer, 0) + entry.numel
        return list(sizes.values())

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``{name: (..., *shape)}`` -> ``(..., P)``."""
        parts = [(weights[entry.names[0]], entry.shape) for entry in self.entries]
        return torch.cat([value.reshape(*value.shape[: value.dim() - len(shape)], -1) for value, shape in parts], -1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """``(..., P)`` -> ``{name: (..., *shape)}``, the inverse of `flatten`."""
        pieces = torch.split(flat, [entry.numel for entry in self.entries], -1)
        each = zip(self.entries, pieces, strict=True)
        return {entry.names[0]: piece.reshape(*flat.shape[:-1], *entry.shape) for entry, piece in each}

    def places(self, network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Every module of the network that has a predicted parameter, and what it calls it."""
        for entry in self.entries:
            for name in entry.names:
                place, _, own = name.rpartition(".")
                yield network.get_submodule(place), own


def named(network: nn.Module, name: str) -> Tensor:
    """The parameter of that name, or what stands for it while ``torch.func.functional_call`` runs."""
    place, _, own = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(place), own)
    return tensor


def refuse_running_statistics(network: nn.Module) -> None:
    """`InputError` where batch normalisation keeps statistics: they would be a mixture of all contexts' networks."""
    for name, module in network.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise InputError(
                f"module {name!r} is {type(module).__name__}, whose running statistics would mix the contexts' networks: "
                "expected GroupNorm, LayerNorm, or track_running_stats=False"
            )
