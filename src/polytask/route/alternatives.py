"""Alternatives: big, small or no module at all, chosen for each token; and a budget for what is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.route.dispatch import dispatch

Policy: TypeAlias = Literal["random", "router"]


class Alternatives(nn.Module):
    """One of several modules for each token, such as ``{"big": ..., "small": ..., "skip": None}``.

    Alizadeh et al., *Duo-LLM: a framework for studying adaptive computation in large language models*, 2024. By its policy
    each token

    - ``"random"``: draws a module evenly, so that they become interchangeable in training;
    - ``"router"``: has them mixed while training, ``sum_x P_x F_x(h)`` with ``P = softmax(sharpness * router(h))``, and in
      evaluation mode goes through the one of largest ``P`` alone, see `polytask.route.dispatch`.

    Or, within `choosing`, through the module that it is given. With ``None``, which gives 0, and an addition around it,
    whole blocks are skipped: ``x + alternatives(x)``.

    Args:
        modules: by name, with outputs of one shape.
        router: from ``(*rows, ...)`` to ``(*rows, choices)``; needed for the policy ``"router"``, which it makes the policy.
        dims: how many leading dimensions choose: 2, the default, for tokens ``(N, T)``, 1 for whole examples.

    Attributes:
        policy: may be changed at any time.
        sharpness: ``tau``, 1 at first; raise it in training, and the mixture comes near to the choice.

    >>> layer = Alternatives({"big": nn.Linear(4, 4), "skip": None}, router=nn.Linear(4, 2)).eval()
    >>> layer(torch.randn(2, 5, 4)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, modules: Mapping[str, nn.Module | None], router: nn.Module | None = None, dims: int = 2) -> None:
        super().__init__()
        if not any(module is not None for module in modules.values()) or dims < 1:
            raise InputError(f"alternatives {list(modules)}, dims {dims}: expected at least one module and one dimension")
        self.names = tuple(modules)
        self.choices = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})
        self.router, self.dims, self.sharpness = router, dims, 1.0
        self.policy: Policy = "random" if router is None else "router"

    def of(self, name: str) -> nn.Module | None:
        """The module called ``name``."""
        if name not in self.names:
            raise InputError(f"unknown alternative {name!r}: {suggest(name, self.names)}")
        module: nn.Module | None = dict(self.choices.items()).get(name)
        return module

    def forward(self, x: Tensor) -> Tensor:
        """``(*rows, ...)`` to the outputs of what each row chose."""
        rows, modules = x.shape[: self.dims], [self.of(name) for name in self.names]
        if (given := (_given.get() or {}).get(self)) is not None:
            choice = torch.as_tensor(given, device=x.device).expand(rows)
            return dispatch(x, choice, modules)
        if self.policy == "random":
            return dispatch(x, torch.randint(len(modules), rows, device=x.device), modules)
        if self.router is None:
            raise InputError("alternatives: policy 'router', but there is no router")
        chances = (self.sharpness * self.router(x).float()).softmax(-1)
        if chances.shape != (*rows, len(modules)):
            raise InputError(f"alternatives: a router of {tuple(chances.shape)}, expected {(*rows, len(modules))}")
        if (seen := _watched.get()) is not None:
            seen.append(chances)
        if not self.training:
            return dispatch(x, chances.argmax(-1), modules)
        parts = [(chances[..., k], module(x)) for k, module in enumerate(modules) if module is not None]
        mixed = [weight.to(part.dtype).reshape(*rows, *[1] * (part.ndim - self.dims)) * part for weight, part in parts]
        return torch.stack(mixed).sum(0)


_given: ContextVar[Mapping[Alternatives, Tensor | int] | None] = ContextVar("_given", default=None)
_watched: ContextVar[list[Tensor] | None] = ContextVar("_watched", default=None)


def alternatives_of(model: nn.Module) -> list[Alternatives]:
    """All `Alternatives` of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Alternatives)]


@contextmanager
def choosing(model: nn.Module, pattern: Sequence[Tensor | int]) -> Iterator[None]:
    """Within the block each `Alternatives` of ``model`` takes what ``pattern`` says: a place for all tokens, or for each.

    Blocks nest, and hold for their own thread.

    >>> layer = Alternatives({"big": nn.Identity(), "skip": None})
    >>> with choosing(layer, [torch.tensor([[0, 1]])]):
    ...     layer(torch.ones(1, 2, 1)).flatten().tolist()
    [1.0, 0.0]
    """
    layers = alternatives_of(model)
    if len(pattern) != len(layers):
        raise InputError(f"a pattern of {len(pattern)} choices for {len(layers)} alternatives in the model")
    token = _given.set({**(_given.get() or {}), **dict(zip(layers, pattern, strict=True))})
    try:
        yield
    finally:
        _given.reset(token)


@contextmanager
def watched_choices() -> Iterator[list[Tensor]]:
    """Within the block every `Alternatives` with a router adds its ``P`` to the list, with gradients, in order."""
    seen: list[Tensor] = []
    token = _watched.set(seen)
    try:
        yield seen
    finally:
        _watched.reset(token)


def budget_loss(chances: Sequence[Tensor], budget: Mapping[int, float]) -> Tensor:
    """``sum_c ((1/L) sum_l P_lc - budget_c)^2``, the mean over tokens: the part of the layers in which a token uses ``c``.

    It holds a token to its budget over all layers, and leaves open in which.

    Args:
        chances: ``P`` of each layer, ``(*rows, choices)``, as `watched_choices` has them.
        budget: by a choice's place, from 0 to 1.

    >>> float(budget_loss([torch.tensor([[0.9, 0.1]]), torch.tensor([[0.3, 0.7]])], {0: 0.6}))
    0.0
    """
    if not chances:
        raise InputError("budget: no layer with a router was watched, expected the chances of at least one")
    used = torch.stack(list(chances)).mean(0)
    wrong = {c: part for c, part in budget.items() if not (0 <= c < used.shape[-1] and 0 <= part <= 1)}
    if wrong or not budget:
        raise InputError(f"budget {dict(budget)}, expected parts from 0 to 1 of choices 0 to {used.shape[-1] - 1}")
    return torch.stack([(used[..., c] - part).square().mean() for c, part in budget.items()]).sum()
