"""What an attack on a model raises: a number for each image, and whether it has got there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.errors import InputError, suggest

LabelLoss: TypeAlias = Literal["margin", "cross_entropy"]


class Aim(NamedTuple):
    """An objective's answer for ``n`` images.

    Attributes:
        value: ``(n,)``, what is to be raised; each depends on its own image alone.
        reached: ``(n,)`` bool, whether the attack has succeeded.
        cost: ``(n,)``, what this evaluation cost for each image, in any unit; ``None`` counts as 1.
    """

    value: Tensor
    reached: Tensor
    cost: Tensor | None = None


Objective: TypeAlias = Callable[[Tensor, Tensor], Aim]
"""From images ``(n, ...)`` and what stands beside each of them, such as labels ``(n,)``, to an `Aim`."""


def label_loss(logits: Tensor, labels: Tensor, kind: LabelLoss = "margin") -> Tensor:
    """How wrong logits ``(n, classes)`` are about ``labels`` ``(n,)`` int64, ``(n,)`` in single precision at least.

    ``"margin"``: the largest logit of another class minus the label's, above 0 where the label is missed. Its gradient does
    not vanish where the softmax is saturated, as that of ``"cross_entropy"`` does (Carlini and Wagner, *Towards evaluating
    the robustness of neural networks*, S&P 2017, Section VI).

    >>> label_loss(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    if kind not in get_args(LabelLoss):
        raise InputError(f"unknown loss {kind!r}: {suggest(kind, get_args(LabelLoss))}")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}, expected (n, classes) and (n,)")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none")
    own = labels[:, None]
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]
