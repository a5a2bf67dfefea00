"""Memory tasks on bits: the parity of the last N, and whether the last equals the one N - 1 steps before; as a stream.

A task is named by its N: ``"n2"``, ``"n3"``, ... All tasks of a batch have the same sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from polytask.data import Curriculum
from polytask.data.stream import generator
from polytask.errors import InputError, suggest

SMALLEST = 2
Batch: TypeAlias = tuple[Tensor, dict[str, Tensor]]


def name_of(n: int) -> str:
    """The task with this N."""
    return f"n{n}"


def number_of(task: str) -> int:
    """N of a task; `InputError` for a name that is none."""
    if not (task[:1] == "n" and task[1:].isdigit() and int(task[1:]) >= 1):
        raise InputError(f"memory task {task!r}, expected 'n' and a number, as in 'n2'")
    return int(task[1:])


def parity(bits: Tensor, n: int) -> Tensor:
    """``(sum of the last N bits) mod 2``. Bits ``(..., M)`` of 0 and 1, with ``M >= N`` -> integers ``(...)``."""
    return bits[..., -n:].sum(-1).long() % 2


def match(bits: Tensor, n: int) -> Tensor:
    """1 where the bit at position ``-N`` equals the last one, so that ``N = 1`` is always 1. Shapes as for `parity`."""
    return (bits[..., -n] == bits[..., -1]).long()


def biased_bits(count: int, length: int, generator: Generator | None = None) -> Tensor:
    """``(count, length)`` bits, each sequence with a probability of 1 of its own, uniform in [0, 1]."""
    odds = torch.rand(count, 1, generator=generator)
    return (torch.rand(count, length, generator=generator) < odds).float()


def fair_bits(count: int, length: int, generator: Generator | None = None) -> Tensor:
    """``(count, length)`` bits, 0 or 1 with equal chances."""
    return torch.randint(2, (count, length), generator=generator).float()


RULES: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[int, int, Generator | None], Tensor]]] = {
    "parity": (parity, biased_bits),
    "dms": (match, fair_bits),
}
"""N-parity, and N-delayed-match-to-sample: what the label is, and how sequences are drawn."""


def labels(rule: str, bits: Tensor, tasks: Collection[str]) -> dict[str, Tensor]:
    """The labels ``(B,)`` of each task on the same sequences ``(B, M)``; `InputError` where they are too short."""
    longest = max(number_of(task) for task in tasks)
    if bits.shape[-1] < longest:
        raise InputError(f"sequences of {bits.shape[-1]} bits, expected at least {longest} for task {name_of(longest)!r}")
    label, _ = _rule(rule)
    return {task: label(bits, number_of(task)) for task in tasks}


def chance(rule: str, n: int) -> float:
    """The accuracy of always naming the more frequent label.

    With a uniform probability of 1 in each sequence, the parity of an even number of bits is odd in only
    ``(1 - 1 / (N + 1)) / 2`` of them: 1 of 3 for ``N = 2``.
    """
    _rule(rule)
    if rule == "parity" and n % 2 == 0:
        return 0.5 + 0.5 / (n + 1)
    return 1.0 if rule == "dms" and n == 1 else 0.5


class BitStream:
    """Sequences without end, for the tasks that a curriculum has in each epoch.

    A batch is ``(bits, {task: labels})``: ``(B, M)`` floats, and integers ``(B,)`` for each task. ``M`` is drawn for each
    batch from ``N + 2 .. 4 N + 1``, where ``N`` is the largest that takes part. `held_out` has sequences of the tasks in
    training, drawn apart: as validation data they tell the curriculum what it goes by.

    Args:
        rule: ``"parity"`` or ``"dms"``.
        curriculum: which of `tasks` take part, as those of `polytask.papers.timescales.curricula`, or
            ``Schedule({0: ["n20"]})`` for one alone. It hears the records of the run.
        tasks: all there are, in the order of their N.
        batch_size: sequences in a step, over all processes.
        length: updates in an epoch, 600 in the paper, each followed by a test: give `polytask.fit` as ``evaluate_every=``
            as many.
        tests: batches of `held_out`, 50 in the paper.
        seed: every batch is a function of this, the epoch's number and the batch's.
        rank, world: this process and the number of processes; each gets its share of every batch.
    """

    def __init__(
        self,
        rule: str,
        curriculum: Curriculum,
        tasks: Sequence[str],
        batch_size: int = 256,
        length: int = 600,
        tests: int = 50,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _rule(rule)
        if min(batch_size, length, tests) < 1 or batch_size < world:
            raise InputError(f"batch size {batch_size}, length {length}, tests {tests}: expected >= 1, a row a process")
        self.rule, self.sampling, self.names = rule, curriculum, list(tasks)
        self.batch_size, self.length, self.tests, self.seed = batch_size, length, tests, seed
        self.rank, self.world = rank, world
        self.history: Sequence[Mapping[str, Any]] = ()
        self.number = 0
        self.tasks(0)

    def __len__(self) -> int:
        return self.length

    def hear(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Go by these records of the run from now on. An epoch knows only those up to its start."""
        self.history = tuple(history)

    def tasks(self, epoch: int) -> list[str]:
        """Those that take part in an epoch, in their order."""
        heard = [record for record in self.history if record["epoch"] <= epoch]
        part = self.sampling.tasks(self.names, epoch, heard)
        return [name for name in self.names if name in part]

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        self.number = number
        tasks = self.tasks(number)
        for i in range(skip, self.length):
            yield self._batch(tasks, generator(self.seed, number, i, 0))

    @property
    def held_out(self) -> HeldOut:
        """Batches of the same tasks to test on, for ``validation=``."""
        return HeldOut(self)

    def _batch(self, tasks: Collection[str], key: Generator) -> Batch:
        bits, targets = draw(self.rule, tasks, self.batch_size, key)
        mine = slice(self.rank, None, self.world)
        return bits[mine], {task: target[mine] for task, target in targets.items()}


class HeldOut:
    """The sequences that a stream holds out in the epoch that is being trained."""

    def __init__(self, stream: BitStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.tests

    def __iter__(self) -> Iterator[Batch]:
        stream = self.stream
        tasks = stream.tasks(stream.number)
        for i in range(stream.tests):
            yield draw(stream.rule, tasks, stream.batch_size, generator(stream.seed, stream.number, i, 1))


def draw(rule: str, tasks: Collection[str], count: int, generator: Generator | None = None) -> Batch:
    """``count`` sequences of one length, drawn from ``N + 2 .. 4 N + 1``, and their labels for these tasks."""
    longest = max(number_of(task) for task in tasks)
    length = longest + 2 + int(torch.randint(3 * longest, (), generator=generator))
    _, sequences = _rule(rule)
    bits = sequences(count, length, generator)
    return bits, labels(rule, bits, tasks)


def _rule(rule: str) -> tuple[Callable[[Tensor, int], Tensor], Callable[[int, int, Generator | None], Tensor]]:
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: {suggest(rule, RULES)}")
    return RULES[rule]
