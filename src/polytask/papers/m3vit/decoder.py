"""The decoders, progressive upsampling for each task; and what refines them while training, the task-aware module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.data.examples import Batch, Inputs
from polytask.errors import InputError
from polytask.model import Model
from polytask.papers._dense import outputs_of
from polytask.share import TaskModules
from polytask.task import Task


class PUPHead(nn.Module):
    """``(N, width, h, w)`` -> ``(N, outputs, 2^stages h, 2^stages w)``: a stage is a 3x3 convolution and a doubling.

    SETR's progressive upsampling (Zheng et al., *Rethinking semantic segmentation from a sequence-to-sequence perspective
    with transformers*, CVPR 2021), after a layer normalisation of its own. Each stage is convolution, batch normalisation
    and ReLU, then bilinear interpolation; in the last a 1x1 convolution to the outputs comes before it. Over several
    processes: ``nn.SyncBatchNorm.convert_sync_batchnorm(model)``.

    Args:
        width: features in.
        outputs: channels out.
        channels: of the stages between; 256.
        stages: 4, for patches of 16 pixels.
    """

    def __init__(self, width: int, outputs: int, channels: int = 256, stages: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.stages = nn.ModuleList(convolution(width if stage == 0 else channels, channels) for stage in range(stages))
        self.output = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm(features.movedim(1, -1)).movedim(-1, 1)
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else doubled(x))
        return doubled(self.output(x))


class TaskAware(nn.Module):
    """Predicts every task once more, from the features of all tasks' decoders at one level.

    With ``T`` features side by side: ``B = sigmoid(conv(relu(conv(.))))`` weighs the first half of the tasks, ``1 - B`` the
    others, each divided by their number; from these a small encoder and decoder makes a mask ``M``, through a sigmoid; each
    task is predicted from all features times ``1 + M``.
    """

    def __init__(self, tasks: Mapping[str, int], channels: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        every = len(tasks) * channels
        last = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.mix = nn.Sequential(convolution(every, channels), *last)
        self.join = convolution(every, channels)
        self.encoder = nn.Sequential(*(convolution(channels, channels, stride=2) for _ in range(2)))
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(channels, channels, 3, 2, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.ConvTranspose2d(channels, channels, 3, 2, 1, 1), nn.BatchNorm2d(channels)),
        )
        self.heads = TaskModules(
            {
                task: nn.Sequential(convolution(every, channels), nn.Conv2d(channels, outputs, 1))
                for task, outputs in tasks.items()
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by task, of features ``(N, channels, h, w)`` by task."""
        found = [features[task] for task in self.tasks]
        half = max(len(found) // 2, 1)
        b = self.mix(torch.cat(found, 1)).sigmoid()
        shares = [b / half] * half + [(1 - b) / max(len(found) - half, 1)] * (len(found) - half)
        joined = self.join(torch.cat([x * share for x, share in zip(found, shares, strict=True)], 1))
        mask = self.decoder(self.encoder(joined)).sigmoid()
        if mask.shape != b.shape:  # sides that 4 does not divide
            mask = F.interpolate(mask, b.shape[-2:], mode="bilinear", align_corners=False)
        masked = torch.cat([x * (1 + mask) for x in found], 1)
        return {task: self.heads[task](masked) for task in self.tasks}

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """Those of the task's own prediction."""
        return self.heads.parameters_of(task)


class DenseModel(Model):
    """A `polytask.Model` of dense tasks with `PUPHead` for heads and, while training, `TaskAware` at some of their levels.

    The losses of a task-aware module's predictions are added to those of their tasks, in batches whose inputs have targets
    of all tasks; nothing of it is computed otherwise, or in evaluation.

    Args:
        encoder, tasks: as for `polytask.Model`.
        channels, stages: as for `PUPHead`.
        aware: at which levels of the decoders, from 0; none by default. ``(0, 1)`` as in the configuration of the paper.
    """

    def __init__(
        self, encoder: nn.Module, tasks: Sequence[Task], channels: int = 256, stages: int = 4, aware: Sequence[int] = ()
    ) -> None:
        super().__init__(encoder, tasks)
        for level in aware:
            if not 0 <= level < stages - 1:
                raise InputError(f"dense model: aware at level {level}, expected from 0 to {stages - 2}")
        outputs = {name: outputs_of(task) for name, task in self.tasks.items()}
        self.heads = TaskModules({name: PUPHead(self.width, count, channels, stages) for name, count in outputs.items()})
        self.aware = nn.ModuleDict({str(level): TaskAware(outputs, channels) for level in aware})

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        own = {p for name in self.tasks for p in self.parameters_of(name)}
        yield from super().shared_parameters()
        yield from (p for p in self.aware.parameters() if p not in own)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        yield from super().parameters_of(task)
        for module in self.aware.values():
            yield from cast(TaskAware, module).parameters_of(task)

    def losses(self, batch: Batch | Mapping[str, tuple[Inputs, Tensor]]) -> dict[str, Tensor]:
        if not (self.training and len(self.aware)) or isinstance(batch, Mapping) or set(batch[1]) != set(self.tasks):
            return super().losses(batch)
        features: dict[str, dict[str, Tensor]] = {level: {} for level in self.aware}

        def keep(level: str, task: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            features[level][task] = output

        with ExitStack() as stack:
            for level in self.aware:
                for task, head in self.heads.items():
                    stage = cast(PUPHead, head).stages[int(level) + 1]
                    stack.enter_context(stage.register_forward_hook(partial(keep, level, task)))
            losses = super().losses(batch)
        for level, module in self.aware.items():
            for task, output in module(features[level]).items():
                losses[task] = losses[task] + self.tasks[task].loss(output, batch[1][task])
        return losses


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
