"""A leaky recurrent network with a time constant for each neuron, and the readouts of many memory tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, suggest
from polytask.papers.timescales.curricula import GOAL, solved
from polytask.papers.timescales.tasks import SMALLEST, number_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
CONTINUOUS = (7, 8, 9, 10)
"""How many steps a bit lasts in the continuous variant."""


class LeakyRNN(nn.Module):
    """``h' = phi((1 - 1/tau) h + (W h + w x + b) / tau)``, by default; no neuron is connected to itself.

    Args:
        width: neurons, ``n``; 500 in the paper.
        tau: fixed for all neurons; ``None`` (default) trains one for each, from ``1 + U(0, 1)``. Below 1 counts as 1.
        inside: the other model, ``h' = (1 - 1/tau) h + phi(W h + w x + b) / tau``.
        activation: ``phi``: ``leaky_relu`` (of slope 0.01), ``relu``, ``tanh`` or ``sigmoid``.
        inputs: numbers in a step, 1 for bits.
        repeats: for how many steps each input stays, drawn anew for each sequence of a forward pass from these; time
            constants are multiplied by it. `CONTINUOUS` with ``inside=True`` is the paper's continuous variant.

    The diagonal of ``W`` counts as 0 and gets no gradient, where released code sets it to 0 before each pass.
    """

    def __init__(
        self,
        width: int = 500,
        tau: float | None = None,
        inside: bool = False,
        activation: str = "leaky_relu",
        inputs: int = 1,
        repeats: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {activation!r}: {suggest(activation, ACTIVATIONS)}")
        if not repeats or min(repeats) < 1 or (tau is not None and not tau >= 1):
            raise InputError(f"repeats {tuple(repeats)}, tau {tau}: expected numbers >= 1")
        self.width, self.inside, self.repeats = width, inside, tuple(repeats)
        self.activation = ACTIVATIONS[activation]
        self.input, self.recurrent = nn.Linear(inputs, width), nn.Linear(width, width)
        self.raw_tau = nn.Parameter(1 + torch.rand(width) if tau is None else torch.full((width,), float(tau)))
        self.raw_tau.requires_grad_(tau is None)
        with torch.no_grad():
            self.recurrent.weight.fill_diagonal_(0.0)

    @property
    def tau(self) -> Tensor:
        """The time constants, ``(n,)``, at least 1."""
        return self.raw_tau.clamp(min=1)

    @property
    def weights(self) -> Tensor:
        """``W`` without its diagonal, ``(n, n)``."""
        weight = self.recurrent.weight
        return weight - torch.diag(weight.diagonal())

    def forward(self, x: Tensor, start: Tensor | None = None, repeat: int | None = None) -> Tensor:
        """The last state, ``(B, n)``, of sequences ``(B, M)`` or ``(B, M, inputs)``.

        Args:
            start: the first state, ``(B, n)``; drawn from ``0.1 U(0, 1)`` by default.
            repeat: how long each input stays; drawn from ``repeats`` by default.
        """
        for state in self._run(x, start, repeat):
            last = state
        return last

    def states(self, x: Tensor, start: Tensor | None = None, repeat: int | None = None) -> Tensor:
        """The states after each step, ``(M, B, n)``, or ``M`` times ``repeat`` of them. Arguments as for a forward pass."""
        return torch.stack(list(self._run(x, start, repeat)))

    def _run(self, x: Tensor, start: Tensor | None, repeat: int | None) -> Iterator[Tensor]:
        x = x[..., None] if x.ndim == 2 else x
        if x.shape[1] == 0:
            raise InputError("sequences of length 0, expected at least one step")
        if repeat is None:
            repeat = self.repeats[0] if len(self.repeats) == 1 else self.repeats[int(torch.randint(len(self.repeats), ()))]
        rate = 1 / (self.raw_tau * repeat).clamp(min=1)
        h = 0.1 * torch.rand(len(x), self.width, device=x.device, dtype=self.raw_tau.dtype) if start is None else start
        drive = (self.input(x.to(self.raw_tau.dtype)) + self.recurrent.bias).transpose(0, 1)
        steps = (step for step in drive.unbind(0) for _ in range(repeat))
        if self.inside:
            turned = self.weights.t()
            for step in steps:
                h = torch.lerp(h, self.activation(torch.addmm(step, h, turned)), rate)
                yield h
            return
        # All that is linear in the state, and all that does not depend on it, once for the whole sequence.
        turned = (self.weights * rate[:, None] + torch.diag(1 - rate)).t()
        steps = (step for step in (drive * rate).unbind(0) for _ in range(repeat))
        for step in steps:
            h = self.activation(torch.addmm(step, h, turned))
            yield h


class Gated(nn.Module):
    """An LSTM or a GRU in the place of the leaky network; its state begins at 0.

    Args:
        width: units, 500 in the paper.
        kind: ``"lstm"`` or ``"gru"``.
    """

    def __init__(self, width: int = 500, kind: str = "lstm", inputs: int = 1) -> None:
        super().__init__()
        kinds: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU}
        if kind not in kinds:
            raise InputError(f"unknown recurrent network {kind!r}: {suggest(kind, kinds)}")
        self.width = width
        self.cells = kinds[kind](inputs, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The last state, ``(B, width)``, of sequences ``(B, M)`` or ``(B, M, inputs)``."""
        return self.states(x)[-1]

    def states(self, x: Tensor) -> Tensor:
        """The states after each step, ``(M, B, width)``."""
        states: Tensor = self.cells(x[..., None] if x.ndim == 2 else x)[0]
        return states.transpose(0, 1)


