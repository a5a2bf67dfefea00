"""TAME: experts that come when the loss says that the task has changed (Zhu et al., 2024, arXiv 2210.03869)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from polytask.errors import InputError, TrainingError
from polytask.route.continual.detector import ShiftDetector
from polytask.route.continual.pruning import Pruning
from polytask.route.continual.reservoir import Reservoir, keys_of
from polytask.route.continual.routed import RoutedExperts


@dataclass(frozen=True)
class Event:
    """What a batch came to.

    Attributes:
        expert: the index of the expert that is active now.
        alarm: whether the loss of the one before was above its threshold.
        created: whether the expert is new.
        trained: whether it took a step on the batch.
        losses: each expert's loss before any step; of those that were not evaluated it is not there.
    """

    expert: int
    alarm: bool
    created: bool
    trained: bool
    losses: dict[int, float]


@dataclass
class _Expert:
    network: nn.Module
    optimizer: Optimizer
    schedule: Any
    detector: ShiftDetector


class TAME:
    """Learns from a stream of batches whose tasks are neither named nor announced.

    Every batch is first judged, in evaluation mode: while the active expert's smoothed loss is within its threshold
    (`ShiftDetector`) it is trained on the batch. Else the first expert that fits, in the order in which they were made, the
    one just left among them, goes on with the batch, or a new one begins with it. A sample of the inputs and who was
    active is kept for the selector (`fit_selector`).

    Mixed precision and devices are the caller's: call `step` under ``torch.autocast``, and let ``expert`` make networks
    where the batches are.

    Args:
        expert: makes a new network.
        optimizer: from its parameters to an optimizer; by default SGD, lr 0.1, momentum 0.9, weight decay 5e-4.
        first: the loss of an untrained expert, ``ln C`` for ``C`` classes.
        loss: from outputs and targets to the mean loss of a batch.
        schedule: from an optimizer to a scheduler, which steps whenever its expert does.
        window, beta, deviations: of each expert's `ShiftDetector`.
        buffer: how many inputs are kept for the selector, in equal parts for each ``group``.
        group: from an expert's index and a target to what has a part of the buffer; by default
            both, and the expert alone where targets are not single labels.
        pruning: how an expert is pruned when it is left, and the last one by `finish`; by default none is.
        patience: how many batches in a row have to raise an alarm before it counts; the others are not trained on. 1 in the
            paper.
        most: the greatest number of experts; then the one of lowest loss goes on. No limit in the paper.
        lazy: evaluate the other experts at an alarm alone, in place of on each batch.
        seed: of the buffer.
    """

    def __init__(
        self,
        expert: Callable[[], nn.Module],
        optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] | None = None,
        *,
        first: float,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        schedule: Callable[[Optimizer], Any] | None = None,
        window: int = 100,
        beta: float = 0.2,
        deviations: float = 3.0,
        buffer: int = 5000,
        group: Callable[[int, Tensor], Hashable] | None = None,
        pruning: Pruning | None = None,
        patience: int = 1,
        most: int | None = None,
        lazy: bool = False,
        seed: int = 0,
    ) -> None:
        if patience < 1 or (most is not None and most < 1) or window < 1 or not 0 < beta <= 1:
            raise InputError(
                f"TAME: patience {patience}, most {most}, window {window}, beta {beta}: "
                "expected at least 1, and a beta in (0, 1]"
            )
        self.expert, self.loss, self.schedule = expert, loss, schedule
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4))
        self.detector = partial(ShiftDetector, first, window, beta, deviations)
        self.group = group or (lambda index, target: (index, target.item()) if target.dim() == 0 else index)
        self.pruning, self.patience, self.most, self.lazy, self.seed = pruning, patience, most, lazy, seed
        self.members: list[_Expert] = []
        self.current = -1
        self.alarms = 0
        self.batches = 0
        self.reservoir = Reservoir(buffer, seed)
        self._own = Reservoir(pruning.capacity, seed + 1) if pruning else None

    @property
    def experts(self) -> list[nn.Module]:
        """The networks, in the order in which they were made."""
        return [member.network for member in self.members]

    def step(
        self, inputs: Tensor, targets: Tensor, keys: Sequence[Hashable] | None = None, *, shift: bool | None = None
    ) -> Event:
        """One batch of the stream.

        Args:
            inputs: ``(N, ...)``.
            targets: as the loss takes them, ``(N, ...)``.
            keys: which examples they are, so that each enters the buffer once; by default their content says it.
            shift: in place of the detector, where boundaries are known: whether the task has changed with this batch. The
                expert that goes on is found as ever.

        Raises:
            TrainingError: for a loss that is not finite, before any step on the batch.
        """
        self.batches += 1
        losses: dict[int, float] = {}
        watched = range(len(self.members)) if not self.lazy else [self.current] if self.members else []
        for index in watched:
            self._judge(index, inputs, targets, losses)
        found = bool(self.members) and self._alarmed()
        alarm = found if shift is None else bool(self.members) and shift
        created = not self.members
        self.alarms = self.alarms + 1 if alarm else 0
        if created:
            self._create(inputs, targets, losses)
        elif alarm and shift is None and self.alarms < self.patience:
            return Event(self.current, True, False, False, losses)
        elif alarm:
            created = self._switch(inputs, targets, losses, known=shift is not None)
        else:
            self.members[self.current].detector.accept(losses[self.current])
        self._train(self.members[self.current], inputs, targets)
        self.keep(inputs, targets, keys)
        return Event(self.current, alarm, created, True, losses)

    def keep(self, inputs: Tensor, targets: Tensor, keys: Sequence[Hashable] | None = None) -> None:
        """Let a batch into the reservoir, as `step` does after its step."""
        for key, one, target in zip(keys if keys is not None else keys_of(inputs), inputs, targets, strict=True):
            group = self.group(self.current, target)
            self.reservoir.add(key, group, (one.detach().clone(), self.current, target.detach().clone()))
            if self._own is not None:
                self._own.add(key, group, (one.detach().clone(), target.detach().clone()))

    def samples(self) -> list[tuple[Tensor, int]]:
        """The inputs that were kept, and the expert that was active when each was seen first."""
        return [(inputs, expert) for inputs, expert, _ in self.reservoir.items()]

    def examples(self) -> tuple[Tensor, Tensor]:
        """The same with their targets: what a replay of past batches would have."""
        inputs, _, targets = zip(*self.reservoir.items(), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def finish(self) -> None:
        """The stream has ended: prune the expert that was active."""
        if self.members:
            self._leave()

    def routed(self, selector: nn.Module | None = None) -> RoutedExperts:
        """The experts behind a selector, in evaluation mode: an ordinary module to predict with and to save."""
        return RoutedExperts(self.experts, selector).eval()

    def _alarmed(self) -> bool:
        detector = self.members[self.current].detector
        detector.refresh()
        return detector.alarmed()

    @torch.no_grad()
    def _judge(self, index: int, inputs: Tensor, targets: Tensor, losses: dict[int, float]) -> None:
        network = self.members[index].network.eval()
        losses[index] = float(self.loss(network(inputs), targets))
        if losses[index] != losses[index] or abs(losses[index]) == float("inf"):
            raise TrainingError(
                f"batch {self.batches}: the loss of expert {index} is {losses[index]}, expected a finite number"
            )
        self.members[index].detector.observe(losses[index])

    def _switch(self, inputs: Tensor, targets: Tensor, losses: dict[int, float], known: bool) -> bool:
        """Go on with the first expert that fits the batch, or with a new one, which is said."""
        left, self.alarms = self.current, 0
        for index in range(len(self.members)):
            if index not in losses:
                self._judge(index, inputs, targets, losses)
        fit = [i for i, member in enumerate(self.members) if member.detector.fits(losses[i]) and not (known and i == left)]
        if fit:
            chosen = fit[0]
        elif self.most is not None and len(self.members) >= self.most:
            chosen = min(losses, key=lambda index: losses[index])
        else:
            self._leave()
            self._create(inputs, targets, losses)
            return True
        if chosen != left:
            self._leave()
        self.current = chosen
        return False

    def _create(self, inputs: Tensor, targets: Tensor, losses: dict[int, float]) -> None:
        network = self.expert()
        optimizer = self.optimizer(network.parameters())
        self.members.append(_Expert(network, optimizer, self.schedule and self.schedule(optimizer), self.detector()))
        self.current = len(self.members) - 1
        self._judge(self.current, inputs, targets, losses)
        self.members[self.current].detector.accept(losses[self.current])

    def _train(self, member: _Expert, inputs: Tensor, targets: Tensor) -> None:
        member.network.train()
        member.optimizer.zero_grad()
        self.loss(member.network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        member.optimizer.step()
        if member.schedule is not None:
            member.schedule.step()

    def _leave(self) -> None:
        """Prune the active expert, where that is asked for, and forget the examples that were kept for it."""
        if self.pruning is None or self._own is None or not len(self._own):
            return
        inputs, targets = (torch.stack(part) for part in zip(*self._own.items(), strict=True))
        self.pruning.apply(self.members[self.current].network, inputs, targets, self.loss, self.seed)
        self._own.clear()
