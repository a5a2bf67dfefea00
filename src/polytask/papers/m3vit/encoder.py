"""The encoder: a vision transformer in which every second MLP is a mixture of experts, with a gate for each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.nn.vit import MLP, ViT
from polytask.share import ExpertBank, Gate, TaskFeature, TaskLinear
from polytask.share.expert_bank import Execution

Gating: TypeAlias = Literal["multi-gate", "task-conditioned", "one gate"]
"""How the gates depend on the task: one for each; one that reads a feature of it; not at all, which is the baseline."""


class M3ViT(ViT):
    """``(N, channels, H, W)`` -> ``(N, embedding, H / patch, W / patch)``, by the experts that the task's gates choose.

    Blocks with odd numbers, from 0, have `ExpertBank` for an MLP: each token, the class token too, goes to the ``k`` experts
    of largest ``softmax(W_t z)``, and the outputs are added up with these weights, which are not renormalised. Which task it
    is, the task scope says: `polytask.Model` runs the encoder once for each task that is asked for, since all but the first
    block depend on it.

    Gates begin as in the authors' code, uniform up to ``1 / sqrt(experts)``: wide enough that the largest weight is more
    than half at first. A gate that begins as a linear layer does would be nearly even, and the branch several times smaller.
    Experts begin as the dense MLPs do, as a truncated normal of standard deviation 0.02.

    Args:
        tasks: the tasks' names.
        size, patch, embedding, depth, heads, channels, drop_path: as for `ViT`; by default those of the ViT-small of the
            paper.
        experts, k: how many there are, and how many a token uses; 16 and 4.
        ratio: an expert's hidden features as a multiple of ``embedding``; 1. ``k * ratio`` is that of a dense MLP of equal
            cost.
        gating: ``"multi-gate"`` (default), ``"task-conditioned"`` or ``"one gate"``.
        features: of the task, for ``"task-conditioned"``; 64 by default. The paper's own number is not known.
        noise: of the gates while training: a number is that of V-MoE (see `Gate`), 0 as in the paper's command (default);
            ``"learned"`` is the gate of Shazeer et al., with its softmax after the choice.
        balance: the weight of the penalty of uneven use, summed over gates and over the passes of a step; 0.01.
        execution: as for `ExpertBank`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        size: tuple[int, int] = (512, 512),
        patch: int = 16,
        embedding: int = 384,
        depth: int = 12,
        heads: int = 12,
        *,
        channels: int = 3,
        experts: int = 16,
        k: int = 4,
        ratio: float = 1.0,
        gating: Gating = "multi-gate",
        features: int = 64,
        noise: float | Literal["learned"] = 0.0,
        balance: float = 0.01,
        drop_path: float = 0.0,
        execution: Execution = "auto",
    ) -> None:
        if gating not in get_args(Gating):
            raise InputError(f"m3vit: unknown gating {gating!r}: {suggest(gating, get_args(Gating))}")
        tasks = tuple(tasks)

        def router() -> nn.Module:
            if gating == "multi-gate":
                return TaskLinear(embedding, experts, tasks)
            return nn.Linear(embedding + (features if gating == "task-conditioned" else 0), experts, bias=False)

        def mlp(number: int) -> nn.Module:
            if number % 2 == 0:
                return MLP(embedding, 4 * embedding)
            gate = Gate(
                router(),
                experts,
                k,
                softmax="after" if noise == "learned" else "before",
                noise=router() if noise == "learned" else noise,
                balance=balance,
                tasks=tasks if gating != "one gate" else (),
            )
            return MoE(gate, ExpertBank(embedding, round(ratio * embedding), experts, execution=execution))

        super().__init__(size, patch, embedding, depth, heads, channels=channels, mlp=mlp, drop_path=drop_path)
        self.feature = TaskFeature(tasks, features) if gating == "task-conditioned" else None
        for layer in self.layers():
            for parameter in layer.gate.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(experts), 1 / math.sqrt(experts))
            bank = layer.bank
            for weight, bias in ((bank.hidden, bank.hidden_bias), (bank.output, bank.output_bias)):
                nn.init.trunc_normal_(weight, std=0.02)
                nn.init.zeros_(bias)

    def forward(self, images: Tensor, *context: Tensor) -> Tensor:
        own = (self.feature(images.flatten(2)),) if self.feature is not None else ()
        return super().forward(images, *own, *context)

    def layers(self) -> list[MoE]:
        """The mixtures of experts, from the first to the last."""
        return [module for module in self.modules() if isinstance(module, MoE)]


class MoE(nn.Module):
    """A gate and the bank that it chooses from; ``context`` is read by the gate alone."""

    def __init__(self, gate: Gate, bank: ExpertBank) -> None:
        super().__init__()
        self.gate, self.bank = gate, bank

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        mixed: Tensor = self.bank(x, self.gate(x, context))
        return mixed
