"""What a gate can read of the task: weights of each task's own, or a feature of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from polytask.share._select import one_hot
from polytask.share.dependence import TaskDependent
from polytask.share.task_parameters import TaskParameters


class TaskLinear(TaskDependent):
    """``W_t x`` with a weight of its own for each task ``t``; which task an example has, the task scope says.

    Inputs ``(N, ..., width)``, examples along the first dimension; outputs ``(N, ..., outputs)``. Each weight, ``(width,
    outputs)`` in `weights`, begins as that of a linear layer does.
    """

    def __init__(self, width: int, outputs: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.weights = TaskParameters({task: nn.Linear(width, outputs, bias=False).weight.mT.contiguous() for task in tasks})

    def forward(self, x: Tensor) -> Tensor:
        rows = x if x.dim() > 2 else x[:, None]
        outputs: Tensor = rows @ self.weights(rows)
        return outputs.view(*x.shape[:-1], -1)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.weights.of(task)


class TaskFeature(TaskDependent):
    """A feature of each example's task, ``MLP(one-hot task)``, for gates that read it beside their input.

    Two linear layers with GELU between, then layer normalisation (Liang et al., *M3ViT*, NeurIPS 2022). Called with a tensor
    ``(N, ..., width)`` it gives ``(N, 1, ..., features)``, which broadcasts against it. All of its parameters are shared.
    """

    def __init__(self, tasks: Sequence[str], features: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.layers = nn.Sequential(
            *(nn.Linear(len(self.tasks), features), nn.GELU(), nn.Linear(features, features)),
            nn.LayerNorm(features, eps=1e-6),
        )

    def forward(self, x: Tensor) -> Tensor:
        like = next(self.layers.parameters())
        feature: Tensor = self.layers(one_hot(x, self.tasks).to(like.dtype))
        return feature.view(len(x), *[1] * (x.dim() - 2), -1)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return iter(())
