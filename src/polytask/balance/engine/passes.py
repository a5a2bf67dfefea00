"""The backward passes that find the task gradients of one batch, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from polytask.balance.engine.graph import Segment, edges_of, segments
from polytask.balance.engine.parts import Dense, Part, Rows, inner_products, stacked
from polytask.balance.engine.sketch import Sketch
from polytask.errors import InputError

Backward = Callable[[Tensor], None]
"""Runs the backward pass of a scalar: ``Tensor.backward``, or ``Fabric.backward`` where precision or devices ask for it."""

Found: TypeAlias = tuple[tuple[int, ...], list[Tensor | None]]
"""Numbers of tasks, and what came back for them."""

ByTask: TypeAlias = dict[int, Tensor]
"""What comes back at one edge of the graph, by the tasks' numbers."""

SEGMENT = 2**20
"""Numbers below which it is not worth while to cut a segment in two."""

SMALL = 2**25
"""Numbers that may be held to spare a backward pass."""

FEW_ROWS = 512
"""Below this many rows in a layer the processor is faster with those of all tasks in one matrix product."""

_TROUBLE: set[frozenset[str]] = set()
"""Kinds of nodes that could not be differentiated for all tasks at once: those are taken one task after the other."""


class Pass:
    """The backward passes of one batch's losses, segment by segment."""

    def __init__(
        self,
        losses: Sequence[Tensor],
        shared: Sequence[Tensor],
        numbers: Sequence[int],
        backward: Backward,
        by: str = "exact",
        hold: bool = False,
        sketch: Sketch | None = None,
        own: bool = True,
    ) -> None:
        self.losses, self.shared, self.numbers = list(losses), list(shared), list(numbers)
        self.backward, self.by, self.compact, self.sketch, self.own = backward, by, hold, sketch, own
        self.factor = factor(backward, losses[0])
        self.place = {id(p): i for i, p in enumerate(shared)}
        self.in_pieces = any(hasattr(p, "device_mesh") for p in shared)
        size = sum(p.numel() for p in shared)
        cheap = by in ("representation", "weights")
        largest = max(SEGMENT, size // 2) // len(losses)
        self.segments = segments(losses, shared, largest, own_first=cheap and not self.in_pieces)
        self.hold = hold or (by == "exact" and self._is_small(size))
        # The last segment that uses each parameter: there its gradients are complete.
        self.last = {place: i for i, segment in enumerate(self.segments) for place in self._shared_in(segment)}
        self.parts: dict[int, list[Part]] = {place: [] for place in range(len(shared))}
        self.gramian: Tensor | None = None
        self.sketches = torch.zeros(len(losses), sketch.size if sketch else 0, dtype=torch.float64, device=losses[0].device)
        self.sums: list[Tensor] = []

    def run(self) -> None:
        seeds: list[ByTask] = []
        for i, segment in enumerate(self.segments):
            seeds = self._collect(segment, self._above(segment) if i == 0 else self._below(segment, seeds))
            if i == 0:
                self.cut = edges_of(segment.bottom), seeds
                if self.by in ("representation", "weights"):
                    self.parts = {}
                    break
            self._finish(i)
        if self.by == "representation":
            if (not self.cut[0] or self._shared_in(self.segments[0])) and len(self.losses) > 1:
                raise InputError("no representation in common lies between the tasks and what they share: use by='exact'")
            there = [Dense(_stacked(rows, self.numbers), tuple(self.numbers)) for rows in seeds if rows]
            self.sums = [part.gramian().double() for part in there]
        if not self.hold:
            count = len(self.losses)
            zero = torch.zeros(count, count, dtype=torch.float64, device=self.losses[0].device)
            self.gramian = torch.stack(self.sums).sum(0) if self.sums else zero

    def weighted(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What one more backward pass, of losses with ``weights`` ``(K,)``, gives for each shared parameter."""
        return self._through_hooks(weights) if self.in_pieces else self._once_more(weights)

    def _shared_in(self, segment: Segment) -> set[int]:
        used = [*(use.parameter for use in segment.uses), *segment.direct]
        return {self.place[id(p)] for p in used if id(p) in self.place}

    def _is_small(self, size: int) -> bool:
        """Whether what would be held is about as large as the parameters, so that one backward pass can be spared."""
        count = len(self.losses)
        total = 0
        for segment in self.segments:
            for use in segment.uses:
                total += min(use.size, use.parameter.numel()) * count
            total += sum(p.numel() for p in segment.direct if id(p) in self.place) * count
        return total <= max(SMALL, 3 * size // 2)

    def _above(self, segment: Segment) -> Iterator[Found]:
        """Down to the tasks' common representation each loss goes by itself, through parts of its own."""
        for number, loss in zip(self.numbers, self.losses, strict=True):
            if loss.requires_grad and loss.grad_fn is not None:
                yield (number,), self._gradients(segment, [loss], [torch.full_like(loss, self.factor)])

    def _below(self, segment: Segment, seeds: Sequence[ByTask]) -> Iterator[Found]:
        """From there on all tasks go at once, where that is possible and worth while."""
        there = [(edge, rows) for edge, rows in zip(edges_of(segment.top), seeds, strict=True) if rows]
        if not there:
            return
        kinds, device = frozenset(segment.names), next(iter(there[0][1].values())).device
        many_rows = device.type == "cpu" and any(use.rows >= FEW_ROWS for use in segment.uses)
        if len(self.numbers) > 1 and kinds not in _TROUBLE and not many_rows and not any(u.one_by_one for u in segment.uses):
            stacked_rows = [_stacked(rows, self.numbers) for _, rows in there]
            try:
                found = self._gradients(segment, [edge for edge, _ in there], stacked_rows, at_once=True)
            except RuntimeError:
                _TROUBLE.add(kinds)
            else:
                yield tuple(self.numbers), found
                return
        for number in self.numbers:
            own = [(edge, rows[number]) for edge, rows in there if number in rows]
            if own:
                yield (number,), self._gradients(segment, [edge for edge, _ in own], [seed for _, seed in own])

    def _gradients(
        self, segment: Segment, outputs: Sequence[Any], seeds: Sequence[Tensor], at_once: bool = False
    ) -> list[Tensor | None]:
        """What comes back to each use, direct parameter and edge at the bottom of a segment, ``(m, ...)``."""
        inputs: list[Any] = [*(GradientEdge(node, 0) for node in segment.used), *segment.direct, *edges_of(segment.bottom)]
        if self.in_pieces:  # gradients of the whole parameters, which are only there for a while, are not wanted
            inputs = edges_of(segment.bottom)
        if not inputs:
            return []
        found = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, is_grads_batched=at_once, allow_unused=True)
        return list(found) if at_once else [None if grads is None else grads[None] for grads in found]

    def _collect(self, segment: Segment, results: Iterable[Found]) -> list[ByTask]:
        """Sort what comes back to parameters; what comes out at the bottom, for each edge and each task that has it."""
        used, direct, below = segment.used, segment.direct, len(edges_of(segment.bottom))
        parts: dict[int, list[Part]] = {}
        out: list[ByTask] = [{} for _ in range(below)]
        for tasks, found in results:
            if self.in_pieces:
                found = [*[None] * (len(used) + len(direct)), *found]
            back = dict(zip(used, found, strict=False))
            for i, use in enumerate(segment.uses):
                delta = back[use.node]
                if delta is not None:
                    parts.setdefault(i, []).append(self._in_form(use.make(delta, tasks)))
            for i, (parameter, grads) in enumerate(zip(direct, found[len(used) :], strict=False), len(segment.uses)):
                if grads is None:
                    continue
                if id(parameter) in self.place:
                    parts.setdefault(i, []).append(Dense(grads, tasks))
                elif self.own:
                    accumulate(parameter, grads[0] if len(grads) == 1 else grads.sum(0))
            for rows, grads in zip(out, found[len(found) - below :], strict=True):
                if grads is not None:
                    rows.update(zip(tasks, grads.unbind(), strict=True))
        parameters = [*(use.parameter for use in segment.uses), *direct]
        for i, there in parts.items():
            self.parts[self.place[id(parameters[i])]].append(stacked(there))
        return out

    def _in_form(self, part: Part) -> Part:
        if not isinstance(part, Rows):
            return part
        if self.sketch is not None:
            return part
        return part.smallest() if self.compact else part.cheapest(len(self.losses))

    def _finish(self, number: int) -> None:
        """Take the inner products of the gradients that are complete, and let these go."""
        if self.hold:
            return
        for place in [place for place, last in self.last.items() if last == number]:
            parts, sketch = self.parts[place], self.sketch
            if sketch is not None:
                if self.sketches is None:
                    self.sketches = torch.zeros(
                        len(self.losses), sketch.size, dtype=torch.float64, device=self.losses[0].device
                    )
                for part in parts:
                    self.sketches[list(part.tasks)] += sketch.of(part, place, self.shared[place].shape)
            elif parts:
                self.sums.append(inner_products(parts, len(self.losses)))
            self.parts[place] = []

    def _once_more(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One backward pass, from the tasks' common representation where there is one."""
        shared = [self.shared[place] for place in sorted(self.last)]
        outputs: list[Any] = []
        values: list[Tensor] = []
        if self.cut[0] and not self._shared_in(self.segments[0]):
            for edge, rows in zip(*self.cut, strict=True):
                if rows:
                    outputs.append(edge)
                    values.append(_weighted(rows, weights))
        else:
            for weight, loss in zip(weights[self.numbers], self.losses, strict=True):
                if loss.requires_grad:
                    outputs.append(loss)
                    values.append((weight * self.factor).to(loss))
        grads = torch.autograd.grad(outputs, shared, values, allow_unused=True) if outputs and shared else ()
        return [(parameter, grad) for parameter, grad in zip(shared, grads, strict=False) if grad is not None]

    def _through_hooks(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A backward pass as training runs it, for parameters in pieces: their gradients are made and summed by its hooks.

        What comes back to the common representation is put in the place of what the sum of the losses would bring there.
        """
        bottom, seeds = self.segments[0].bottom, self.cut[1]
        if bottom is None:
            raise InputError("parameters in pieces need a representation that all tasks have in common")
        node, outputs = bottom
        instead = {output: _weighted(rows, weights) for output, rows in zip(outputs, seeds, strict=True) if rows}

        def replace(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(instead.get(i, grad) for i, grad in enumerate(grads))

        handle = node.register_prehook(replace)
        try:
            with torch.enable_grad():
                self.backward(torch.stack([loss for loss in self.losses if loss.requires_grad]).sum())
        finally:
            handle.remove()
        return []


def _weighted(rows: ByTask, weights: Tensor) -> Tensor:
    """The sum of what comes back for each task, times the tasks' weights."""
    tasks = list(rows)
    seeds = _stacked(rows, tasks)
    return torch.einsum("k,k...->...", weights[tasks].to(seeds), seeds)


def _stacked(rows: ByTask, tasks: Sequence[int]) -> Tensor:
    """``rows`` in one tensor in the order of ``tasks``, zeros for what is missing."""
    like = next(iter(rows.values()))
    return torch.stack([rows[task] if task in rows else torch.zeros_like(like) for task in tasks])


def accumulate(parameter: Tensor, grad: Tensor) -> None:
    grad = grad.view_as(parameter).to(parameter.dtype)
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def factor(backward: Backward, loss: Tensor) -> float:
    """What ``backward`` multiplies gradients by."""
    if backward is Tensor.backward:
        return 1.0
    with torch.enable_grad():
        probe = torch.ones((), device=loss.device, requires_grad=True)
        backward(probe * 1)
    assert probe.grad is not None
    return float(probe.grad)
