"""Transitions: what was observed, what was done, and what was observed next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.stream import generator
from polytask.errors import InputError


class Transition(NamedTuple):
    """``N`` transitions, of one step or several.

    Attributes:
        observation: ``(N, ...)``, as recorded: images are uint8.
        action: ``(N,)`` int64.
        reward: ``(N,)`` float32, ``sum_k gamma^k r_k`` over the steps.
        next: ``(N, ...)`` what was observed after the last step; anything where ``done``.
        done: ``(N,)`` bool: the episode ended there, and nothing is to come. An episode that was merely cut off is not done.
        steps: ``(N,)`` int64, how many steps there are: fewer than asked for at an episode's end.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next: Tensor
    done: Tensor
    steps: Tensor

    def discount(self, gamma: float) -> Tensor:
        """``(N,)``: what a value of what is next counts, ``gamma^steps``, and 0 where the episode is done."""
        return torch.where(self.done, 0.0, gamma ** self.steps.float())


@dataclass(frozen=True, eq=False)
class Transitions:
    """Episodes after one another as rows, in order: each frame is kept once, however many observations it is part of.

    Row ``t`` has a frame, the action taken there and what came of it; the next frame is in row ``t + 1``. Where an episode
    is done nothing follows. Where one is cut off, the frame after its last action has a row without a transition.

    Args:
        name: what to call them in errors.
        frames: ``(F, C, ...)``; uint8 for images.
        action: ``(F,)`` integers from 0.
        reward: ``(F,)``.
        done: ``(F,)`` bool: the action of this row ended the episode.
        cut: ``(F,)`` bool: no action was taken in this row.
        actions: how many actions there are.
        stack: frames of an observation, joined along their first dimension ``C``, the newest last; those before an episode's
            first are zero.

    Raises:
        InputError: naming the row: an action that there is not, a reward that is not finite, a last row with a transition
            that leads nowhere; or tensors that do not fit one another.

    >>> episode = Transitions("walk", torch.arange(4)[:, None], torch.tensor([0, 1, 0, 0]), torch.ones(4),
    ...                       done=torch.tensor([0, 0, 0, 0]) > 0, cut=torch.tensor([0, 0, 0, 1]) > 0, actions=2)
    >>> batch = episode.batch(torch.tensor([0, 2]), steps=2, gamma=0.5)
    >>> batch.next.flatten().tolist(), batch.reward.tolist(), batch.steps.tolist()
    ([2, 3], [1.5, 1.0], [2, 1])
    """

    name: str
    frames: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor
    cut: Tensor
    actions: int
    stack: int = 1
    places: Tensor = field(init=False)
    """``(T,)`` int64: the rows with a transition."""
    first: Tensor = field(init=False)
    """``(F,)`` int64: the row in which a row's episode begins."""

    def __post_init__(self) -> None:
        count = len(self.frames)
        columns = {"actions": self.action, "rewards": self.reward, "done": self.done, "cut": self.cut}
        for what, column in columns.items():
            if column.shape != (count,):
                raise InputError(f"{self.name}: {what} {tuple(column.shape)} for {count} frames, expected ({count},)")
        if self.frames.ndim < 2 or self.stack < 1 or self.action.is_floating_point():
            raise InputError(
                f"{self.name}: frames {tuple(self.frames.shape)}, stack {self.stack}, actions {self.action.dtype}: expected "
                "(F, C, ...), at least 1, and integers"
            )
        object.__setattr__(self, "reward", self.reward.float())
        object.__setattr__(self, "action", self.action.long())
        wrong = ~self.cut & ((self.action < 0) | (self.action >= self.actions))
        self._refuse(wrong, "action", self.action, f"0 to {self.actions - 1}")
        self._refuse(~self.cut & ~self.reward.isfinite(), "reward", self.reward, "a finite number")
        if count and not bool(self.done[-1] | self.cut[-1]):
            raise InputError(f"{self.name}: row {count}: a transition without a next frame, expected one done, or a row cut")
        object.__setattr__(self, "places", (~self.cut).nonzero()[:, 0])
        starts = torch.ones(count, dtype=torch.bool)
        starts[1:] = (self.done | self.cut)[:-1]
        object.__setattr__(self, "first", torch.where(starts, torch.arange(count), 0).cummax(0).values)

    def _refuse(self, wrong: Tensor, what: str, values: Tensor, expected: str) -> None:
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InputError(f"{self.name}: row {row + 1}: {what} {values[row].item()}, expected {expected}")

    def __len__(self) -> int:
        return len(self.places)

    def head(self, count: int) -> Transitions:
        """The first ``count`` transitions."""
        if not 0 < count <= len(self):
            raise InputError(f"{self.name}: the first {count} transitions, expected 1 to {len(self)}")
        last = int(self.places[count - 1])
        rows = last + 1 if self.done[last] else last + 2
        cut = self.cut[:rows].clone()
        cut[last + 1 :] = True
        return replace(
            self,
            frames=self.frames[:rows],
            action=self.action[:rows],
            reward=self.reward[:rows],
            done=self.done[:rows],
            cut=cut,
        )

    def observations(self, rows: Tensor) -> Tensor:
        """``(N, stack C, ...)``: what was observed in ``rows`` ``(N,)``."""
        if self.stack == 1:
            return self.frames[rows]
        first, found = self.first[rows], []
        for back in reversed(range(self.stack)):
            row = rows - back
            there = (row >= first).view(-1, *[1] * (self.frames.ndim - 1))
            found.append(self.frames[row.maximum(first)] * there)
        return torch.cat(found, 1)

    def batch(self, index: Tensor, steps: int = 1, gamma: float = 1.0) -> Transition:
        """The transitions ``index`` ``(N,)``, and up to ``steps`` of their episode from there on, rewards discounted."""
        rows = self.places[index]
        reward, last, count = several_steps(rows, steps, gamma, self.reward, self.done, self.cut)
        following = (last + 1).clamp(max=len(self.frames) - 1)
        # What is next of an episode that is done is in another episode, or nowhere: any observation will do.
        return Transition(
            self.observations(rows),
            self.action[rows],
            reward,
            self.observations(following),
            self.done[last],
            count,
        )


