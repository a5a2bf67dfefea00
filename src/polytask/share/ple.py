"""Progressive layered extraction: shared experts and experts of each task, level upon level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share._experts import Experts, mix
from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings


@sharings.add("ple")
@dataclass(frozen=True)
class PLE(Sharing):
    """Levels of experts that all tasks share and experts of each task alone, mixed by a gate for each task and a shared one.

    At level ``j`` the shared experts ``E_s`` read ``x_s``, those of task ``k`` read ``x_k``, all the encoder's features at
    first. The task's gate mixes its own experts and the shared ones, the shared gate mixes all there are::

        x_k' = softmax(W_k x_k) [E_s(x_s), E_k(x_k)]
        x_s' = softmax(W_s x_s) [E_s(x_s), E_1(x_1), ..., E_K(x_K)]

    The top level has no shared gate (Tang et al., *Progressive layered extraction (PLE): a novel multi-task learning model
    for personalized recommendations*, RecSys 2020, section 4). An expert is one hidden layer and one output layer with ReLU
    after each.

    What lies below a shared gate serves every task, so that all experts below the top run whichever task is asked for, and
    their parameters are shared; a task's experts of the top level are its own, and so are its gates of the two top levels.

    Args:
        shared: the number of shared experts of a level, at least 1.
        own: the number of experts of each task at a level; with 0 and one level this is `MMoE`.
        levels: the number of levels; with 1 this is `CGC`.
        hidden: the width of each expert's hidden layer; ``None`` (default) takes the features' width.

    One shared expert, one of each task and two levels are our defaults; the paper's own numbers are not known here.
    """

    name: ClassVar[str] = "ple"
    shared: int = 1
    own: int = 1
    levels: int = 2
    hidden: int | None = None

    def __post_init__(self) -> None:
        for what, least in {"shared": 1, "own": 0, "levels": 1}.items():
            if getattr(self, what) < least:
                raise InputError(f"{self.name}: {what} {getattr(self, what)}, expected at least {least}")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        top = self.levels - 1
        size = (width, self.hidden or width, self.shared, self.own)
        return PLEPathway([Extraction(*size, tasks, top=level == top) for level in range(self.levels)], tasks)


class Extraction(nn.Module):
    """One level: its experts and gates; the top one has no shared gate."""

    def __init__(self, width: int, hidden: int, shared: int, own: int, tasks: Sequence[str], top: bool) -> None:
        super().__init__()
        self.shared = Experts(shared, width, hidden)
        self.own = TaskModules({task: Experts(own, width, hidden) for task in tasks} if own else {})
        self.gates = TaskModules({task: nn.Linear(width, shared + own) for task in tasks})
        self.shared_gate = None if top else nn.Linear(width, shared + own * len(tasks))

    def forward(
        self, common: Tensor, inputs: Mapping[str, Tensor], running: Sequence[str], asked: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the level makes of the shared and of each task's input, ``(N, width)`` each.

        Args:
            common: what the shared experts read.
            inputs: what each task's experts read.
            running: the tasks whose experts run.
            asked: those of them that get an output.
        """
        shared = self.shared(common)
        own = {task: [self.own[task](inputs[task])] if task in self.own else [] for task in running}
        mixed = {task: mix(self.gates[task](inputs[task]).softmax(1), shared, *own[task]) for task in asked}
        if self.shared_gate is not None:
            common = mix(
                self.shared_gate(common).softmax(1), shared, *(outputs for bank in own.values() for outputs in bank)
            )
        return common, mixed


class PLEPathway(Pathway):
    """The levels, one after another."""

    def __init__(self, levels: Sequence[Extraction], tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.levels = nn.ModuleList(levels)

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        common = features.reshape(-1, features.shape[-1])
        inputs = dict.fromkeys(self.tasks, common)
        for above, level in zip(reversed(range(len(self.levels))), self.levels, strict=True):
            # A shared gate reads every task's experts, and these read what the tasks' gates below gave.
            running = self.tasks if above >= 1 else tasks
            asked = self.tasks if above >= 2 else tasks
            common, inputs = level(common, inputs, running, asked)
        return {task: inputs[task].reshape(features.shape) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        own = {parameter for task in self.tasks for parameter in self.parameters_of(task)}
        yield from (parameter for parameter in self.parameters() if parameter not in own)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        *below, top = (cast(Extraction, level) for level in self.levels)
        yield from top.own.parameters_of(task)
        for level in (*below[-1:], top):
            yield from level.gates.parameters_of(task)
