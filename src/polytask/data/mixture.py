"""Mixtures: several streams, one for each task, read as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from polytask.data.examples import Inputs
from polytask.data.sampling import Sampling, Temperature, as_sampling
from polytask.data.stream import Batches, Stream, as_stream, generator
from polytask.errors import InputError


class Mixture:
    """One stream out of a stream for each task; its batches are ``{task: (inputs, target)}``.

    Args:
        sources: for each task its `Examples`, stream or data loader, of ``(inputs, target)`` or
            ``(inputs, {task: target})``.
        sampling: with one task a step, how often a task's turn comes: ``proportional`` to its number of batches (default),
            ``uniform``, or by ``temperature``, ``p_k ~ n_k^(1/T)`` (Arivazhagan et al., *Massively multilingual neural
            machine translation in the wild*, 2019), which is proportional at ``T = 1`` and uniform as ``T`` grows. Or a
            rule from `polytask.data.sampling`, as ``Capped(limit=500)``; a curriculum also says which tasks take part, with
            one task a step and with all.
        temperature: ``T`` for ``temperature`` sampling, > 0. Default 5, as in that paper.
        tasks_per_step: ``"one"`` (default) or ``"all"``: each step then has a batch of every task.
        batch_size: of sources that are `Examples`, over all processes together.
        seed: the order of turns is a function of this and the epoch's number.
        length: steps in an epoch. By default as many as the sources have batches together (``"one"``), or as the longest has
            (``"all"``), whichever tasks take part. With a rule that deals, such as `polytask.data.Multipliers`, one round of
            what it deals in the first epoch; rounds that become shorter follow one another within the epoch.
        turns: with one task a step, how many turns make a step instead: it then has several tasks, and what a task has drawn
            more than once is joined to one batch. With ``batch_size=1`` batches are mixed example by example.

    A source starts each epoch in a new order, and once more when it runs out.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        sampling: str | Sampling = "proportional",
        temperature: float = 5.0,
        tasks_per_step: str = "one",
        batch_size: int = 64,
        seed: int = 0,
        length: int | None = None,
        turns: int = 1,
    ) -> None:
        if not sources:
            raise InputError("a mixture of no sources, expected at least one task")
        Temperature(temperature)  # checked although another rule may be asked for
        if tasks_per_step not in ("one", "all"):
            raise InputError(f"tasks_per_step {tasks_per_step!r}, expected 'one' or 'all'")
        if length is not None and length < 1:
            raise InputError(f"length {length}, expected at least 1 step in an epoch")
        if turns < 1 or (turns > 1 and tasks_per_step == "all"):
            raise InputError(f"{turns} turns in a step of {tasks_per_step}, expected at least 1, and 1 with 'all'")
        self.sources: dict[str, Stream] = {
            name: as_stream(source, batch_size, seed + i) for i, (name, source) in enumerate(sources.items())
        }
        self.sampling = as_sampling(sampling, temperature)
        self.tasks_per_step, self.seed, self.length, self.turns = tasks_per_step, seed, length, turns
        self.history: Sequence[Mapping[str, Any]] = ()
        self.weights(0)

    def hear(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Go by these records of the run from now on. An epoch knows only those up to its start, so it can be repeated."""
        self.history = tuple(history)

    def weights(self, epoch: int) -> dict[str, float]:
        """The weights of the tasks that take part in an epoch."""
        sizes = {name: len(source) for name, source in self.sources.items()}
        heard = [record for record in self.history if record["epoch"] <= epoch]
        weights = self.sampling.weights(sizes, epoch, heard)
        if not all(0 <= weights[name] < float("inf") for name in sizes) or not sum(weights.values()) > 0:
            raise InputError(f"sampling weights {weights}, expected finite numbers >= 0 that are not all 0")
        return {name: weights[name] for name in sizes if weights[name] > 0}

    def probabilities(self, epoch: int = 0) -> Tensor:
        """How often each task's turn comes in an epoch, ``(K,)``, sums to 1."""
        weights = self.weights(epoch)
        shares = torch.tensor([weights.get(name, 0.0) for name in self.sources], dtype=torch.float64)
        return shares / shares.sum()

    def __len__(self) -> int:
        if self.length is not None:
            return self.length
        sizes = {name: len(source) for name, source in self.sources.items()}
        if self.tasks_per_step == "all":
            return max(sizes.values())
        total = sum(self.sampling.weights(sizes, 0, ()).values()) if self.sampling.dealt else sum(sizes.values())
        return max(1, int(total) // self.turns)

    def shared(self, rank: int, world: int) -> Mixture:
        """This mixture for one of ``world`` processes: the same turns, and its share of every batch of `Examples`."""
        mixture = copy(self)
        mixture.sources = {
            name: Batches(source.examples, source.batch_size, source.seed, source.accumulate, rank, world)
            if isinstance(source, Batches)
            else source
            for name, source in self.sources.items()
        }
        return mixture

    def epoch(self, number: int, skip: int = 0) -> Iterator[dict[str, tuple[Inputs, Tensor]]]:
        weights = self.weights(number)
        turns = [list(weights)] * len(self) if self.tasks_per_step == "all" else self._drawn(number, weights)
        skipped = Counter(name for turn in turns[:skip] for name in turn)
        endless = {name: _endless(source, number, skipped[name]) for name, source in self.sources.items() if name in weights}
        for turn in turns[skip:]:
            yield {
                name: _joined([_of_task(name, next(endless[name])) for _ in range(count)])
                for name, count in Counter(turn).items()
            }

    def _drawn(self, number: int, weights: Mapping[str, float]) -> list[list[str]]:
        """The turns of each step of an epoch."""
        names, count = list(weights), len(self) * self.turns  # never a task without weight, which rounding could draw
        key = generator(self.seed, number)
        shares = torch.tensor(list(weights.values()), dtype=torch.float64)
        if self.sampling.dealt:
            deck = torch.arange(len(names)).repeat_interleave(shares.long())
            rounds = -(-count // len(deck))
            drawn = torch.cat([deck[torch.randperm(len(deck), generator=key)] for _ in range(rounds)])[:count]
        else:
            drawn = torch.multinomial(shares, count, replacement=True, generator=key)
        return [[names[i] for i in step] for step in drawn.view(-1, self.turns).tolist()]


def _endless(source: Stream, number: int, skip: int) -> Iterator[Any]:
    # Epochs of a source are numbered so that no two epochs of the mixture repeat an order.
    again, skip = divmod(skip, len(source))
    while True:
        batch = None
        for batch in source.epoch(number * 2**20 + again, skip):
            yield batch
        if batch is None and skip == 0:
            raise InputError(f"a source of the mixture says that it has {len(source)} batches, and has none")
        again, skip = again + 1, 0


def _of_task(name: str, batch: Any) -> tuple[Inputs, Tensor]:
    inputs, target = batch
    return inputs, target[name] if isinstance(target, Mapping) else target


def _joined(batches: Sequence[tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor]:
    """Batches of one task as one."""
    if len(batches) == 1:
        return batches[0]
    inputs, targets = zip(*batches, strict=True)
    if isinstance(inputs[0], Tensor):
        return torch.cat(inputs), torch.cat(targets)
    return {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}, torch.cat(targets)
