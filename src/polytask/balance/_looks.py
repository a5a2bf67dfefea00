"""The passes of a step that looks at its losses from more than one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import hypot
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Balancer, Evaluate
from polytask.balance.engine.passes import Backward, factor
from polytask.balance.perturb import Randomness, ascent, frozen_statistics, moved, reached
from polytask.errors import InputError

Hold = Literal["each", "graph", "sum"]

Gradient = dict[nn.Parameter, Tensor]
"""A gradient on each of the parameters that a loss reaches, times the factor of ``backward``; a sum over batches."""

Steps = dict[nn.Parameter, tuple[Tensor, float]]
"""For each parameter a direction, and how far to go along it."""


class Around(Balancer):
    """A balancer that looks at the losses from several places for another one, whose step it makes."""

    def __init__(self, inner: Balancer) -> None:
        super().__init__()
        self.inner = inner
        # The step is as large, and as much of it joined, as the inner balancer's.
        self.scale, self.joins = inner.scale, inner.joins

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.inner.prepare(tasks)

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        raise InputError("losses are needed from other weights too: call step, with a function that computes them")


class Looks:
    """The first look of a step, at the weights as they are, and further ones from where they are moved to.

    Every look at a batch draws the same random numbers, so that random layers are the same function in all of them; running
    statistics move in the first look only. Only the factor of ``backward`` counts, for half precision's sake.

    Args:
        hold: what of the first look: ``"each"``, the gradient of each task; ``"graph"``, from which `gradient` finds them
            one by one, in one process and of one batch; or ``"sum"``, only that of the sum of the losses, in one process.

    Attributes:
        names: the tasks in the step, in any process.
        losses: their losses by name, the mean over batches and processes.
        factor: of ``backward``.
    """

    def __init__(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None,
        hold: Hold,
    ) -> None:
        self.batches, self.processes = batches, processes
        self.shared = [p for p in dict.fromkeys(shared) if p.requires_grad]
        if any(hasattr(p, "device_mesh") for p in self.shared):
            raise InputError("parameters in pieces cannot be moved task by task: use a loss weighting")
        self.factor = 1.0
        self.random: list[Randomness] = []
        self.there: list[tuple[str, ...]] = []
        self._graph: Mapping[str, Tensor] = {}
        self._found: dict[str, Gradient] = {}
        self._sum: Gradient = {}
        self._own: dict[str, list[nn.Parameter]] = {}
        values: dict[str, Tensor] = {}
        for evaluate in batches:
            self.random.append(Randomness(self.shared))
            losses = evaluate()
            self.there.append(tuple(losses))
            if losses and len(values) == 0:
                self.factor = factor(backward, next(iter(losses.values())))
            for name, loss in losses.items():
                values[name] = values.get(name, 0) + loss.detach() / len(batches)
            if hold == "sum" and losses and processes is None:
                _add(self._sum, self._differentiate(torch.stack(list(losses.values())).sum()))
            elif hold == "graph" and len(batches) == 1 and processes is None:
                self._graph = losses
            else:
                for name, loss in losses.items():
                    _add(self._found.setdefault(name, {}), self._differentiate(loss))
        self._after = Randomness(self.shared)
        self._agree(values)

    def gradient(self, name: str) -> Gradient:
        """The gradient of a task at the weights as they are, the mean over processes; once only."""
        if name in self._graph:
            return self.joined(self._differentiate(self._graph[name]), [name])
        return self.joined(self._found.pop(name, {}), [name])

    def sum(self) -> Gradient:
        """The gradient of the sum of the losses, the mean over processes."""
        total = self._sum
        for name in self.names:
            _add(total, self.gradient(name) if self.processes is not None else {})
        return total

    def again(self, name: str, steps: Steps) -> Gradient:
        """The gradient of a task from where ``steps`` lead, of this process; the weights are then what they were."""
        total: Gradient = {}
        self._again(name, steps, lambda loss: _add(total, self._differentiate(loss, again=False)))
        return total

    def accumulate_again(self, name: str, steps: Steps, weight: float) -> None:
        """Add ``weight`` times the gradient that `again` gives to what ``.grad`` holds."""

        def backward(loss: Tensor) -> None:
            if loss.requires_grad:
                torch.autograd.backward(loss, torch.full_like(loss, self.factor * weight))

        self._again(name, steps, backward)

    def _again(self, name: str, steps: Steps, visit: Callable[[Tensor], None]) -> None:
        directions, factors = zip(*steps.values(), strict=True)
        with moved(list(steps), directions, factors), frozen_statistics():
            for evaluate, random, there in zip(self.batches, self.random, self.there, strict=True):
                # Layers that talk to other processes need all of them, with or without the task.
                if name in there or self.processes is not None:
                    random.restore()
                    losses = evaluate()
                    if name in there:
                        visit(losses[name])
        self._after.restore()

    def steps(
        self, gradient: Gradient, tasks: Sequence[str], radii: tuple[float, float], joint: bool, adaptive: bool
    ) -> Steps:
        """The perturbation along a joined ``gradient`` of ``tasks``: none where it vanishes or is not finite.

        Args:
            radii: on shared parameters, and on the tasks' own.
            joint: one norm and the first radius for both.
        """
        groups = self._groups(gradient, tasks)
        found = [ascent(group, [gradient[p] for p in group], adaptive) for group in groups]
        norms = self._largest([norm for _, norm in found])
        if not all(norm < float("inf") for norm in norms):
            return {}
        if joint:
            lengths, radii = [hypot(*norms)] * len(norms), (radii[0], radii[0])
        else:
            lengths = [norms[0], *[hypot(*norms[1:])] * (len(norms) - 1)]
        steps: Steps = {}
        for i, (group, (direction, _), length) in enumerate(zip(groups, found, lengths, strict=True)):
            rate = radii[min(i, 1)] / length if length > 0 else 0.0
            if rate > 0:
                steps.update((p, (d, rate)) for p, d in zip(group, direction, strict=True))
        return steps

    def _groups(self, gradient: Gradient, tasks: Sequence[str]) -> list[list[nn.Parameter]]:
        """The shared parameters of a gradient, then the others; by task where a process may have some tasks only."""
        others = [list(gradient)] if self.processes is None else [self._own.get(name, []) for name in tasks]
        left, groups = set(gradient), []
        for group in (self.shared, *others):
            groups.append([p for p in group if p in left])
            left -= set(group)
        return groups

    def joined(self, gradient: Gradient, tasks: Iterable[str] = ()) -> Gradient:
        """The mean over processes of a gradient on the shared parameters, and on those of ``tasks``."""
        if self.processes is None:
            return gradient
        own = [(self._own.get(name, []), self._sizes[name]) for name in tasks]
        layout = [(self.shared, sum(p.numel() for p in self.shared)), *own]
        # The kind of number has to be the same in all processes, whatever each has a gradient on.
        kind = torch.promote_types(self.shared[0].dtype, torch.float32) if self.shared else torch.float32
        whole = torch.zeros(sum(size for _, size in layout), dtype=kind, device=self.device)
        views: Gradient = {}
        for (parameters, _), part in zip(layout, torch.split(whole, [size for _, size in layout]), strict=True):
            pieces = torch.split(part, [p.numel() for p in parameters]) if parameters else ()
            views.update((p, piece.view_as(p)) for p, piece in zip(parameters, pieces, strict=True))
        for p, view in views.items():
            if p in gradient:
                view.copy_(gradient[p])
        dist.all_reduce(whole, group=self.processes)
        whole /= dist.get_world_size(self.processes)
        return {p: view.to(p.dtype) for p, view in views.items()}

    def _differentiate(self, loss: Tensor, again: bool = True) -> Gradient:
        parameters = [p for p in reached(loss) if p.requires_grad]
        if not parameters:
            return {}
        seed = torch.full_like(loss, self.factor)
        found = torch.autograd.grad(loss, parameters, seed, retain_graph=again, allow_unused=True)
        return {p: g for p, g in zip(parameters, found, strict=True) if g is not None}

    def _agree(self, values: Mapping[str, Tensor]) -> None:
        """Make names, losses and the number of own parameters those of all processes."""
        self.device = next((p.device for p in self.shared), torch.device("cpu"))
        self.names, self.losses = list(values), dict(values)
        if self.processes is None:
            return
        shared = set(self.shared)
        self._own = {name: [p for p in found if p not in shared] for name, found in self._found.items()}
        self._sizes = {name: sum(p.numel() for p in own) for name, own in self._own.items()}
        every: list[dict[str, int]] = [{} for _ in range(dist.get_world_size(self.processes))]
        dist.all_gather_object(every, self._sizes, group=self.processes)
        for name in dict.fromkeys(name for there in every for name in there):
            sizes = {there[name] for there in every if name in there}
            if len(sizes) > 1:
                raise InputError(f"task {name!r} has {sorted(sizes)} weights of its own in different processes")
            self._sizes[name] = sizes.pop()
        self.names = list(dict.fromkeys(name for there in every for name in there))
        zero = torch.zeros((), device=self.device)
        table = torch.stack([values.get(name, zero).to(zero) for name in self.names]) if self.names else zero[None][:0]
        dist.all_reduce(table, group=self.processes)
        self.losses = dict(zip(self.names, (table / len(every)).unbind(), strict=True))

    def _largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest in any process of each number; one that is none counts as infinite."""
        table = torch.tensor(numbers, dtype=torch.float64).nan_to_num(nan=float("inf"))
        if self.processes is None:
            return list(table.tolist())
        table = table.to(self.device)
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=self.processes)
        return list(table.tolist())


def accumulate(gradient: Mapping[nn.Parameter, Tensor], weight: float = 1.0) -> None:
    """Add ``weight`` times the gradient to what ``.grad`` holds."""
    for p, g in gradient.items():
        g = (g if weight == 1 else g * weight).to(p.dtype)
        p.grad = g if p.grad is None else p.grad + g


def _add(total: Gradient, more: Gradient) -> None:
    for p, g in more.items():
        total[p] = total[p] + g if p in total else g
