"""Multi-head adapter routing: each task mixes, block by block, the factors of low-rank skills that all tasks share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.scope import task_index
from polytask.share._linear import add_to_weight, factory, weight_of
from polytask.share._low_rank import check_dropout, low_rank, low_rank_by_example, low_rank_of_each
from polytask.share._select import single_task
from polytask.share.insertion import Insertable, Inserted, Part, insert, insertables
from polytask.share.lora import LoRA
from polytask.share.task_parameters import TaskParameters

EPSILON = 1e-12

SHARED = {"layer": ".*", "model": ""}
"""What is to be found in the names of layers that share their logits, as a regular expression."""


@insertables.add("mhr")
@dataclass(frozen=True)
class MHR(Insertable):
    r"""``W x + scaling * B_t A_t x``, where ``A_t`` and ``B_t`` are a task's mixtures of the factors of ``S`` skills.

    Caccia et al., *Multi-head adapter routing for cross-task generalization*, NeurIPS 2023. The inputs of the skills'
    ``A_i`` and the outputs of their ``B_i`` are cut into ``h`` blocks; in block ``q`` both are mixed with the weights
    ``w_i = sigmoid(z_ti) / sum_j sigmoid(z_tj)`` of the task's logits ``z`` of that block. Factors are mixed, not their
    products.

    Routing wants a learning rate of its own, about a hundred times the skills': ``fit(..., lr={"*.logits.*": 0.1, "*":
    1e-3})``. A new task is taken up by `Inserted.add_tasks`; then train everything, or only its logits (MHR-z:
    ``freeze("*.logits.*")``), or only the `averaged` skills (MHR-mu).

    Args:
        skills: ``S``; 8 by default.
        heads: ``h``, which divides inputs and outputs of every layer; 8 by default, 64 in the paper's T5.
        rank: 1 by default, as in the paper's T0 experiments.
        alpha: ``scaling = alpha / rank``; 1 by default.
        routing: logits for each ``"layer"`` (default), or the same for the whole ``"model"``; or a regular expression, and
            layers in whose names it finds the same share their logits: ``r"block\.\d+"`` for each block.
        temperature: of a relaxed Bernoulli variable whose logits ``z`` are while training, as in Polytropon; ``None``
            (default) for none.
        dropout: of the input while training.
    """

    name: ClassVar[str] = "mhr"
    skills: int = 8
    heads: int = 8
    rank: int = 1
    alpha: float = 1.0
    routing: str = "layer"
    temperature: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.skills, self.heads, self.rank) < 1:
            raise InputError(
                f"{self.name}: {self.skills} skills, {self.heads} heads, rank {self.rank}: expected at least 1 of each"
            )
        if self.temperature is not None and self.temperature <= 0:
            raise InputError(f"{self.name}: temperature {self.temperature}, expected more than 0, or None")
        try:
            re.compile(self.routing)
        except re.error as error:
            raise InputError(f"{self.name}: routing {self.routing!r}: not a regular expression ({error})") from error
        check_dropout(self.name, self.dropout)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> MHRPart:
        for what, size in zip(("outputs", "inputs"), weight_of(module).shape, strict=True):
            if size % self.heads:
                raise InputError(f"{self.name}: {size} {what} cannot be cut into {self.heads} heads of equal size")
        return MHRPart(module, self, tasks)

    def build_each(self, modules: Mapping[str, nn.Module], tasks: Sequence[str]) -> dict[str, Part]:
        parts = super().build_each(modules, tasks)
        first: dict[str, Part] = {}
        for place, part in parts.items():
            found = re.search(SHARED.get(self.routing, self.routing), place)
            if found is None:
                raise InputError(f"{self.name}: routing {self.routing!r} is not found in {place!r}, the name of a layer")
            part.logits = first.setdefault(found.group(), part).logits
        return parts


class MHRPart(Part):
    """The skills beside one linear layer, ``A (S, r, in)`` and ``B (S, r, out)``, and each task's logits ``(h, S)``."""

    def __init__(self, layer: nn.Module, settings: MHR, tasks: Sequence[str]) -> None:
        super().__init__()
        self.settings = settings
        outputs, inputs = weight_of(layer).shape
        device, dtype = factory(layer)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        skills, heads, rank = settings.skills, settings.heads, settings.rank
        bound = math.sqrt(1 / (3 * inputs))
        self.a = nn.Parameter(torch.empty(skills, rank, inputs, **like).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(skills, rank, outputs, **like))
        self.logits = TaskParameters({task: torch.empty(heads, skills, **like).uniform_(-1e-3, 1e-3) for task in tasks})

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.logits.tasks

    def forward(self, run: Callable[..., Any], x: Tensor) -> Tensor:
        own: Tensor = run(x)
        x = F.dropout(x, self.settings.dropout, self.training and self.settings.dropout > 0)
        scaling = self.settings.alpha / self.settings.rank
        if (task := single_task(self.tasks)) is not None:
            a, b = self.mixed(self.logits[task][None])
            return own + scaling * low_rank(x, a[0], b[0])
        logits = torch.stack([self.logits[task] for task in self.tasks])
        if len(self.tasks) > len(x):  # then fewer mixtures are needed
            return own + scaling * low_rank_by_example(x, *self.mixed(logits[task_index(x, self.tasks)]))
        return own + scaling * low_rank_of_each(x, *self.mixed(logits), self.tasks)

    def mixed(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The factors ``(K, r, in)`` and ``(K, r, out)`` that logits ``(K, h, S)`` mix."""
        if self.training and self.settings.temperature is not None:
            chance = torch.rand_like(logits).clamp(EPSILON, 1 - 1e-6)
            gates = ((logits + chance.logit()) / self.settings.temperature).sigmoid()
        else:
            gates = logits.sigmoid()
        weights = gates / (gates.sum(-1, keepdim=True) + EPSILON)
        skills, rank, heads = self.settings.skills, self.settings.rank, self.settings.heads
        a = torch.einsum("khs,srhd->krhd", weights, self.a.view(skills, rank, heads, -1))
        b = torch.einsum("khs,srhd->krhd", weights, self.b.view(skills, rank, heads, -1))
        return a.flatten(2), b.flatten(2)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.logits.of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        like = next(self.logits.parameters())
        new = [task for task in tasks if task not in self.tasks]  # the logits of a whole model are those of all its parts
        self.logits.add({task: torch.empty_like(like).uniform_(-1e-3, 1e-3) for task in new})

    def fold(self, module: nn.Module, task: str) -> None:
        a, b = self.mixed(self.logits[task][None])
        add_to_weight(module, self.settings.alpha / self.settings.rank * (b[0].mT @ a[0]))


def as_lora(inserted: Inserted) -> Inserted:
    """A LoRA for each task that does what its mixture of skills does, in place of ``inserted``: it costs less to serve."""
    return _replaced(inserted, inserted.tasks, lambda part, task: part.logits[task])


def averaged(inserted: Inserted, tasks: Sequence[str]) -> Inserted:
    """A LoRA for each of ``tasks`` that begins as the mean of the skills, in place of ``inserted``: MHR-mu (Section 3.2).

    The authors' code keeps the skills, and trains them under equal weights that are fixed. Each skill's gradient is then ``1
    / S`` of the mean's, so the paths of an adaptive optimizer differ; this form has the parameters of one adapter.
    """
    return _replaced(inserted, tuple(tasks), lambda part, task: torch.zeros_like(next(part.logits.parameters())))


def _replaced(inserted: Inserted, tasks: Sequence[str], logits: Callable[[MHRPart, str], Tensor]) -> Inserted:
    method, parts = inserted.method, inserted.parts
    if not isinstance(method, MHR):
        raise InputError(f"an insertion of {method.name}, expected one of mhr or polytropon")
    inserted.remove()
    lora = LoRA(method.rank, method.alpha, method.dropout)
    new = insert(inserted.model, lora, tasks, lambda name, module: name in parts, inserted.name)
    with torch.no_grad():
        for place, part in parts.items():
            assert isinstance(part, MHRPart)
            for task in tasks:
                a, b = part.eval().mixed(logits(part, task)[None])
                into: Any = new.parts[place]
                into.of(task).a.copy_(a[0])
                into.of(task).b.copy_(b[0].mT)
    return new