def several_steps(
    rows: Tensor, steps: int, gamma: float, reward: Tensor, done: Tensor, cut: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From ``rows`` ``(N,)``, which have a transition, up to ``steps`` rows on, in a ring: discounted rewards, the last row
    with a transition of the same episode, and how many there are, each ``(N,)``.
    """
    total, last, count = reward[rows], rows, torch.ones_like(rows)
    live = torch.ones_like(rows, dtype=torch.bool)
    for k in range(1, steps):
        row = (rows + k) % len(reward)
        live = live & ~done[last] & ~cut[row]
        total = total + torch.where(live, gamma**k * reward[row], 0.0)
        last, count = torch.where(live, row, last), count + live
    return total, last, count


class TransitionBatches:
    """A stream of `Transition`, in random order; an incomplete last batch is dropped.

    Args:
        transitions: what to draw from.
        batch_size: transitions in a step, over all processes together.
        seed: an epoch is a function of this and its number.
        steps, gamma: of each transition: see `Transitions.batch`.
        rank, world: this process and the number of processes; each gets its share of every batch.
    """

    def __init__(
        self,
        transitions: Transitions,
        batch_size: int = 256,
        seed: int = 0,
        *,
        steps: int = 1,
        gamma: float = 1.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not world <= batch_size <= len(transitions) or steps < 1:
            raise InputError(
                f"{transitions.name}: batch size {batch_size} of {steps} steps, expected {world} to {len(transitions)}, the "
                "number of transitions, and at least 1 step"
            )
        self.transitions, self.batch_size, self.seed = transitions, batch_size, seed
        self.steps, self.gamma, self.rank, self.world = steps, gamma, rank, world

    def __len__(self) -> int:
        return len(self.transitions) // self.batch_size

    def epoch(self, number: int, skip: int = 0) -> Iterator[Transition]:
        order = torch.randperm(len(self.transitions), generator=generator(self.seed, number))
        for k in range(skip, len(self)):
            chunk = slice(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world)
            yield self.transitions.batch(order[chunk], self.steps, self.gamma)
