"""Transfer to tasks with few examples: each by itself from the same start, all in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.scope import task_scope

NEW = "new"
"""The task of the scope in which each of the tasks is learned."""

Answers: TypeAlias = Callable[[Tensor], Tensor]


def transfer(
    network: nn.Module, images: Tensor, classes: Tensor, answers: Tensor, rates: Mapping[str, float], steps: int
) -> Answers:
    """Learn ``T`` tasks apart from one another, each from the network's weights, in the scope of the task `NEW`.

    Every parameter that requires a gradient and whose name a pattern of ``rates`` fits gets a copy for each task; Adam works
    number by number, so that the copies take the steps that they would take alone.

    Args:
        network: gives ``(N, C)`` for images ``(N, ...)``; it is left as it is.
        images: ``(T, N, ...)``, the same number of each task.
        classes: ``(T, K)``, the outputs that are a task's answers.
        answers: ``(T, N)``, positions in them.
        rates: learning rates by patterns of names, the first that fits counts.
        steps: of Adam, each over all ``N`` images of a task.

    Returns:
        What gives the logits of the answers, ``(T, M, K)``, for images ``(T, M, ...)``.
    """
    copies: dict[str, Tensor] = {}
    groups: list[dict[str, object]] = []
    for name, parameter in network.named_parameters():
        pattern = next((pattern for pattern in rates if fnmatchcase(name, pattern)), None)
        if parameter.requires_grad and pattern is not None:
            own = parameter.detach().expand(len(images), *parameter.shape).clone().requires_grad_()
            copies[name] = own
            groups.append({"params": [own], "lr": rates[pattern]})

    def one(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        named: Tensor = torch.func.functional_call(network, dict(weights), (x,))
        return named

    def all_tasks(x: Tensor) -> Tensor:
        with task_scope(NEW):
            named = torch.func.vmap(one)(copies, x)
        return named.gather(2, classes[:, None].expand(-1, x.shape[1], -1))

    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        summed = F.cross_entropy(all_tasks(images).flatten(0, 1), answers.flatten(), reduction="sum")
        (summed / answers.shape[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return all_tasks
