"""The gradients of each task on the shared parameters: their inner products, and any weighted sum of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.distributed import ProcessGroup

from polytask.balance._exchange import join
from polytask.balance._graph import Segment, edges_of, segments
from polytask.balance._parts import Dense, Part, Rows, inner_products, merged, stacked, weighted_sum
from polytask.balance._sketch import Sketch
from polytask.errors import InputError

Backward = Callable[[Tensor], None]
"""Runs the backward pass of a scalar: ``Tensor.backward``, or ``Fabric.backward`` where precision or devices ask for it."""

Found: TypeAlias = tuple[tuple[int, ...], list[Tensor | None]]
"""Numbers of tasks, and what came back for them."""

SEGMENT = 2**20
"""Numbers below which it is not worth while to cut a segment in two."""

SMALL = 2**25
"""Numbers that may be held to spare a backward pass."""

FEW_ROWS = 512
"""Below this many rows in a layer the processor is faster with those of all tasks in one matrix product."""

_TROUBLE: set[frozenset[str]] = set()
"""Kinds of nodes that could not be differentiated for all tasks at once: those are taken one task after the other."""


class TaskGradients:
    """The gradients of the tasks' losses on shared parameters, without their ``(K, P)`` matrix wherever possible.

    For linear layers (attention projections among them), convolutions and embeddings, inner products of gradients follow
    from what the layer got and what comes back to it for each task; other parameters' gradients are taken as they are. Only
    what one stretch of the network needs is there at a time. Parameters may be tied, used many times, frozen, or unused by
    some tasks; nothing is attached to the model.

    `add` leaves on every other parameter that the losses reach, as the tasks' heads, the gradient of the losses' sum.

    Args:
        shared: the parameters to take gradients on; frozen ones are left out.
        processes: those that each add batches of their own, and see the gradients of all: the mean over processes.
        batches: how often `add` will be called; losses are averaged over the calls (by ``backward``).
        hold: keep the gradients of each parameter (in their smallest form), as `blocks` and several batches need; otherwise,
            unless they are small, they are let go once their inner products are known, and `write` runs one more pass.
        by: ``"exact"``; ``"local"``: the mean of each process's own inner products; ``"sketch"``: their estimates from
            random projections; ``"representation"``: inner products of the gradients on what the tasks last have in common;
            ``"weights"``: none, only `write`. All but the first are for one batch, and hold nothing. See `Estimated`.
        sketch: how many random projections.
        own: whether the tasks' own parameters get their gradients; otherwise `add` leaves nothing anywhere.

    Attributes:
        losses: the values of the losses by task, the mean over batches and processes, in the order of all that follows.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        processes: ProcessGroup | None = None,
        batches: int = 1,
        hold: bool = False,
        by: str = "exact",
        sketch: int = 1024,
        own: bool = True,
    ) -> None:
        self.shared = [p for p in dict.fromkeys(shared) if p.requires_grad]
        self.processes = processes
        self.batches = batches
        self.by, self.own = by, own
        self.hold = hold or batches > 1 or (processes is not None and by == "exact")
        self.in_pieces = any(hasattr(p, "device_mesh") for p in self.shared)
        self.sketch = Sketch(sketch, self._common_seed()) if by == "sketch" else None
        self.scale = 1.0
        self._place = {id(p): i for i, p in enumerate(self.shared)}
        self._names: list[str] = []
        self._values: dict[str, list[Tensor]] = {}
        self._parts: dict[int, list[Part]] = {i: [] for i in range(len(self.shared))}
        self._gramian: Tensor | None = None
        self._sketches: Tensor | None = None
        self._rest: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]] | None = None
        self._place_of_own: list[int] = []
        self._added = 0
        self._joined = False

    # What a step gives

    @torch.no_grad()
    def add(self, losses: Mapping[str, Tensor], backward: Backward = Tensor.backward) -> None:
        """Take the gradients of ``losses``, scalars by task; the graph is kept until this object is gone or has written.

        Args:
            losses: of one batch.
            backward: only its factor counts (a loss scale, one over the number of batches); gradients are never taken by it.
        """
        if self._added == self.batches:
            raise ValueError(f"{self.batches} batches are expected, and one more is added: pass batches= at the start")
        self._added += 1
        if not losses:
            return
        for name, loss in losses.items():
            self._values.setdefault(name, []).append(loss.detach())
        self._names = list(self._values)
        numbers = [self._names.index(name) for name in losses]
        self.factor = _factor(backward, next(iter(losses.values())))
        self.scale = self.factor * self.batches
        _Pass(self, list(losses.values()), numbers, backward).run()

    @property
    def losses(self) -> dict[str, float]:
        self._join()
        if not self._values:
            return {}
        values = torch.stack([torch.stack(v).double().sum() for v in self._values.values()]) / self.batches
        if self.processes is not None:
            values = self._mean(values)
        return dict(zip(self._values, values.tolist(), strict=True))

    @torch.no_grad()
    def gramian(self) -> Tensor:
        """Inner products of the gradients on the shared parameters, ``(K, K)``, float64, on the CPU."""
        self._join()
        count = len(self._names)
        if self._gramian is None:
            self._gramian = torch.zeros(count, count, dtype=torch.float64)
            parts = [inner_products(there, count) for there in self._parts.values() if there]
            if parts:
                self._gramian = torch.stack(parts).sum(0)
        if self.sketch is not None and self._sketches is not None:
            self._gramian = self.sketch.gramian(self._sketches)
        gramian = self._gramian.cpu() / self.scale**2
        return (gramian + gramian.T) / 2

    def blocks(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each shared parameter with the gradients of all tasks on it, ``(K, p)``; times the loss scale, if any."""
        self._join()
        if not self.hold:
            raise ValueError("the gradients are not held: pass hold=True at the start")
        for i, parameter in enumerate(self.shared):
            parts = self._parts[i]
            grads = parameter.new_zeros(len(self._names), parameter.numel())
            with torch.no_grad():
                for part in parts:
                    grads[list(part.tasks)] += part.dense().to(grads)
            yield parameter, grads

    def jacobian(self) -> Tensor:
        """The gradients of all tasks on all shared parameters, ``(K, P)``: as large as it sounds."""
        return torch.cat([grads for _, grads in self.blocks()], 1) / self.scale

    # What a step leaves

    @torch.no_grad()
    def write(self, weights: Tensor) -> None:
        """Add ``sum_k weights[k] g_k`` to ``.grad`` of the shared parameters; weights, ``(K,)``, of the first process."""
        self._join()
        if not self._names:
            return
        device = next(iter(self._values.values()))[0].device
        weights = weights.to(device, torch.float64)
        if self.processes is not None:
            dist.broadcast(weights, group_src=0, group=self.processes)
        if self._rest is not None:
            own = weights if self.by == "exact" or self.processes is None else weights[self._place_of_own]
            steps = list(self._rest(own))
            if self.processes is not None and not self.in_pieces:
                steps = self._averaged(steps)
        else:
            there = [(p, parts) for p, parts in zip(self.shared, self._parts.values(), strict=True) if parts]
            steps = [(parameter, weighted_sum(parts, weights)) for parameter, parts in there]
        for parameter, step in steps:
            _accumulate(parameter, step)

    @torch.no_grad()
    def write_blocks(self, aggregate: Callable[[Tensor, int], Tensor]) -> None:
        """Add ``aggregate(gradients, number)`` to ``.grad`` of each shared parameter: from ``(K, p)`` make ``(p,)``."""
        if not self._names and not self._join():
            return
        for i, (parameter, grads) in enumerate(self.blocks()):
            step = aggregate(grads / self.scale, i) * self.scale
            if self.processes is not None:
                dist.broadcast(step, group_src=0, group=self.processes)
            _accumulate(parameter, step)

    # Several processes

    def _join(self) -> bool:
        """Make the gradients those of all processes together; whether any task is there."""
        if self.processes is None or self._joined:
            return bool(self._names)
        self._joined = True
        every: list[list[str]] = [[] for _ in range(dist.get_world_size(self.processes))]
        dist.all_gather_object(every, self._names, group=self.processes)
        names = list(dict.fromkeys(name for there in every for name in there))
        self._place_of_own = [names.index(name) for name in self._names]
        zero = torch.zeros((), device=self.shared[0].device)
        self._values = {name: self._values.get(name, [zero]) for name in names}
        mine = [merged(there, len(self._names)) if there else None for there in self._parts.values()]
        self._names = names
        if self.by == "exact":
            for part in mine:
                if part is not None:
                    part.tasks = tuple(self._place_of_own[task] for task in part.tasks)
            joined = join(mine, self.shared, len(names), self.processes)
            self._parts = {i: [] if part is None else [part] for i, part in enumerate(joined)}
        elif self.sketch is not None:
            sketches = zero.new_zeros(len(names), self.sketch.size, dtype=torch.float64)
            if self._sketches is not None:
                sketches[self._place_of_own] = self._sketches
            self._sketches = self._mean(sketches)
        elif self._gramian is not None:
            place = torch.tensor(self._place_of_own, device=self._gramian.device)
            whole = self._gramian.new_zeros(len(names), len(names))
            whole[place[:, None], place] = self._gramian
            self._gramian = self._mean(whole)
            if self.by == "representation":  # examples of other processes are other representations: sums are exact
                self._gramian /= dist.get_world_size(self.processes)
        return bool(names)

    def _mean(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.processes)
        return values / dist.get_world_size(self.processes)

    def _averaged(self, steps: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The mean over processes of what each adds to the shared parameters."""
        own = {id(parameter): step for parameter, step in steps}
        flat = [own[id(p)].flatten().to(p) if id(p) in own else torch.zeros_like(p).flatten() for p in self.shared]
        mean = torch.split(self._mean(torch.cat(flat)), [p.numel() for p in self.shared])
        return list(zip(self.shared, mean, strict=True))

    def _common_seed(self) -> int:
        seed = torch.randint(2**62, ())
        if self.processes is not None:
            seed = seed.to(self.shared[0].device)
            dist.broadcast(seed, group_src=0, group=self.processes)
        return int(seed)


class _Pass:
    """The backward passes of one batch's losses, segment by segment."""

    def __init__(self, into: TaskGradients, losses: Sequence[Tensor], numbers: Sequence[int], backward: Backward) -> None:
        self.backward = backward
        self.into, self.losses, self.numbers = into, list(losses), list(numbers)
        size = sum(p.numel() for p in into.shared)
        largest = max(SEGMENT, size // 2) // max(1, len(losses))
        self.segments = segments(
            losses, into.shared, largest, own_first=into.by in ("representation", "weights") and not into.in_pieces
        )
        self.hold = into.hold or (into.by == "exact" and self._is_small(size))
        self.sums: list[Tensor] = []
        self.sketch = losses[0].new_zeros(len(losses), 0 if into.sketch is None else into.sketch.size, dtype=torch.float64)
        # The last segment that uses each parameter: there its gradients are complete.
        self.last = {place: i for i, segment in enumerate(self.segments) for place in self._shared_in(segment)}

    def run(self) -> None:
        seeds: list[Tensor | None] = []
        for i, segment in enumerate(self.segments):
            seeds = self._collect(segment, self._above(segment) if i == 0 else self._below(segment, seeds))
            if i == 0:
                self.cut = edges_of(segment.bottom), seeds
                if self.into.by in ("representation", "weights"):
                    self.into._parts = {place: [] for place in self.into._parts}
                    break
            self._finish(i)
        if self.hold:
            return
        self.into._rest = self._through_hooks if self.into.in_pieces else self._rest
        count = len(self.into._names)
        if self.into.by == "representation":
            if (not self.cut[0] or self._shared_in(self.segments[0])) and len(self.losses) > 1:
                raise InputError("no representation in common lies between the tasks and what they share: use by='exact'")
            there = [seed.flatten(1) for seed in seeds if seed is not None]
            self.sums = [Dense(seed, tuple(range(count))).gramian().double() for seed in there]
        self.into._sketches = self.sketch
        zero = torch.zeros(count, count, dtype=torch.float64, device=self.losses[0].device)
        self.into._gramian = torch.stack(self.sums).sum(0) if self.sums else zero

    def _shared_in(self, segment: Segment) -> set[int]:
        used = [*(use.parameter for use in segment.uses), *segment.direct]
        return {self.into._place[id(p)] for p in used if id(p) in self.into._place}

    def _is_small(self, size: int) -> bool:
        """Whether what would be held is about as large as the parameters, so that one backward pass can be spared."""
        count = len(self.losses)
        total = 0
        for segment in self.segments:
            for use in segment.uses:
                total += min(use.size, use.parameter.numel()) * count
            total += sum(p.numel() for p in segment.direct if id(p) in self.into._place) * count
        return total <= max(SMALL, 3 * size // 2)

    def _above(self, segment: Segment) -> Iterator[Found]:
        """Down to the tasks' common representation each loss goes by itself, through parts of its own."""
        for number, loss in zip(self.numbers, self.losses, strict=True):
            if loss.requires_grad and loss.grad_fn is not None:
                yield (number,), self._gradients(segment, [loss], [torch.full_like(loss, self.into.factor)])

    def _below(self, segment: Segment, seeds: Sequence[Tensor | None]) -> Iterator[Found]:
        """From there on all tasks go at once, where that is possible and worth while."""
        there = [(edge, seed) for edge, seed in zip(edges_of(segment.top), seeds, strict=True) if seed is not None]
        if not there:
            return
        edges, given = [edge for edge, _ in there], [seed for _, seed in there]
        kinds = frozenset(segment.names)
        many_rows = given[0].device.type == "cpu" and any(use.rows >= FEW_ROWS for use in segment.uses)
        if len(self.numbers) > 1 and kinds not in _TROUBLE and not many_rows and not any(u.one_by_one for u in segment.uses):
            try:
                found = self._gradients(segment, edges, given, at_once=True)
            except RuntimeError:
                _TROUBLE.add(kinds)
            else:
                yield tuple(self.numbers), found
                return
        for k, number in enumerate(self.numbers):
            yield (number,), self._gradients(segment, edges, [seed[k] for seed in given])

    def _gradients(
        self, segment: Segment, outputs: Sequence[Any], seeds: Sequence[Tensor], at_once: bool = False
    ) -> list[Tensor | None]:
        """What comes back to each use, direct parameter and edge at the bottom of a segment, ``(m, ...)``."""
        inputs: list[Any] = [*(GradientEdge(node, 0) for node in segment.used), *segment.direct, *edges_of(segment.bottom)]
        if self.into.in_pieces:  # gradients of the whole parameters, which are only there for a while, are not wanted
            inputs = edges_of(segment.bottom)
        if not inputs:
            return []
        found = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, is_grads_batched=at_once, allow_unused=True)
        return list(found) if at_once else [None if grads is None else grads[None] for grads in found]

    def _collect(self, segment: Segment, results: Iterable[Found]) -> list[Tensor | None]:
        """Sort what comes back to parameters; what comes out at the bottom, ``(K, ...)`` for each edge."""
        used, direct, below = segment.used, segment.direct, len(edges_of(segment.bottom))
        parts: dict[int, list[Part]] = {}
        out: list[dict[int, Tensor]] = [{} for _ in range(below)]
        for tasks, found in results:
            if self.into.in_pieces:
                found = [*[None] * (len(used) + len(direct)), *found]
            back = dict(zip(used, found, strict=False))
            for i, use in enumerate(segment.uses):
                delta = back[use.node]
                if delta is not None:
                    parts.setdefault(i, []).append(self._in_form(use.make(delta, tasks)))
            for i, (parameter, grads) in enumerate(zip(direct, found[len(used) :], strict=False), len(segment.uses)):
                if grads is None:
                    continue
                if id(parameter) in self.into._place:
                    parts.setdefault(i, []).append(Dense(grads, tasks))
                elif self.into.own:
                    _accumulate(parameter, grads[0] if len(grads) == 1 else grads.sum(0))
            for rows, grads in zip(out, found[len(found) - below :], strict=True):
                if grads is not None:
                    rows.update(zip(tasks, grads.unbind(), strict=True))
        parameters = [*(use.parameter for use in segment.uses), *direct]
        for i, there in parts.items():
            self.into._parts[self.into._place[id(parameters[i])]].append(stacked(there))
        return [_stacked([rows.get(number) for number in self.numbers]) for rows in out]

    def _in_form(self, part: Part) -> Part:
        if not isinstance(part, Rows):
            return part
        if self.into.sketch is not None:
            return part
        return part.smallest() if self.into.hold else part.cheapest(len(self.losses))

    def _finish(self, number: int) -> None:
        """Take the inner products of the gradients that are complete, and let these go."""
        if self.hold:
            return
        for place in [place for place, last in self.last.items() if last == number]:
            parts, sketch = self.into._parts[place], self.into.sketch
            if sketch is not None:
                for part in parts:
                    self.sketch[list(part.tasks)] += sketch.of(part, place, self.into.shared[place].shape)
            elif parts:
                self.sums.append(inner_products(parts, len(self.losses)))
            self.into._parts[place] = []

    def _rest(self, weights: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """One backward pass, from the tasks' common representation where there is one."""
        shared = [self.into.shared[place] for place in sorted(self.last)]
        outputs: list[Any] = []
        values: list[Tensor] = []
        if self.cut[0] and not self._shared_in(self.segments[0]):
            for edge, seeds in zip(*self.cut, strict=True):
                if seeds is not None:
                    outputs.append(edge)
                    values.append(_weighted(seeds, weights))
        else:
            for weight, loss in zip(weights[self.numbers], self.losses, strict=True):
                if loss.requires_grad:
                    outputs.append(loss)
                    values.append((weight * self.into.factor).to(loss))
        grads = torch.autograd.grad(outputs, shared, values, allow_unused=True) if outputs and shared else ()
        return [(parameter, grad) for parameter, grad in zip(shared, grads, strict=False) if grad is not None]

    def _through_hooks(self, weights: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """A backward pass as training runs it, for parameters in pieces: their gradients are made and summed by its hooks.

        What comes back to the common representation is put in the place of what the sum of the losses would bring there.
        """
        bottom, seeds = self.segments[0].bottom, self.cut[1]
        if bottom is None:
            raise InputError("parameters in pieces need a representation that all tasks have in common")
        node, outputs = bottom
        instead = {output: _weighted(seed, weights) for output, seed in zip(outputs, seeds, strict=True) if seed is not None}

        def replace(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(instead.get(i, grad) for i, grad in enumerate(grads))

        handle = node.register_prehook(replace)
        try:
            with torch.enable_grad():
                self.backward(torch.stack([loss for loss in self.losses if loss.requires_grad]).sum())
        finally:
            handle.remove()
        return []


def _weighted(seeds: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("k,k...->...", weights.to(seeds), seeds)


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    """``rows`` in one tensor, zeros for what is missing; ``None`` when all are."""
    there = next((row for row in rows if row is not None), None)
    return None if there is None else torch.stack([torch.zeros_like(there) if row is None else row for row in rows])


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    grad = grad.view_as(parameter).to(parameter.dtype)
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def _factor(backward: Backward, loss: Tensor) -> float:
    """What ``backward`` multiplies gradients by."""
    if backward is Tensor.backward:
        return 1.0
    with torch.enable_grad():
        probe = torch.ones((), device=loss.device, requires_grad=True)
        backward(probe * 1)
    assert probe.grad is not None
    return float(probe.grad)
