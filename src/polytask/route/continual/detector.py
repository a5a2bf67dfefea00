"""When an expert's loss is no longer that of its task."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field


@dataclass
class ShiftDetector:
    """An expert's smoothed loss against a threshold that its own recent losses set (TAME, section 3).

    ``s <- beta l + (1 - beta) s`` over all batches. While the expert is active the threshold is
    ``theta = mean(window) + deviations * max(std(window), floor)``, with the standard deviation of the window as a whole
    (divided by n); else it stays what it was. A batch that raised an alarm is never in the window.

    Args:
        first: the first number in the window, the loss of an untrained expert: ``ln C`` of ``C`` classes. It makes the
            deviation large at first, a time of grace.
        window: how many losses it holds, the number in ``first`` among them.
        beta: the weight of the newest loss.
        deviations: how many of them above the mean raise an alarm; infinity never does.
        floor: the least standard deviation.

    Attributes:
        smoothed: ``s``, over all batches; nothing before the first.
        active: the same over the batches that were accepted.
        threshold: ``theta``.
    """

    first: float
    window: int = 100
    beta: float = 0.2
    deviations: float = 3.0
    floor: float = 0.005
    smoothed: float | None = None
    active: float | None = None
    threshold: float = field(init=False)
    losses: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = deque([self.first], maxlen=self.window)
        self.refresh()

    def observe(self, loss: float) -> None:
        """A batch's loss, whether the expert is active or not, before any step on it."""
        self.smoothed = self._next(self.smoothed, loss)

    def refresh(self) -> None:
        """Set the threshold by the window: of the active expert, before its batch is judged."""
        mean = statistics.fmean(self.losses)
        self.threshold = mean + self.deviations * max(statistics.pstdev(self.losses, mean), self.floor)

    def alarmed(self) -> bool:
        """Whether the smoothed loss is above the threshold."""
        return self.smoothed is not None and self.smoothed > self.threshold

    def accept(self, loss: float) -> None:
        """A batch is the expert's own: its loss enters the window."""
        self.losses.append(loss)
        self.active = self._next(self.active, loss)

    def fits(self, loss: float) -> bool:
        """Whether an expert may go on with a batch of this loss, by the batches that it had accepted before."""
        return self._next(self.active, loss) < self.threshold

    def _next(self, before: float | None, loss: float) -> float:
        return loss if before is None else self.beta * loss + (1 - self.beta) * before
