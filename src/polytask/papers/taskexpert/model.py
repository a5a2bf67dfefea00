"""The whole model: an encoder with features of several levels, memorial experts, and the tasks' heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from polytask.data.examples import Batch, Inputs
from polytask.model import Model
from polytask.papers._dense import outputs_of
from polytask.papers.taskexpert.memory import MemorialExperts, MemorialPathway
from polytask.share import TaskModules
from polytask.task import Task


class ConvHead(nn.Module):
    """``(N, channels, h, w)`` -> ``(N, outputs, upsample * h, upsample * w)``: 3x3 convolution, normalisation, GELU, 1x1.

    The features are enlarged first (bilinear); the task resizes to its targets.
    """

    def __init__(self, channels: int, outputs: int, upsample: int = 4) -> None:
        super().__init__()
        self.upsample = upsample
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU()),
            nn.Conv2d(channels, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.upsample > 1:
            features = F.interpolate(features, scale_factor=float(self.upsample), mode="bilinear", align_corners=False)
        output: Tensor = self.layers(features)
        return output


class TaskExpert(Model):
    """A `polytask.Model` of dense tasks with `MemorialExperts` between the encoder and a `ConvHead` for each task.

    Args:
        encoder: gives features of ``sharing.levels`` levels, ``(N, levels * C, h, w)``.
        tasks: dense tasks.
        sharing: the settings.
        upsample: how much features are enlarged before the last convolutions; 4 by default, from 1/16 to 1/4 of the image.
        intermediate: while training, each memory but the last is predicted from too, by a 1x1 convolution; this times the
            mean of these losses is added to the task's. 0 (default) has none. A reconstruction, as that of
            `MemorialExperts`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[Task],
        sharing: MemorialExperts | None = None,
        upsample: int = 4,
        intermediate: float = 0.0,
    ) -> None:
        sharing = sharing or MemorialExperts()
        super().__init__(encoder, tasks, sharing)
        self.heads = TaskModules(
            {name: ConvHead(sharing.channels, outputs_of(task), upsample) for name, task in self.tasks.items()}
        )
        self.intermediate = intermediate
        levels = len(self.levels) - 1 if intermediate else 0
        self.early = nn.ModuleList(
            TaskModules({name: nn.Conv2d(sharing.channels, outputs_of(task), 1) for name, task in self.tasks.items()})
            for _ in range(levels)
        )

    @property
    def levels(self) -> nn.ModuleList:
        """The levels of memorial experts, from the first to the last."""
        return cast(MemorialPathway, self.pathway).levels

    def parameters_of(self, task: str) -> Any:
        yield from super().parameters_of(task)
        for heads in self.early:
            yield from heads.parameters_of(task)  # type: ignore[operator]

    def losses(self, batch: Batch | Mapping[str, tuple[Inputs, Tensor]]) -> dict[str, Tensor]:
        if not (self.training and len(self.early)):
            return super().losses(batch)
        memories: list[dict[str, Tensor]] = [{} for _ in self.early]

        def keep(level: int, output: dict[str, Tensor]) -> None:
            memories[level] |= output

        with ExitStack() as stack:
            for number, level in zip(range(len(self.early)), self.levels, strict=False):
                hook = level.register_forward_hook(lambda module, inputs, output, number=number: keep(number, output))
                stack.enter_context(hook)
            losses = super().losses(batch)
        targets = {name: pair[1] for name, pair in batch.items()} if isinstance(batch, Mapping) else batch[1]
        for heads, memory in zip(self.early, memories, strict=True):
            for name in losses:
                early = self.tasks[name].loss(heads[name](memory[name]), targets[name])  # type: ignore[index]
                losses[name] = losses[name] + self.intermediate / len(self.early) * early
        return losses
