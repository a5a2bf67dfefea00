"""What sharpness-aware methods share: how far to move the weights, there and back, and what that leaves alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook

from polytask.balance.engine.graph import leaves
from polytask.errors import InputError

Move = Callable[[float | Sequence[float], Sequence[Tensor]], None]


def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], adaptive: bool) -> tuple[list[Tensor], float]:
    """The direction of a perturbation, and its radius as it is: ``v`` and ``|v|`` of the gradient ``v`` of all ``weights``.

    When ``adaptive``, ``w^2 v`` and ``||w| v|``, elementwise with the weights ``w``. The radius is 0 where the gradient
    vanishes, and not finite where it is not. Where squares would overflow or vanish, it is found in units of the largest
    entry, so that no scale of the losses makes it so.
    """
    scaled = [w.detach().abs() * g for w, g in zip(weights, gradients, strict=True)] if adaptive else list(gradients)
    filled = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in scaled if g.numel()]
    if not filled:
        return scaled, 0.0
    norm = float(torch.stack([g.norm() for g in filled]).norm())
    if 1e-12 < norm < 1e12:
        return _times(scaled, weights, adaptive), norm
    largest = torch.stack([g.abs().amax() for g in filled]).amax()
    size = norm = float(largest)
    if 0 < size < float("inf"):
        norm *= float(torch.stack([(g / largest).norm() for g in filled]).norm())
    return _times(scaled, weights, adaptive), norm


def _times(scaled: list[Tensor], weights: Sequence[Tensor], adaptive: bool) -> list[Tensor]:
    return [w.detach().abs() * g for w, g in zip(weights, scaled, strict=True)] if adaptive else scaled


def perturbation(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool = False
) -> list[Tensor] | None:
    """How far to move ``weights``: to the worst point of a ball of radius ``rho`` around them, to first order.

    ``e = rho v / |v|`` with the norm of all ``gradients`` ``v`` together (Foret, Kleiner, Mobahi and Neyshabur,
    *Sharpness-aware minimization for efficiently improving generalization*, ICLR 2021, Eq. 2); when ``adaptive``, ``e =
    rho w^2 v / ||w| v|`` elementwise, so that ``|e / w| = rho`` (Kwon, Kim, Park and Choi, *ASAM: adaptive
    sharpness-aware minimization for scale-invariant learning of deep neural networks*, ICML 2021). ``None`` where the
    gradient vanishes or is not finite.
    """
    direction, norm = ascent(weights, gradients, adaptive)
    return [d * (rho / norm) for d in direction] if 0 < norm < float("inf") else None


@contextmanager
def restored(parameters: Sequence[Tensor]) -> Iterator[Move]:
    """A block in which ``parameters`` may move, and which leaves them with the bits that they had.

    Gives a function that adds a factor, or one for each, times steps to them. Losses that were computed before can be
    differentiated after the block, as their weights are again what they were.
    """
    before = [p.detach().clone() for p in parameters]

    def move(factor: float | Sequence[float], steps: Sequence[Tensor]) -> None:
        factors = [factor] * len(steps) if isinstance(factor, float) else factor
        # Through .data, which tells autograd nothing. Half precision copies of weights are no longer theirs.
        for p, factor, step in zip(parameters, factors, steps, strict=True):
            p.data.add_(step.to(p.dtype), alpha=factor)
        torch.clear_autocast_cache()

    try:
        yield move
    finally:
        for p, old in zip(parameters, before, strict=True):
            p.data.copy_(old)
        torch.clear_autocast_cache()


@contextmanager
def moved(parameters: Sequence[Tensor], steps: Sequence[Tensor], factor: float | Sequence[float] = 1.0) -> Iterator[None]:
    """A factor, or one for each, times ``steps`` is added to ``parameters`` inside the block, as in `restored`."""
    with restored(parameters) as move:
        move(factor, steps)
        yield


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Batch and instance norms inside the block normalise as ever; their running statistics are put back at its end.

    No pass is skipped, and a module's momentum does not matter. The block has to include the backward pass, which may run a
    module again (checkpointing). Modules that run in other threads are left alone.
    """
    kept: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
    owner = threading.get_ident()

    def keep(module: nn.Module, args: Any) -> None:
        if isinstance(module, _NormBase) and id(module) not in kept and threading.get_ident() == owner:
            buffers = {name: b.clone() for name, b in module.named_buffers(recurse=False)}
            kept[id(module)] = module, buffers

    handle = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        for module, buffers in kept.values():
            for name, value in buffers.items():
                module.get_buffer(name).data.copy_(value)  # through .data: graphs from before the block stay good


def reached(loss: Tensor) -> list[nn.Parameter]:
    """The parameters that ``loss`` depends on."""
    return [leaf for leaf in leaves([loss]) if isinstance(leaf, nn.Parameter)]


class Randomness:
    """The states of the random generators that a pass draws from, to let another pass draw the same."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        device = next((p.device for p in parameters if p.device.type == "cuda"), None)
        self.device = device
        self.states = [torch.get_rng_state()] + ([] if device is None else [torch.cuda.get_rng_state(device)])

    def restore(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.device is not None:
            torch.cuda.set_rng_state(self.states[1], self.device)


def radius(name: str, value: float) -> float:
    """``value``, or `InputError` when it is no radius."""
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} {value}: expected a finite number >= 0")
    return value