class MemoryNetwork(nn.Module):
    """A recurrent core, and a linear readout of two classes for each N: the tasks ``"n2"``, ``"n3"``, ...

    Args:
        core: from sequences ``(B, M)`` to a state ``(B, core.width)``.
        heads: for ``N = 2 .. heads + 1``, 100 in the paper; they are one layer, allocated from the start.
        one_head: the first head serves all tasks, one at a time, as in the paper's single-head curriculum.
        goal: the accuracy above which tasks count as solved, for `evaluate`.
    """

    def __init__(self, core: nn.Module, heads: int = 100, one_head: bool = False, goal: float = GOAL) -> None:
        super().__init__()
        self.core, self.heads, self.one_head, self.goal = core, heads, one_head, goal
        width: Any = core.width
        self.readout = nn.Linear(width, 2 * heads)

    def forward(self, bits: Tensor, tasks: Sequence[str]) -> Tensor:
        """Logits of these tasks, ``(B, tasks, 2)``."""
        return self.read(self.core(bits), tasks)

    def read(self, state: Tensor, tasks: Sequence[str]) -> Tensor:
        """Logits from states ``(B, width)``."""
        places = [0 if self.one_head else number_of(task) - SMALLEST for task in tasks]
        if not 0 <= min(places) <= max(places) < self.heads:
            raise InputError(f"tasks {list(tasks)}, expected N from {SMALLEST} to {self.heads + SMALLEST - 1}")
        logits: Tensor = self.readout(state)
        return logits.view(-1, self.heads, 2)[:, places]

    def losses(self, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The cross entropy of each task that the batch has labels for; training takes their sum."""
        bits, labels = batch
        if self.one_head and len(labels) > 1:
            raise InputError(f"one head for the tasks {list(labels)} at once, expected one task in a batch")
        logits = self(bits, list(labels)).float()
        each = F.cross_entropy(logits.transpose(1, 2), torch.stack(list(labels.values()), 1), reduction="none").mean(0)
        return dict(zip(labels, each.unbind(), strict=True))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.core.parameters()

    def evaluate(self, data: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, dict[str, float]]:
        """Each task's ``accuracy`` on batches, and of ``"network"`` the ``progress`` and the mean ``tau``, if it has one.

        The progress is ``N``, the newest task's, where the tasks are solved together (`solved`), and else in between
        ``N - 1.5`` and ``N - 1``: monitored as ``"network/progress"``, it keeps the weights that solved the largest N.
        """
        right: dict[str, float] = {}
        count: dict[str, int] = {}
        device = self.readout.weight.device
        for bits, labels in data:
            found = self(bits.to(device), list(labels)).argmax(2)
            correct = (found == torch.stack(list(labels.values()), 1).to(device)).sum(0).tolist()
            for task, value in zip(labels, correct, strict=True):
                right[task] = right.get(task, 0) + value
                count[task] = count.get(task, 0) + len(bits)
        accuracies = {task: right[task] / count[task] for task in right}
        values, newest = list(accuracies.values()), number_of(list(accuracies)[-1])
        mean = sum(values) / len(values)
        network = {"progress": float(newest) if solved(values, self.goal) else newest - 1.5 + mean / 2}
        if isinstance(self.core, LeakyRNN):
            network["tau"] = float(self.core.tau.detach().mean())
        return {**{task: {"accuracy": value} for task, value in accuracies.items()}, "network": network}
