"""The gradients of each task on the shared parameters: their inner products, and any weighted sum of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance.engine.exchange import join
from polytask.balance.engine.parts import Part, add_up, inner_products, merged, weighted_sum
from polytask.balance.engine.passes import Backward, Pass, accumulate
from polytask.balance.engine.sketch import Sketch


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
        self.scale = 1.0
        self._names: list[str] = []
        self._values: dict[str, list[Tensor]] = {}
        self.sketch = Sketch(sketch, self._common_seed()) if by == "sketch" else None
        self._losses: dict[str, float] | None = None
        self._parts: dict[int, list[Part]] = {i: [] for i in range(len(self.shared))}
        self._gramian: Tensor | None = None
        self._sketches: Tensor | None = None
        self._pass: Pass | None = None
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
        self._losses = None
        if not losses:
            return
        for name, loss in losses.items():
            self._values.setdefault(name, []).append(loss.detach())
        self._names = list(self._values)
        numbers = [self._names.index(name) for name in losses]
        made = Pass(
            list(losses.values()), self.shared, numbers, backward, self.by, hold=self.hold, sketch=self.sketch, own=self.own
        )
        made.run()
        self.scale = made.factor * self.batches
        for place, parts in made.parts.items():
            self._parts[place] += parts
        self._gramian, self._sketches = made.gramian, made.sketches
        self._pass = None if made.hold else made

    @property
    def losses(self) -> dict[str, float]:
        if not self._join():
            return {}
        if self._losses is None:
            values = torch.stack([torch.stack(v).double().sum() for v in self._values.values()]) / self.batches
            if self.processes is not None:
                values = self._mean(values)
            self._losses = dict(zip(self._values, values.tolist(), strict=True))
        return self._losses

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
            with torch.no_grad():
                grads = add_up(self._parts[i], parameter.new_zeros(len(self._names), parameter.numel()))
            yield parameter, grads

    def jacobian(self) -> Tensor:
        """The gradients of all tasks on all shared parameters, ``(K, P)``: as large as it sounds."""
        return torch.cat([grads for _, grads in self.blocks()], 1) / self.scale

    # What a step leaves

    @torch.no_grad()
    def write(self, weights: Tensor) -> None:
        """Add ``sum_k weights[k] g_k`` to ``.grad`` of the shared parameters; weights, ``(K,)``, of the first process."""
        if not self._join():
            return
        device = next(iter(self._values.values()))[0].device
        weights = weights.to(device, torch.float64)
        if self.processes is not None:
            dist.broadcast(weights, group_src=0, group=self.processes)
        if self._pass is not None:
            own = weights if self.by == "exact" or self.processes is None else weights[self._place_of_own]
            steps = self._pass.weighted(own)
            if self.processes is not None and not self.in_pieces:
                steps = self._averaged(steps)
        else:
            there = [(p, parts) for p, parts in zip(self.shared, self._parts.values(), strict=True) if parts]
            steps = [(parameter, weighted_sum(parts, weights)) for parameter, parts in there]
        for parameter, step in steps:
            accumulate(parameter, step)

    @torch.no_grad()
    def write_blocks(self, aggregate: Callable[[Tensor, int], Tensor]) -> None:
        """Add ``aggregate(gradients, number)`` to ``.grad`` of each shared parameter: from ``(K, p)`` make ``(p,)``."""
        if not self._join():
            return
        for i, (parameter, grads) in enumerate(self.blocks()):
            step = aggregate(grads / self.scale, i) * self.scale
            if self.processes is not None:
                dist.broadcast(step, group_src=0, group=self.processes)
            accumulate(parameter, step)

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
        zero = torch.zeros((), device=self._device)
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

    @property
    def _device(self) -> torch.device:
        """Where processes exchange: that of the shared parameters, or, where tasks share none, that of the losses."""
        tensors = [*self.shared, *(value for values in self._values.values() for value in values)]
        return tensors[0].device if tensors else torch.device("cpu")

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
            seed = seed.to(self._device)
            dist.broadcast(seed, group_src=0, group=self.processes)
        return int(seed)
