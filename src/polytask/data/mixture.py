"""Mixtures: several streams, one for each task, read as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from polytask.data.examples import Inputs
from polytask.data.stream import Batches, Stream, as_stream, generator
from polytask.errors import InputError, suggest

SAMPLING = ("uniform", "proportional", "temperature")


class Mixture:
    """One stream out of a stream for each task; its batches are ``{task: (inputs, target)}``.

    Args:
        sources: for each task its `Examples`, stream or data loader, of ``(inputs, target)`` or
            ``(inputs, {task: target})``.
        sampling: with one task a step, how often a task's turn comes: ``proportional`` to its number of batches (default),
            ``uniform``, or by ``temperature``, ``p_k ~ n_k^(1/T)`` (Arivazhagan et al., *Massively multilingual neural
            machine translation in the wild*, 2019), which is proportional at ``T = 1`` and uniform as ``T`` grows.
        temperature: ``T`` for ``temperature`` sampling, > 0. Default 5, as in that paper.
        tasks_per_step: ``"one"`` (default) or ``"all"``: each step then has a batch of every task.
        batch_size: of sources that are `Examples`, over all processes together.
        seed: the order of turns is a function of this and the epoch's number.

    An epoch is as many steps as the sources have batches together (``"one"``), or as the longest has (``"all"``); a
    source that runs out starts again in a new order.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        sampling: str = "proportional",
        temperature: float = 5.0,
        tasks_per_step: str = "one",
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise InputError("a mixture of no sources, expected at least one task")
        if sampling not in SAMPLING:
            raise InputError(f"unknown sampling {sampling!r}: {suggest(sampling, SAMPLING)}")
        if not temperature > 0:
            raise InputError(f"temperature {temperature}, expected a number > 0")
        if tasks_per_step not in ("one", "all"):
            raise InputError(f"tasks_per_step {tasks_per_step!r}, expected 'one' or 'all'")
        self.sources: dict[str, Stream] = {
            name: as_stream(source, batch_size, seed + i) for i, (name, source) in enumerate(sources.items())
        }
        self.sampling, self.temperature, self.tasks_per_step, self.seed = sampling, temperature, tasks_per_step, seed

    def probabilities(self) -> Tensor:
        """How often each task's turn comes, ``(K,)``, sums to 1."""
        sizes = torch.tensor([len(source) for source in self.sources.values()], dtype=torch.float64)
        power = {"uniform": 0.0, "proportional": 1.0, "temperature": 1 / self.temperature}[self.sampling]
        return sizes**power / (sizes**power).sum()

    def __len__(self) -> int:
        sizes = [len(source) for source in self.sources.values()]
        return sum(sizes) if self.tasks_per_step == "one" else max(sizes)

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
        names = list(self.sources)
        if self.tasks_per_step == "all":
            turns = [names] * len(self)
        else:
            key = generator(self.seed, number)
            drawn = torch.multinomial(self.probabilities(), len(self), replacement=True, generator=key)
            turns = [[names[i]] for i in drawn.tolist()]
        skipped = Counter(name for turn in turns[:skip] for name in turn)
        endless = {name: _endless(source, number, skipped[name]) for name, source in self.sources.items()}
        for turn in turns[skip:]:
            yield {name: _of_task(name, next(endless[name])) for name in turn}


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
