"""AdapterFusion: each task attends, token by token, to the outputs of adapters that other tasks have trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share._select import one_hot, single_task
from polytask.share._sources import Sources, Transfer
from polytask.share.adapter import adapted, widths
from polytask.share.insertion import Part, insertables
from polytask.share.penalty import Penalty
from polytask.share.task_parameters import TaskParameters


@insertables.add("adapter_fusion")
@dataclass(frozen=True)
class AdapterFusion(Transfer):
    """``h + V_t sum_s p_s o_s`` with ``p = softmax_s((Q_t a + q_t) . (K_t o_s + k_t))``: attention over source adapters.

    Pfeiffer et al., *AdapterFusion: non-destructive task composition for transfer learning*, EACL 2021. The sources were
    trained before: see `transferred`. They read ``a`` and add ``o_s = U_s f(D_s a + d_s) + u_s``. ``Q`` and ``K`` begin with
    normal weights of deviation 0.02 and biases at 0, ``V`` as the identity, with 1e-6 elsewhere. Scores are not divided by
    the square root of their width. The usual learning rate is 5e-5.

    Args:
        dropout: of the scores while training; 0.1 by default, that of BERT's attention.
        penalty: times ``||V - I||^2``, which each module adds to the loss (see `Penalty`); 0.01 by default, as in the
            authors' code. The paper itself states no value.
        sources, adapter: see `Transfer`.
    """

    name: ClassVar[str] = "adapter_fusion"
    dropout: float = 0.1
    penalty: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapter_fusion: dropout {self.dropout}, expected from 0 to below 1")
        if self.penalty < 0:
            raise InputError(f"adapter_fusion: penalty {self.penalty}, expected 0 or more")

    def build(self, module: nn.Module, tasks: Sequence[str]) -> AdapterFusionPart:
        return AdapterFusionPart(self.bank(module), widths(module, self.adapter.place), self, tasks)


class AdapterFusionPart(Part):
    """The sources at one module, and each task's query, key and value; inputs ``(N, ..., in)``, one example a row.

    Key and value are linear in what the sources add, so each is multiplied once a token, and not once a source: the key with
    the query, the value with the attended sum.
    """

    def __init__(self, sources: Sources, sizes: tuple[int, int], settings: AdapterFusion, tasks: Sequence[str]) -> None:
        super().__init__()
        self.sources, self.sizes, self.settings = sources, sizes, settings
        self.penalty = Penalty()
        self.query, self.query_bias, self.key, self.key_bias, self.value = (TaskParameters({}) for _ in range(5))
        self.add_tasks(tasks)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        inputs, outputs = self.sizes
        like = self.sources.up_bias
        for task in tasks:
            self.query.add({task: like.new_empty(outputs, inputs).normal_(std=0.02)})
            self.key.add({task: like.new_empty(outputs, outputs).normal_(std=0.02)})
            self.query_bias.add({task: like.new_zeros(outputs)})
            self.key_bias.add({task: like.new_zeros(outputs)})
            self.value.add({task: like.new_full((outputs, outputs), 1e-6).fill_diagonal_(1)})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.query.tasks

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        adapter = self.settings.adapter
        return adapted(adapter.place, run, x, lambda read: adapter.scale * self._fused(read))

    def _fused(self, x: Tensor) -> Tensor:
        if self.penalty.wanted:
            self.penalty.add(self.settings.penalty * self._distance(x))
        outputs = self.sources(x)
        query = _product(x, self.query(x)) + self.query_bias(x)
        key = _product(query, self.key(query).mT)
        scores = torch.einsum("...so,...o->...s", outputs, key) + (query * self.key_bias(query)).sum(-1, keepdim=True)
        scores = F.dropout(scores, self.settings.dropout, self.training)
        attended = torch.einsum("...s,...so->...o", scores.softmax(-1).to(outputs.dtype), outputs)
        return _product(attended, self.value(attended))

    def _distance(self, x: Tensor) -> Tensor:
        """``||V - I||^2``, summed over the tasks of the batch."""

        def of(task: str) -> Tensor:
            value = self.value[task]
            return (value - torch.eye(len(value), device=value.device, dtype=value.dtype)).square().sum()

        if (task := single_task(self.tasks)) is not None:
            return of(task)
        return one_hot(x, self.tasks).amax(0) @ torch.stack([of(task) for task in self.tasks]).to(x.dtype)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        every = (self.query, self.query_bias, self.key, self.key_bias, self.value)
        return chain.from_iterable(parameters.of(task) for parameters in every)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x (N, ..., in)`` by a weight ``(out, in)``, or by each example's own, ``(N, 1, ..., out, in)``."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    rows = x.reshape(len(x), -1, x.shape[-1]) @ weight.reshape(len(x), *weight.shape[-2:]).mT
    return rows.view(*x.shape[:-1], -1)
