"""Weights that are left out one by one: masks by score, schedules, training under masks, and a sparse file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from polytask.errors import InputError
from polytask.files import replacing
from polytask.shrink.groups import Removed, Structure

Scope: TypeAlias = Literal["global", "layer"]
"""Whether scores are compared over all weights together, or within each parameter."""

_FORMAT = "polytask-sparse-1"


@dataclass(frozen=True, eq=False)
class Masks:
    """Which weights of a network are kept: booleans of the parameters' shapes, by their names.

    ``a | b`` keeps what either keeps, ``a & b`` what both do; a parameter that one does not name is whole there.

    >>> network = nn.Linear(4, 1, bias=False)
    >>> _ = network.weight.data.copy_(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
    >>> masks = magnitude_masks(network, 0.5)
    >>> masks.keep["weight"], masks.sparsity
    (tensor([[False,  True,  True, False]]), 0.5)
    >>> masks.apply(network)
    >>> network.weight.tolist()
    [[0.0, -3.0, 2.0, 0.0]]
    """

    keep: Mapping[str, Tensor]

    @property
    def sparsity(self) -> float:
        """The share of the named parameters' weights that are zero."""
        total = sum(mask.numel() for mask in self.keep.values())
        return 1 - sum(int(mask.sum()) for mask in self.keep.values()) / max(total, 1)

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Set the other weights of ``network`` to zero, in place."""
        for parameter, mask in self._pairs(network):
            parameter.masked_fill_(~mask.to(parameter.device), 0)

    @contextmanager
    def held(self, network: nn.Module) -> Iterator[None]:
        """Keep the other weights of ``network`` at zero through every step of whatever optimizers run in this block.

        Their gradients are zero for the optimizer, and what it does to them all the same, by momentum, is taken back. A
        gradient's norm that is clipped before the step is over all weights.
        """
        self.apply(network)
        mine = {id(parameter) for parameter, _ in self._pairs(network)}

        def owns(optimizer: Any) -> bool:
            return any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"])

        def before(optimizer: Any, *_: Any) -> None:
            if owns(optimizer):
                for parameter, mask in self._pairs(network):
                    if parameter.grad is not None:
                        parameter.grad.masked_fill_(~mask.to(parameter.device), 0)

        def after(optimizer: Any, *_: Any) -> None:
            if owns(optimizer):
                self.apply(network)

        hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def effective(self, network: nn.Module) -> Iterator[None]:
        """Within the block ``network`` computes with the weights that are kept alone, and stores all of them as they are.

        What the network computes gives the others a gradient of exactly 0; decay and momentum may still move their stored
        values, by which masks that are chosen later can bring them back, where `held` would have set them to zero.
        Parameters, their names and optimizers are what they were: modules that own masked parameters have a class of their
        own meanwhile, which reads them masked, under autocast, in a wrapper for several processes and when compiled. Trace
        the network (`find_structure`) and remove channels outside the block.

        Raises `InputError` for masks that do not fit, and for recurrent layers, which do not read weights by their names.
        """
        hidden = {id(parameter): ~mask.to(parameter.device) for parameter, mask in self._pairs(network)}
        owners = []
        for name, module in network.named_modules():
            own = {key: hidden[id(p)] for key, p in module._parameters.items() if id(p) in hidden}
            if own and isinstance(module, nn.RNNBase):
                raise InputError(f"{name}: {type(module).__name__} takes no effective masks: use Masks.held")
            if own:
                owners.append((module, own))
        before = [(module, type(module)) for module, _ in owners]
        for module, own in owners:
            readers = {key: property(partial(_read, key, hidden)) for key, hidden in own.items()}
            module.__class__ = type(type(module).__name__, (type(module),), readers)
        try:
            yield
        finally:
            for module, kind in before:
                module.__class__ = kind

    def without(self, structure: Structure, removed: Removed) -> Masks:
        """The masks of the network that lost these units of its groups, as `remove` takes them out."""
        keep = dict(self.keep)
        for (name, dim), gone in structure.places(removed).items():
            if name in keep:
                keep[name] = keep[name].index_select(dim, torch.nonzero(~gone).flatten().to(keep[name].device))
        return Masks(keep)

    def __or__(self, other: Masks) -> Masks:
        return Masks({name: mask | other.keep[name] for name, mask in self.keep.items() if name in other.keep})

    def __and__(self, other: Masks) -> Masks:
        both = {name: mask & other.keep[name] if name in other.keep else mask for name, mask in self.keep.items()}
        return Masks({**other.keep, **both})

    def _pairs(self, network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        known = dict(network.named_parameters())
        for name, mask in self.keep.items():
            if name not in known or known[name].shape != mask.shape:
                found = tuple(known[name].shape) if name in known else "missing"
                raise InputError(f"mask of {name}: {tuple(mask.shape)}, and the parameter is {found}")
        return [(known[name], mask) for name, mask in self.keep.items()]


def maskable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that masks are for, by name: those of two dimensions or more; not biases, norms and other vectors."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.ndim > 1}


def magnitude_masks(network: nn.Module, sparsity: float, scope: Scope = "global") -> Masks:
    """Masks that leave out the weights of smallest magnitude; biases, norms and other vectors are whole.

    Args:
        network: its parameters of two dimensions or more are masked.
        sparsity: the share to leave out, 0 up to 1: ``round(sparsity * weights)`` exactly; of equal magnitudes the first.
        scope: over all weights together, or of each parameter the same share.
    """
    return masks_by_score({name: weight.detach().abs() for name, weight in maskable(network).items()}, sparsity, scope)


def masks_by_score(
    scores: Mapping[str, Tensor], sparsity: float, scope: Scope = "global", within: Masks | None = None
) -> Masks:
    """Masks that leave out the weights of smallest score.

    Args:
        scores: of each weight, by the parameter's name, in its shape.
        sparsity, scope: as for `magnitude_masks`.
        within: what these masks leave out goes first, whatever its score.
    """
    for name, mask in (within.keep if within is not None else {}).items():
        scores = {**scores, name: scores[name].masked_fill(~mask.to(scores[name].device), -torch.inf)}
    if not 0 <= sparsity <= 1 or scope not in ("global", "layer"):
        raise InputError(f"sparsity {sparsity}, scope {scope!r}: expected 0 up to 1, and 'global' or 'layer'")
    flat = {name: values.detach().flatten().cpu() for name, values in scores.items()}
    if scope == "layer":
        return Masks({name: _largest(values, sparsity).reshape(scores[name].shape) for name, values in flat.items()})
    if not flat:
        return Masks({})
    every = _largest(torch.cat([values.float() for values in flat.values()]), sparsity)
    parts = torch.split(every, [len(values) for values in flat.values()])
    return Masks({name: part.reshape(scores[name].shape) for name, part in zip(flat, parts, strict=True)})


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """The sparsity after ``step`` of ``steps`` steps of gradual pruning, ``final + (initial - final) (1 - step / steps)^3``
    (Zhu and Gupta, *To prune, or not to prune*, 2017, Equation 1); ``final`` from then on.

    >>> [round(cubic(step, 4, 0.8), 4) for step in (0, 1, 2, 4, 9)]
    [0.0, 0.4625, 0.7, 0.8, 0.8]
    """
    left = 1 - min(max(step, 0), steps) / steps if steps > 0 else 0.0
    return final + (initial - final) * left**3


def stepwise(epoch: int, interval: int = 25, final: float = 0.9, parts: int = 10) -> float:
    """The sparsity after an epoch, counted from 0, of pruning in equal parts.

    ``min(floor((epoch + 1) / interval) / parts, final)``, as in SuperTickets' code (You et al., ECCV 2022).

    >>> [stepwise(epoch) for epoch in (23, 24, 49, 74, 224, 349)]
    [0.0, 0.1, 0.2, 0.3, 0.9, 0.9]
    """
    return min((epoch + 1) // interval / parts, final)


def save_sparse(network: nn.Module, masks: Masks, path: Path | str) -> None:
    """Write the tensors of ``network`` to a safetensors file: of masked parameters a bit for each weight, and the values
    that are kept. The file is whole or absent."""
    write_sparse(network.state_dict(), masks, path, {})


def write_sparse(state: Mapping[str, Tensor], masks: Masks, path: Path | str, about: Mapping[str, str]) -> None:
    """Write tensors by name as `save_sparse` does, and ``about`` beside them."""
    tensors: dict[str, Tensor] = {}
    shapes = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if name in masks.keep:
            kept = masks.keep[name].cpu()
            tensors[f"{name}:mask"] = torch.from_numpy(np.packbits(kept.numpy()))
            tensors[f"{name}:values"] = value[kept]
            shapes[f"{name}:shape"] = ",".join(map(str, value.shape))
        else:
            tensors[name] = value.clone()
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {**about, "format": _FORMAT, **shapes})


def load_sparse(path: Path | str) -> tuple[dict[str, Tensor], Masks]:
    """The tensors that `save_sparse` wrote, with zeros where they were masked, and the masks.

    Raises `InputError` for a file that is missing, truncated, or of another kind.
    """
    return read_sparse(path)[:2]


def read_sparse(path: Path | str) -> tuple[dict[str, Tensor], Masks, dict[str, str]]:
    """As `load_sparse`, and what else the file says of itself."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    if about.get("format") != _FORMAT:
        raise InputError(f"{path}: format {about.get('format')!r}, expected {_FORMAT!r}, as save_sparse writes it")
    state, keep = {}, {}
    for name, value in found.items():
        base, _, part = name.rpartition(":")
        if part == "mask":
            shape = tuple(int(size) for size in about[f"{base}:shape"].split(","))
            bits = np.unpackbits(value.numpy(), count=int(np.prod(shape)))
            mask = torch.from_numpy(bits.astype(bool)).reshape(shape)
            values = found[f"{base}:values"]
            if int(mask.sum()) != len(values):
                raise InputError(f"{path}: {base} has {len(values)} values for {int(mask.sum())} places")
            keep[base] = mask
            state[base] = torch.zeros(shape, dtype=values.dtype).masked_scatter(mask, values)
        elif part != "values" or not base:
            state[name] = value
    return state, Masks(keep), about


def _read(name: str, hidden: Tensor, module: nn.Module) -> Tensor:
    """What a module with effective masks has as its parameter."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.masked_fill(hidden.to(parameter.device), 0)


def _largest(values: Tensor, sparsity: float) -> Tensor:
    """Booleans: all but ``round(sparsity * n)`` smallest values."""
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[values.argsort(stable=True)[: round(sparsity * len(values))]] = False
    return keep
