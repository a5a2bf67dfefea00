"""Episodes: a few classes, a few samples of each that are shown, and one that is asked about."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polytask.data.stream import generator
from polytask.errors import InputError
from polytask.papers.ofa.task import TextTask


class Episodes:
    """A stream of batches of episodes of one task, ``({"query", "classes", "support"}, targets (B, n))``.

    For an episode ``n`` of the classes are drawn, ``k`` of the samples of each, and of one of these classes another sample,
    all without replacement. Each batch has one ``n`` and one ``k`` of those given. Where none are shown, ``k = 0``, the
    classes' texts alone tell.

    Args:
        task: with one class for each sample; those without a label are left out.
        samples: ``(M,)`` which of its samples, all by default.
        classes: the numbers of the classes that are drawn from; all by default. One with fewer samples than a batch needs,
            ``max(shots) + 1``, is left out.
        ways: ``n`` or several; the paper has 5, and 10 to 19 for FB15K237.
        shots: ``k`` or several; the paper trains with 0 to 4.
        batch_size: episodes in a step, over all processes together; the paper has 4.
        length: steps in an epoch.
        seed: an epoch is a function of this and its number.
        rank, world: this process and the number of processes; each gets its share of every batch.
    """

    def __init__(
        self,
        task: TextTask,
        samples: Tensor | None = None,
        classes: Tensor | None = None,
        *,
        ways: int | tuple[int, ...] = 5,
        shots: int | tuple[int, ...] = (0, 1, 2, 3, 4),
        batch_size: int = 4,
        length: int = 100,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.task, self.batch_size, self.length, self.seed, self.rank, self.world = (
            task,
            batch_size,
            length,
            seed,
            rank,
            world,
        )
        self.ways, self.shots = ((value,) if isinstance(value, int) else tuple(value) for value in (ways, shots))
        chosen = torch.arange(len(task)) if samples is None else samples
        labels = task.labels[chosen]
        known = (labels == 1).sum(1) == 1
        by_class, order = labels[known].argmax(1).sort(stable=True)
        self.samples = chosen[known][order]
        sizes = torch.bincount(by_class, minlength=labels.shape[1])
        self.starts = sizes.cumsum(0) - sizes
        self.sizes = sizes
        able = sizes > max(self.shots, default=0)
        drawn = torch.arange(len(sizes)) if classes is None else classes
        self.classes = drawn[able[drawn]]
        if not self.ways or not self.shots or min(self.ways) < 1 or min(self.shots) < 0 or batch_size < world or length < 1:
            given = f"ways {self.ways}, shots {self.shots}, batches of {batch_size}, {length} steps"
            raise InputError(
                f"{given}: expected ways >= 1, shots >= 0, a batch for {world} processes, and at least one step"
            )
        if len(self.classes) < max(self.ways):
            found = f"{len(self.classes)} classes with {max(self.shots) + 1} samples or more"
            raise InputError(f"task {task.name!r}: {found}, expected at least {max(self.ways)}")

    def __len__(self) -> int:
        return self.length

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for step in range(skip, self.length):
            key = generator(self.seed, number, step)
            ways, shots = (
                values[int(torch.randint(len(values), (1,), generator=key))] for values in (self.ways, self.shots)
            )
            yield self.batch(ways, shots, key)

    def batch(self, ways: int, shots: int, key: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Episodes of ``ways`` classes with ``shots`` samples of each, this process's share of them."""
        count = self.batch_size
        classes = self.classes[torch.rand(count, len(self.classes), generator=key).argsort(1)[:, :ways]]
        asked = torch.randint(ways, (count,), generator=key)
        # One sample more than is shown of each class: that of the class which is asked about becomes the query.
        drawn = self.samples[self.starts[classes][..., None] + _distinct(self.sizes[classes], shots + 1, key)]
        episodes = {"query": drawn[torch.arange(count), asked, shots], "classes": classes, "support": drawn[:, :, :shots]}
        targets = torch.nn.functional.one_hot(asked, ways).float()
        own = slice(self.rank, None, self.world)
        return {name: value[own] for name, value in episodes.items()}, targets[own]


def _distinct(sizes: Tensor, count: int, key: torch.Generator) -> Tensor:
    """``(*sizes.shape, count)``: for each size that many distinct numbers below it, in random order."""
    chosen = torch.empty(*sizes.shape, 0, dtype=torch.int64)
    for taken in range(count):  # the place among the numbers that are left, then its number: past the smaller ones taken
        found = (torch.rand(sizes.shape, generator=key, dtype=torch.float64) * (sizes - taken)).long()
        for earlier in chosen.sort(-1).values.unbind(-1):
            found = found + (found >= earlier)
        chosen = torch.cat([chosen, found[..., None]], -1)
    return chosen
