"""Per-token dispatch: each row through the one module that it chose, and through no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polytask.errors import InputError


def dispatch(x: Tensor, choice: Tensor, modules: Sequence[Callable[[Tensor], Tensor] | None]) -> Tensor:
    """``y[i] = modules[choice[i]](x[i])``: the rows of each module are gathered, run together, and put back.

    What is computed is what was chosen; masks would compute every module on every row. While gradients are recorded, a
    module that no row chose is run on none, so that its parameters have a gradient of 0 and several processes agree on what
    has one.
    Shapes depend on the choices, so compiled code breaks here and goes on behind.

    Args:
        x: ``(*rows, ...)``, such as ``(N, T, width)`` for tokens or ``(N, C, H, W)`` for images.
        choice: ``(*rows)`` int64, such as ``(N, T)`` or ``(N,)``.
        modules: each from ``(n, ...)`` to ``(n, ...)``, with outputs of one shape; ``None`` gives 0.

    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> dispatch(x, torch.tensor([0, 1, 2]), [torch.neg, lambda rows: 10 * rows, None]).tolist()
    [[-1.0], [20.0], [0.0]]
    """
    if x.shape[: choice.ndim] != choice.shape or not choice.ndim:
        raise InputError(f"choices of shape {tuple(choice.shape)} for inputs of shape {tuple(x.shape)}, expected a prefix")
    flat, rows = choice.flatten(), x.flatten(0, choice.ndim - 1)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= len(modules)):
        raise InputError(f"choices from {int(flat.min())} to {int(flat.max())}, expected 0 to {len(modules) - 1}")
    output: Tensor | None = None
    for place, module in enumerate(modules):
        if module is None:
            continue
        at = (flat == place).nonzero()[:, 0]
        if not len(at) and not torch.is_grad_enabled():
            continue
        part = module(rows.index_select(0, at))
        if output is None:
            output = part.new_zeros(len(rows), *part.shape[1:])
        output = output.index_copy_(0, at, part.to(output.dtype))
    if output is None:
        return torch.zeros_like(x)
    return output.view(*choice.shape, *output.shape[1:])
