"""What removed units added everywhere alike, kept: in the means of batch norms behind them, and in biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from polytask.shrink.groups import Removed, Structure
from polytask.shrink.masks import Masks
from polytask.shrink.removal import masked


@torch.no_grad()
def fold(network: nn.Module, structure: Structure, removed: Removed, *inputs: Any, masks: Masks | None = None) -> None:
    """Move what units add on average to what comes behind them, before they are removed; ``network`` is changed in place.

    A channel whose norm has the factor 0 gives the same value at every place, ``act(beta)``, which the layers that read it
    turn into a constant for each of their channels. In training mode a batch norm behind them takes it off by itself; in
    evaluation mode it does so once its running mean lacks that constant, and a layer that has a bias can hold it there.
    The network is run with the units and without, and each such place takes the mean of the difference that reaches it, in
    the order in which they run. That is exact for constants; where zero padding makes a constant differ at the border, or
    where neither a batch norm nor a bias comes before something that is not linear, the rest of the difference stays.

    Args:
        network: that ``structure`` was found for, or a copy of it.
        structure, removed: as for `polytask.shrink.remove`, which is called afterwards.
        inputs: examples, one or two; constants need no more.
        masks: of its weights, where it computes with some of them only.
    """
    whole = copy.deepcopy(network)
    if masks is not None:
        masks.apply(whole)
    cut = masked(whole, structure, removed).eval()
    groups = [structure[name] for name in structure.checked(removed)]
    readers = {member.layer for group in groups for member in group.members if member.role in ("in", "both")}
    seen: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, tensor: Tensor) -> None:
        seen.setdefault(name, tensor.clone())

    def correct(name: str, module: nn.Module, tensor: Tensor) -> None:
        if name not in seen:
            return
        along = 1 if isinstance(module, _BatchNorm | _ConvNd) else tensor.ndim - 1
        excess = (tensor - seen.pop(name)).mean([dim for dim in range(tensor.ndim) if dim != along])
        if isinstance(module, _BatchNorm):
            module.running_mean.add_(excess)  # type: ignore[union-attr]
        else:
            module.bias.sub_(excess)  # type: ignore[operator]
            tensor -= excess.reshape([-1 if dim == along else 1 for dim in range(tensor.ndim)])

    for copied, look in ((whole.eval(), record), (cut, correct)):
        with _watched(copied, readers, look):
            copied(*inputs)
    for name, module in cut.named_modules():
        for kind in ("running_mean", "bias"):
            value, place = getattr(module, kind, None), getattr(network.get_submodule(name), kind, None)
            if isinstance(value, Tensor) and isinstance(place, Tensor) and (kind == "running_mean" or name in readers):
                place.copy_(value)


@contextmanager
def _watched(network: nn.Module, readers: set[str], look: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Show ``look`` what goes into batch norms, and what comes out of those readers that have a bias."""
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(lambda module, args, name=name: look(name, module, args[0])))
        elif name in readers and getattr(module, "bias", None) is not None:
            handles.append(module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
