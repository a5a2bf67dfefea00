"""Modules that hold slimmable layers: in a row, and beside a short cut."""

from __future__ import annotations

import copy
from fractions import Fraction

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share.slimmable.layers import SlimmableLayer


class Residual(nn.Module):
    """``activation(body(x) + shortcut(x))``, which `Slimmable` knows; both but the body are identities by default."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


class SlimmableResidual(SlimmableLayer, Residual):
    """`Residual` at a width, which holds for both branches."""

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        long, short = run(self.body, x, width), run(self.shortcut, x, width)
        if long.shape != short.shape:
            shapes = f"{tuple(long.shape)} beside {tuple(short.shape)}"
            raise InputError(f"residual: {shapes}, expected one shape: where the width changes, the shortcut needs a layer")
        return run(self.activation, long + short, width)

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        body, given = cut(self.body, share, width)
        return Residual(body, cut(self.shortcut, share, width)[0], copy.deepcopy(self.activation)), given


class SlimmableSequential(SlimmableLayer, nn.Sequential):
    """``nn.Sequential`` at a width."""

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        for child in self:
            x = run(child, x, width)
        return x

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        plain = nn.Sequential()
        for name, child in self.named_children():
            module, share = cut(child, share, width)
            plain.add_module(name, module)
        return plain, share


def run(module: nn.Module, x: Tensor, width: float) -> Tensor:
    """A module at a width, whether it has one or not."""
    out: Tensor = module(x, width) if isinstance(module, SlimmableLayer) else module(x)
    return out


def cut(module: nn.Module, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
    """`SlimmableLayer.cut`, and a copy of a module without widths."""
    return module.cut(share, width) if isinstance(module, SlimmableLayer) else (copy.deepcopy(module), share)
