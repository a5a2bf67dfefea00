"""DSelect-k: each task selects at most k experts, by a gate that is smooth all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share._experts import Experts, mix
from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings
from polytask.share.penalty import Penalty


@sharings.add("dselect_k")
@dataclass(frozen=True)
class DSelectK(Sharing):
    """Experts that all tasks share, of which each task selects at most ``k`` by a smooth gate.

    Each of ``k`` selectors has an expert's number in ``m = ceil(log2 n)`` bits, each of them a smooth step ``S``, which is 0
    up to ``-gamma/2`` and 1 from ``gamma/2`` on; a softmax over the selectors weighs them::

        S(z) = -2 (z/gamma)^3 + 3/2 (z/gamma) + 1/2
        r_e(z) = prod_b S(z_b) if bit b of e is set else 1 - S(z_b)
        f(x) = sum_e q_e E_e(x),   q = sum_s softmax(w)_s r(z_s)

    Hazimeh et al., *DSelect-k: differentiable selection in the mixture of experts with applications to multi-task learning*,
    NeurIPS 2021, section 3. ``z`` and ``w`` are numbers of the task or, with ``per_example``, linear in the encoder's
    features ``x``. Experts are those of `MMoE`.

    In training each gate adds to the loss (`Penalty`), as means over examples: ``entropy`` times the entropy of each
    selector's ``r``, so that it comes to one expert; and where ``n`` is no power of 2, ``1 / sum_e r_e - 1`` of each
    selector, so that it comes to no number that no expert has. Whatever a gate selects, all experts are computed.

    Args:
        experts: ``n``; 8 is our default.
        k: the number of selectors; 2 is our default.
        gamma: the width of the smooth step; 1 as in the authors' code.
        entropy: the weight of the entropy; 1e-6 as in the authors' code. Larger, gates decide sooner.
        per_example: whether each example has a gate of its own.
        hidden: the width of each expert's hidden layer; ``None`` (default) takes the features' width.
    """

    name: ClassVar[str] = "dselect_k"
    experts: int = 8
    k: int = 2
    gamma: float = 1.0
    entropy: float = 1e-6
    per_example: bool = False
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise InputError(f"dselect_k: {self.experts} experts, expected at least 1")
        if not 1 <= self.k <= self.experts:
            raise InputError(f"dselect_k: k {self.k}, expected from 1 to {self.experts}, the number of experts")
        if not self.gamma > 0:
            raise InputError(f"dselect_k: gamma {self.gamma}, expected > 0")
        if not self.entropy >= 0:
            raise InputError(f"dselect_k: entropy {self.entropy}, expected >= 0")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return DSelectKPathway(width, tasks, self)


class DSelectKPathway(Pathway):
    """A bank of experts, and the gate of each task."""

    def __init__(self, width: int, tasks: Sequence[str], settings: DSelectK) -> None:
        super().__init__()
        self.experts = Experts(settings.experts, width, settings.hidden or width)
        self.gates = TaskModules({task: SelectorGate(width, settings) for task in tasks})

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        rows = features.reshape(-1, features.shape[-1])
        outputs = self.experts(rows)
        return {task: mix(self.gates[task](rows), outputs).reshape(features.shape) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.gates.parameters_of(task)


class SelectorGate(nn.Module):
    """One task's weights of the experts, ``(N, n)`` for ``N`` rows of features; float32 at least.

    ``scores`` are each selector's ``z`` and its ``w``; where every example has its own, ``reading`` is what its features
    add. Both begin uniform around 0, ``z`` within ``gamma / 100`` and ``w`` within 0.05, as in the authors' code.
    """

    codes: Tensor

    def __init__(self, width: int, settings: DSelectK) -> None:
        super().__init__()
        self.settings = settings
        self.bits = (settings.experts - 1).bit_length()
        bound = torch.tensor([settings.gamma / 100] * self.bits + [0.05]).repeat(settings.k, 1)
        self.scores = nn.Parameter((torch.rand_like(bound) * 2 - 1) * bound)
        if settings.per_example:
            start = (torch.rand(settings.k, self.bits + 1, width) * 2 - 1) * bound[..., None]
            self.reading = nn.Parameter(start)
        codes = torch.arange(settings.experts)[:, None] >> torch.arange(self.bits) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)
        self.penalty = Penalty()

    def forward(self, rows: Tensor) -> Tensor:
        scores = self.scores[None]
        if self.settings.per_example:
            scores = scores + torch.einsum("nw,ksw->nks", rows, self.reading.to(rows.dtype))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        selected = selectors(scores[..., : self.bits], self.codes, self.settings.gamma)
        if self.penalty.wanted:
            self.penalty.add(self._penalty(selected))
        weights = torch.einsum("nk,nke->ne", scores[..., self.bits].softmax(1), selected)
        return weights.expand(rows.shape[0], -1)

    def _penalty(self, selected: Tensor) -> Tensor:
        # What is selected can be 0 exactly, and the logarithm's slope there is without bound.
        entropy = -(selected * selected.clamp(min=1e-6).log()).sum((1, 2)).mean()
        penalty = self.settings.entropy * entropy
        if len(self.codes) < 2**self.bits:
            penalty = penalty + (1 / selected.sum(2).clamp(min=1e-6) - 1).sum(1).mean()
        return penalty


def selectors(z: Tensor, codes: Tensor, gamma: float) -> Tensor:
    """``r(z)``: the share of each expert in each selector, ``(..., n)`` for ``z`` ``(..., m)`` and codes ``(n, m)`` bool.

    >>> selectors(torch.tensor([0.5, 0.0]), torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).bool(), gamma=1.0).tolist()
    [0.0, 0.5, 0.0, 0.5]
    """
    t = (z / gamma).clamp(-0.5, 0.5)
    step = (0.5 + 1.5 * t - 2 * t**3)[..., None, :]
    return torch.where(codes, step, 1 - step).prod(-1)
