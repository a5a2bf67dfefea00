"""Gates: which experts an input goes to, and with what weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share._select import one_hot, single_task
from polytask.share.penalty import Penalty

LEAST_SPREAD = 0.01
"""What is added to the learned spread of a gate's noise, so that no noise is ever switched off."""


def routing_logits(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` in the dtype of ``weight``, but in float32 at least: half precision would choose other experts.

    Args:
        x: ``(..., in)``.
        weight: ``(experts, in)``.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with _no_autocast(x):
        return F.linear(x.to(dtype), weight.to(dtype))


class Gates(NamedTuple):
    """The experts that each input goes to.

    Attributes:
        values: ``(..., k)``, the weight of each.
        experts: ``(..., k)`` int64, which they are.
    """

    values: Tensor
    experts: Tensor

    def dense(self, experts: int) -> Tensor:
        """The weights of all ``experts``, ``(..., experts)``, 0 for those that are not chosen."""
        every = self.values.new_zeros(*self.values.shape[:-1], experts)
        return every.scatter(-1, self.experts, self.values)


def top_gates(logits: Tensor, k: int, softmax: Literal["before", "after"] = "before", renormalise: bool = False) -> Gates:
    """The ``k`` experts of largest logits, with weights from a softmax, in the dtype of ``logits``.

    Args:
        logits: ``(..., experts)``.
        k: how many are chosen, from 1 to ``experts``; of equal ones those that come first.
        softmax: ``"before"`` the choice, over all experts, so that the weights add up to at most 1 (Riquelme et al.,
            *Scaling vision with sparse mixture of experts*, NeurIPS 2021); or ``"after"`` it, over those chosen (Shazeer et
            al., *Outrageously large neural networks*, ICLR 2017).
        renormalise: divide weights from before the choice by their sum, which is the same as taking the softmax after it.

    >>> gates = top_gates(torch.tensor([[2.0, 0.0, 1.0]]).log_softmax(1), 2, renormalise=True)
    >>> gates.experts.tolist(), [round(value, 3) for value in gates.values[0].tolist()]
    ([[0, 2]], [0.731, 0.269])
    """
    if softmax == "after" or renormalise:
        values, experts = logits.topk(k, -1)
        return Gates(values.softmax(-1), experts)
    values, experts = logits.softmax(-1).topk(k, -1)
    return Gates(values, experts)


class Gate(nn.Module):
    """Chooses ``k`` of ``experts`` for each input, with or without noise, and keeps their use even.

    ``router(x) + spread * noise`` are the logits of `top_gates`; noise is drawn while training alone. They are computed in
    the dtype of the router's weights and kept in float32 at least, under autocast too: half precision would choose other
    experts.

    The penalty (see `polytask.share.Penalty`) is ``balance * (cv^2(importance) + cv^2(load))``, Eqs. 6 to 11 of Shazeer et
    al.: an expert's importance is the sum of its weights over a batch; its load is the number of inputs it is chosen for,
    or, where there is noise, the expected number over new noise, which has a gradient. Without noise the importance alone
    has one. Under data parallel training each process balances its own batch.

    With one expert there is nothing to choose: no router is kept, and every weight is 1.

    Args:
        router: any module from ``(..., in)`` to ``(..., experts)``: ``nn.Linear(in, experts, bias=False)`` for all tasks,
            `TaskLinear` for a gate of each task, an MLP.
        experts: how many there are.
        k: how many are chosen, 1 by default.
        softmax, renormalise: as for `top_gates`.
        noise: the spread. A number ``s`` is a standard deviation of ``s / experts``, as in V-MoE (Riquelme et al., 2021); a
            module like ``router`` learns it, ``softplus(noise(x)) + 0.01``, as Shazeer et al. do. 0 (default) is none.
        balance: the weight of the penalty; 0 (default) computes none.
        tasks: keep the use even among the inputs of each of these tasks by themselves, in a batch that mixes them too, as
            separate passes do; by default among all inputs.

    >>> gate = Gate(nn.Linear(6, 4, bias=False), experts=4, k=2, balance=0.01)
    >>> gate(torch.randn(3, 5, 6)).experts.shape
    torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        router: nn.Module,
        experts: int,
        k: int = 1,
        *,
        softmax: Literal["before", "after"] = "before",
        renormalise: bool = False,
        noise: float | nn.Module = 0.0,
        balance: float = 0.0,
        tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise InputError(f"gate: k {k}, expected from 1 to {experts}, the number of experts")
        if softmax not in ("before", "after"):
            raise InputError(f"gate: softmax {softmax!r}, expected 'before' or 'after'")
        if balance < 0 or (isinstance(noise, int | float) and noise < 0):
            raise InputError(f"gate: noise {noise}, balance {balance}, expected numbers from 0")
        alone = experts == 1
        self.router = None if alone else router
        self.noise = 0.0 if alone else noise
        self.experts, self.k, self.balance, self.tasks = experts, k, balance, tuple(tasks)
        self.softmax, self.renormalise = softmax, renormalise
        self.penalty = Penalty()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Gates:
        """The experts of each input.

        Args:
            x: ``(..., width)``, examples along the first dimension.
            context: what the gate reads beside ``x`` and the experts do not, ``(..., m)``, broadcast to ``x``: a
                `TaskFeature`, an embedding of time. The router's inputs are then ``width + m``.
        """
        if self.router is None:
            return Gates(x.new_ones(*x.shape[:-1], 1), x.new_zeros(*x.shape[:-1], 1, dtype=torch.int64))
        if context is not None:
            x = torch.cat([x, context.to(x.dtype).expand(*x.shape[:-1], -1)], -1)
        with _no_autocast(x):
            clean = self._of(self.router, x)
            if clean.shape[-1] != self.experts:
                raise InputError(f"gate: the router gives {clean.shape[-1]} logits, expected {self.experts}, one an expert")
            spread = self._spread(x) if self.training else None
            logits = clean if spread is None else clean + spread * torch.randn_like(clean)
            gates = top_gates(logits, self.k, self.softmax, self.renormalise)
            # Also where it is not wanted: what is computed again in the backward pass has to be the same operations.
            if self.training and self.balance:
                uneven = self._unevenness(gates, clean, logits, spread)
                if self.penalty.wanted:
                    self.penalty.add(self.balance * uneven)
        return gates

    def _spread(self, x: Tensor) -> Tensor | float | None:
        if isinstance(self.noise, nn.Module):
            return F.softplus(self._of(self.noise, x)) + LEAST_SPREAD
        return self.noise / self.experts if self.noise else None

    def _of(self, router: nn.Module, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in router.parameters()), torch.float32)
        logits: Tensor = router(x.to(dtype))
        return logits.to(torch.promote_types(dtype, torch.float32))

    def _unevenness(self, gates: Gates, clean: Tensor, logits: Tensor, spread: Tensor | float | None) -> Tensor:
        importance = gates.dense(self.experts)
        if spread is None or self.k == self.experts:
            load = gates._replace(values=torch.ones_like(gates.values)).dense(self.experts)
        else:
            load = chance_of_choice(clean, logits, spread, self.k)
        inputs = math.prod(clean.shape[1:-1])
        by_example = torch.stack([importance, load]).view(2, len(clean), inputs, self.experts).sum(2)
        if self.tasks and single_task(self.tasks) is None:
            totals = one_hot(importance, self.tasks).mT @ by_example
        else:
            totals = by_example.sum(1)
        return cv_squared(totals).sum()


def cv_squared(amounts: Tensor) -> Tensor:
    """The squared coefficient of variation, ``var / mean^2`` with the unbiased variance, over the last dimension.

    0 for equal amounts, ``n`` where one of ``n`` has all.
    """
    return amounts.var(-1) / (amounts.mean(-1).square() + 1e-10)


def chance_of_choice(clean: Tensor, noisy: Tensor, spread: Tensor | float, k: int) -> Tensor:
    """How likely each expert is among the ``k`` largest if its noise alone were drawn anew (Shazeer et al., Eqs. 8 and 9).

    Args:
        clean: logits ``(..., experts)`` without noise.
        noisy: the same with it.
        spread: the noise's standard deviation.
        k: below the number of experts.
    """
    top = noisy.topk(k + 1, -1).values
    last, next_one = top[..., k - 1 : k], top[..., k : k + 1]
    # To be chosen an expert has to be above the k-th of the others: the k + 1st where it is one of the k itself.
    threshold = torch.where(noisy > next_one, next_one, last)
    chance: Tensor = torch.special.ndtr((clean - threshold) / spread)
    return chance


@contextmanager
def watched_gates(model: nn.Module) -> Iterator[list[Gates]]:
    """Within the block, what each `Gate` of ``model`` chooses in a pass is added to the list, without gradients, in order.

    >>> model = nn.Sequential(Gate(nn.Linear(6, 4), experts=4, k=2))
    >>> with watched_gates(model) as chosen:
    ...     _ = model(torch.randn(3, 6))
    >>> [tuple(gates.experts.shape) for gates in chosen]
    [(3, 2)]
    """
    chosen: list[Gates] = []

    def keep(module: nn.Module, inputs: object, output: Gates) -> None:
        chosen.append(Gates(*(part.detach() for part in output)))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, Gate):
                stack.enter_context(module.register_forward_hook(keep))
        yield chosen


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
