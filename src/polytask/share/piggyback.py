"""Piggyback: each task keeps some of a shared network's weights, and none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share._select import one_hot, single_task
from polytask.share.insertion import Insertable, Inserted, Part, insertables
from polytask.share.task_parameters import TaskParameters

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@insertables.add("piggyback")
@dataclass(frozen=True)
class Piggyback(Insertable):
    """``(W * m_t) x`` with a mask ``m_t = [s_t > threshold]`` for each task, whose scores ``s_t`` are learned; ``W`` is not.

    Mallya et al., *Piggyback: adapting a single network to multiple tasks by learning to mask weights*, ECCV 2018. The
    gradient passes the threshold as if it were not there. All weights are kept at first. In linear layers and convolutions.

    A task needs a bit for each weight when it is trained: `masks_of` gives them, `set_masks` takes those of any origin. To
    store such masks for whole networks, with one bit each, see `polytask.merge.TaskMasks`.

    Args:
        start: of all scores; 0.01 by default, as in the paper.
        threshold: 0.005 by default, as in the paper.
    """

    name: ClassVar[str] = "piggyback"
    start: float = 1e-2
    threshold: float = 5e-3

    def __post_init__(self) -> None:
        if self.start <= self.threshold:
            raise InputError(f"piggyback: start {self.start}, expected more than the threshold, {self.threshold}")

    @property
    def types(self) -> tuple[type[nn.Module], ...]:
        return (nn.Linear, *CONVOLUTIONS)

    def build(self, module: nn.Module, tasks: Sequence[str]) -> PiggybackPart:
        weight = module.weight
        assert isinstance(weight, Tensor)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        start = torch.full_like(weight, self.start, dtype=dtype, requires_grad=False)
        return PiggybackPart(TaskParameters(dict.fromkeys(tasks, start)), self)


class PiggybackPart(Part):
    """The scores of all tasks for the weight of one layer; inputs ``(N, ...)``, examples along the first dimension.

    What the masks take away is subtracted from what the layer gives, so that they go together with other insertions. A batch
    that mixes tasks takes a product for each of them.
    """

    takes_module = True

    def __init__(self, scores: TaskParameters, settings: Piggyback) -> None:
        super().__init__()
        self.scores, self.settings = scores, settings

    def forward(self, run: Callable[..., Any], x: Tensor, module: nn.Module) -> Tensor:
        own: Tensor = run(x)
        tasks = self.scores.tasks
        if (task := single_task(tasks)) is not None:
            return own - self._lost(module, x, task)
        mine = one_hot(x, tasks).view(len(x), -1, *[1] * (own.dim() - 1))
        return own - sum(mine[:, i] * self._lost(module, x, task) for i, task in enumerate(tasks))

    def mask(self, task: str) -> Tensor:
        """Which weights the task keeps, as 0 and 1 in the dtype of the scores; its gradient is that of the scores."""
        scores = self.scores[task]
        kept = (scores.detach() > self.settings.threshold).to(scores.dtype)
        return kept + (scores - scores.detach())

    def _lost(self, module: nn.Module, x: Tensor, task: str) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        lost = (weight * (1 - self.mask(task))).to(weight.dtype)
        if isinstance(module, CONVOLUTIONS):
            output: Tensor = module._conv_forward(x, lost, None)
            return output
        return F.linear(x, lost)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.scores.of(task)

    def add_tasks(self, tasks: Sequence[str]) -> None:
        start = torch.full_like(next(self.scores.parameters()), self.settings.start)
        self.scores.add(dict.fromkeys(tasks, start))

    def fold(self, module: nn.Module, task: str) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        weight.mul_(self.mask(task))


def masks_of(inserted: Inserted, task: str) -> dict[str, Tensor]:
    """Which weights ``task`` keeps, by the name of the module: bool, in the shape of its weight."""
    return {place: part.mask(task).detach() > 0.5 for place, part in _parts(inserted).items()}


@torch.no_grad()
def set_masks(inserted: Inserted, task: str, masks: Mapping[str, Tensor]) -> None:
    """Let ``task`` keep the weights that ``masks`` say, by the name of the module; others stay as they are."""
    parts = _parts(inserted)
    for place, mask in masks.items():
        if place not in parts or mask.shape != parts[place].scores[task].shape:
            raise InputError(f"mask of {place!r}, {tuple(mask.shape)}: expected one of {list(parts)}, in the weight's shape")
        start, threshold = parts[place].settings.start, parts[place].settings.threshold
        parts[place].scores[task].copy_(torch.where(mask, start, 2 * threshold - start))


def _parts(inserted: Inserted) -> dict[str, PiggybackPart]:
    found = {place: part for place, part in inserted.parts.items() if isinstance(part, PiggybackPart)}
    if not found:
        raise InputError(f"an insertion of {inserted.method.name}, expected piggyback")
    return found
