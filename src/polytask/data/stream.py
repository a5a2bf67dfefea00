"""Streams: what training reads. A stream gives the batches of an epoch, the same ones whenever it is asked again.

That a stream can repeat any epoch is what lets a killed run go on as if nothing had happened.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from polytask.data.examples import Batch, Examples
from polytask.errors import InputError


@runtime_checkable
class Stream(Protocol):
    """Batches by epoch, a function of the epoch's number alone.

    A method ``hear(history)`` is optional: training calls it before each epoch with the run's records, for streams that go
    by them, as mixtures with a curriculum do. An epoch then depends on the records up to its start too.
    """

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch after the first ``skip``."""
        ...


def generator(*key: int) -> torch.Generator:
    """A generator whose state is a well-mixed function of ``key``: streams seeded by (seed, epoch) do not overlap."""
    seed = int(np.random.SeedSequence([part % 2**32 for part in key]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed % 2**63)


class Batches:
    """Shuffled batches of examples in memory; an incomplete last batch is dropped.

    Args:
        examples: the examples; what they redraw is drawn once for each epoch, the same in all processes.
        batch_size: examples in one optimizer step, over all processes and accumulated batches together: the same
            examples meet in a step however many share the work.
        seed: the order of each epoch is a function of this and the epoch's number.
        accumulate: in how many batches a step's examples come.
        rank, world: this process and the number of processes; each gets its share of every batch.
    """

    def __init__(
        self, examples: Examples, batch_size: int, seed: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 < batch_size <= len(examples):
            raise InputError(f"batch size {batch_size}, expected 1 to {len(examples)}, the number of training examples")
        if batch_size < accumulate * world:
            raise InputError(
                f"batch size {batch_size} cannot be shared by {world} processes and {accumulate} accumulated batches"
            )
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return len(self.examples) // self.batch_size * self.accumulate

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.examples), generator=generator(self.seed, number))
        examples = self.examples.redrawn(generator(self.seed, number, 1))
        parts = self.accumulate * self.world
        for i in range(skip, len(self)):
            step, part = divmod(i, self.accumulate)
            chunk = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield examples[chunk if parts == 1 else chunk[part * self.world + self.rank :: parts]]


class Loader:
    """A user's ``DataLoader`` (or any iterable of batches with a length) as a stream.

    Each epoch starts from a random state that depends on ``seed`` and the epoch alone, in torch's global generator and in
    the loader's own ``generator`` if it has one, so that a shuffling loader gives the same order again; the global state
    is left as it was. Random transforms repeat too where they draw from torch.
    """

    def __init__(self, loader: Iterable[Any], seed: int = 0) -> None:
        try:
            self._length = len(loader)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(
                "the data loader has no length, expected an iterable of batches for which len() answers"
            ) from error
        if self._length == 0:
            raise InputError("the data loader has no batches, expected at least one")
        self.loader, self.seed = loader, seed

    def __len__(self) -> int:
        return self._length

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        sampler: Any = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):  # a DistributedSampler shuffles by its own epoch's number
            sampler.set_epoch(number)
        state = generator(self.seed, number).initial_seed()
        for holder in (self.loader, sampler, getattr(self.loader, "batch_sampler", None)):
            own = getattr(holder, "generator", None)
            if isinstance(own, torch.Generator):
                own.manual_seed(state)
        # A random sampler draws its seed at the first batch, and skipped batches draw what they drew before the run was
        # killed. Both are shielded, so that what follows finds the global state where the run left it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            batches = iter(self.loader)
            first = list(itertools.islice(batches, max(skip, 1)))
        return itertools.chain(first[skip:], batches)


def as_stream(data: Any, batch_size: int, seed: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1) -> Stream:
    """``data`` as a stream: a stream as it is, examples in batches, a mapping of tasks as a mixture, else a loader."""
    from polytask.data.mixture import Mixture

    if isinstance(data, Mixture):
        return data.shared(rank, world)
    if isinstance(data, Stream):
        return data
    if isinstance(data, Examples):
        return Batches(data, batch_size, seed, accumulate, rank, world)
    if isinstance(data, Mapping):
        return Mixture(data, batch_size=batch_size, seed=seed).shared(rank, world)
    return Loader(data, seed)
