"""ScaLearn: each task learns by how much to scale the outputs of adapters that other tasks have trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share._select import single_task
from polytask.share._sources import Sources, Transfer
from polytask.share.adapter import adapted, widths
from polytask.share.insertion import Inserted, Part, insert, insertables
from polytask.share.task_parameters import TaskParameters


@insertables.add("scalearn")
@dataclass(frozen=True)
class ScaLearn(Transfer):
    """``h + sum_s w_ts * (U_s f(D_s a + d_s) + u_s)``: a task's own coefficients ``w_t`` of ``S`` source adapters.

    Frohmann et al., *ScaLearn: simple and highly parameter-efficient task transfer by learning to scale*, Findings of ACL
    2024. The sources are adapters of other tasks, and of the task itself, that were trained before: see `transferred`. Only
    what they add is scaled, and ``h`` is added once. Nothing bounds or normalises the coefficients, which begin at about
    ``2 / S``. They are in float32 at least, and want a high learning rate, 6e-3 in the paper; heads begin anew.

    ``L`` modules of width ``d`` cost a task ``L S d`` numbers; ScaLearnUniform, with ``coefficients="scalar"``, ``L S``;
    ScaLearn++, with ``per="model"``, ``S d``; ScaLearnUniform++, with both and no dropout, ``S``.

    Args:
        coefficients: a ``"vector"`` for each source (default), or one number, a ``"scalar"``.
        per: coefficients for each ``"layer"`` (default), or the same for the whole ``"model"``.
        dropout: of the coefficients while training, one draw a pass; 0.3 by default.
        start: the sum over sources of a feature's coefficients at first, up to noise of deviation 0.001; 2 by default.
        normalise: ``"none"`` (default); as ablations ``"sum"``, which divides by the sum over sources, and ``"softmax"``.
        sources, adapter: see `Transfer`.
    """

    name: ClassVar[str] = "scalearn"
    coefficients: Literal["vector", "scalar"] = "vector"
    per: Literal["layer", "model"] = "layer"
    dropout: float = 0.3
    start: float = 2.0
    normalise: Literal["none", "sum", "softmax"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, value, known in (
            ("coefficients", self.coefficients, ("vector", "scalar")),
            ("per", self.per, ("layer", "model")),
            ("normalise", self.normalise, ("none", "sum", "softmax")),
        ):
            if value not in known:
                raise InputError(f"scalearn: {what} {value!r}, expected one of {list(known)}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"scalearn: dropout {self.dropout}, expected from 0 to below 1")

    def build(self, module: nn.Module, tasks: Sequence[str]) -> ScaLearnPart:
        return ScaLearnPart(self.bank(module), self, tasks)

    def build_each(self, modules: Mapping[str, nn.Module], tasks: Sequence[str]) -> dict[str, Part]:
        parts = super().build_each(modules, tasks)
        if self.per == "model":
            outputs = {place: widths(module, self.adapter.place)[1] for place, module in modules.items()}
            if self.coefficients == "vector" and len(set(outputs.values())) > 1:
                raise InputError(f"scalearn: outputs of {outputs}, expected one width for one vector per model")
            first = next(iter(parts.values()))
            for part in parts.values():
                part.coefficients = first.coefficients
        return parts


class ScaLearnPart(Part):
    """The sources at one module, and each task's coefficients ``(S, out)`` or ``(S, 1)``; inputs ``(N, ..., in)``.

    For a batch of one task the coefficients go into the sources' last layers, so that all sources together are one
    bottleneck of width ``S r``.
    """

    def __init__(self, sources: Sources, settings: ScaLearn, tasks: Sequence[str]) -> None:
        super().__init__()
        self.sources, self.settings = sources, settings
        self.coefficients = TaskParameters({task: self._start() for task in tasks})

    def _start(self) -> Tensor:
        count, outputs = self.sources.up_bias.shape
        empty = self.sources.up_bias.new_empty(count, outputs if self.settings.coefficients == "vector" else 1)
        return empty.normal_(self.settings.start / count, 0.001)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.coefficients.tasks

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        adapter = self.settings.adapter
        return adapted(adapter.place, run, x, lambda read: adapter.scale * self._combined(read))

    def _combined(self, x: Tensor) -> Tensor:
        if (task := single_task(self.tasks)) is not None:
            hidden = self.sources.hidden(x)
            weight, bias = self.sources.scaled(self._dropped(self._normalised(self.coefficients[task])))
            return F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))
        outputs: Tensor = self.sources(x)
        return (outputs * self._dropped(self._normalised(self.coefficients(outputs)))).sum(-2)

    def _normalised(self, coefficients: Tensor) -> Tensor:
        if self.settings.normalise == "sum":
            return coefficients / coefficients.sum(-2, keepdim=True)
        return coefficients.softmax(-2) if self.settings.normalise == "softmax" else coefficients

    def _dropped(self, coefficients: Tensor) -> Tensor:
        if not self.training or self.settings.dropout == 0:
            return coefficients
        kept = torch.ones(coefficients.shape[-2:], device=coefficients.device, dtype=coefficients.dtype)
        return coefficients * F.dropout(kept, self.settings.dropout)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.coefficients.of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        new = [task for task in tasks if task not in self.tasks]  # one set for a model is that of all its parts
        self.coefficients.add({task: self._start() for task in new})

    def folded(self, task: str) -> dict[str, Tensor]:
        """The one bottleneck of width ``S r`` that does what the sources do for ``task``, by the names of its tensors."""
        weight, bias = self.sources.scaled(self._normalised(self.coefficients[task]))
        down = {"down.weight": self.sources.down.flatten(0, 1), "down.bias": self.sources.down_bias.flatten()}
        return down | {"up.weight": weight, "up.bias": bias}


def as_adapter(inserted: Inserted) -> Inserted:
    """An adapter for each task that does what its scaled sources do, in place of ``inserted``: it costs less to serve.

    A bottleneck of ``S`` sources of width ``r`` is ``S r`` wide.
    """
    method, parts = inserted.method, inserted.parts
    if not isinstance(method, ScaLearn):
        raise InputError(f"an insertion of {method.name}, expected one of scalearn")
    wide = replace(method.adapter, bottleneck=len(method.names) * method.adapter.bottleneck)
    inserted.remove()
    found = insert(inserted.model, wide, inserted.tasks, lambda name, module: name in parts, inserted.name)
    for place, part in found.parts.items():
        into: Any = part
        scaled: Any = parts[place]
        for task in inserted.tasks:
            into.of(task).load_state_dict(scaled.folded(task))
    return found
