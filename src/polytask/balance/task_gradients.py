"""The gradients of each task on the shared parameters: their inner products, and any weighted sum of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

Backward = Callable[[Tensor], None]
"""Runs the backward pass of a scalar: ``Tensor.backward``, or ``Fabric.backward`` where precision or devices ask for it."""


class TaskGradients:
    """The gradients of the tasks' losses on shared parameters."""

    def __init__(self, shared: Sequence[nn.Parameter], processes: ProcessGroup | None = None) -> None:
        self.shared = [p for p in shared if p.requires_grad]
        self.processes = processes
        self.losses: dict[str, float] = {}
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor], backward: Backward = Tensor.backward) -> None:
        held = [p.grad for p in self.shared]
        for name, loss in losses.items():
            for p in self.shared:
                p.grad = None
            torch.autograd.backward(loss, retain_graph=True)
            self.rows[name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.shared]
            self.losses[name] = float(loss.detach())
        for p, grad in zip(self.shared, held, strict=True):
            p.grad = grad

    def jacobian(self) -> Tensor:
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in self.rows.values()])

    def gramian(self) -> Tensor:
        jacobian = self.jacobian().double()
        return (jacobian @ jacobian.T).cpu()

    def write(self, weights: Tensor) -> None:
        self.write_blocks(lambda jacobian, _: weights.to(jacobian) @ jacobian)

    def write_blocks(self, aggregate: Callable[[Tensor, int], Tensor]) -> None:
        for i, parameter in enumerate(self.shared):
            rows = torch.stack([row[i] for row in self.rows.values()])
            grad = aggregate(rows.flatten(1), i).view_as(parameter)
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
