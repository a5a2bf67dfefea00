"""One run on a super-network: its weights and the tasks' distributions are learned together."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.modes import evaluating
from polytask.nn.recalibration import recalibrate
from polytask.shrink.search.distributions import Precise
from polytask.shrink.search.goal import Goal
from polytask.shrink.search.one_run import Costs
from polytask.shrink.search.reinforce import MultiTaskReinforce
from polytask.shrink.search.space import Configuration, Rows


class Supernetwork(Protocol):
    """What is asked of a super-network: the losses of all tasks at a configuration, which is an argument, in one pass."""

    def losses(self, batch: Any, configuration: Configuration) -> dict[str, Tensor]:
        """Scalar losses by task; a task that the batch has no labels for is left out."""
        ...

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks train."""
        ...


class OneRun(nn.Module):
    """The losses of a super-network at one sampled architecture a step, which `polytask.fit` trains; by the way each task's
    distribution over architectures is learned (Wu et al., *FBNetV5*, arXiv 2111.10007, 2021).

    In training a call of `losses` draws one architecture from the mixture of the tasks' distributions, makes one forward
    pass with the heads of all tasks, and gives ``rho_t L_t``, so that the weights are trained for the architectures that
    each task is likely to choose. After every `MultiTaskReinforce.count` calls the distributions make a step by what these
    calls lost. The first ``warm_up`` calls train weights alone, on architectures of the distributions as they start: uniform
    by default.

    Everything that is learned is a parameter or a buffer, and what is random is torch's: a run of `polytask.fit` that was
    killed goes on. With several processes each draws its own architecture, and all learn from all of them.

    In evaluation mode a task's loss is that of its most probable architecture, by running statistics of batch norms that
    are a mixture over what was sampled: to compare architectures use `Validated`.

    Args:
        network: see `Supernetwork`. In training its batch norms have the batch's own statistics.
        reinforce: how the distributions are learned.
        goals: for each of its tasks what it wants: the quality is the name of a loss, that of its task, and lower is better.
        costs: the costs that goals name.
        warm_up: so many calls before the distributions move. How long the paper trains weights first is not known.
        weigh: whether losses are weighed by ``rho_t``; else they are taken as they are.
    """

    calls: Tensor

    def __init__(
        self,
        network: Supernetwork,
        reinforce: MultiTaskReinforce,
        goals: Mapping[str, Goal],
        costs: Costs | None = None,
        warm_up: int = 0,
        weigh: bool = True,
    ) -> None:
        super().__init__()
        tasks = reinforce.distributions.tasks
        if tuple(goals) != tasks:
            raise InputError(f"goals of {list(goals)}, expected one for each task in order: {list(tasks)}")
        if costs is None and any(goal.cost is not None for goal in goals.values()):
            raise InputError("a goal has a cost, expected costs=, a function of a configuration")
        if warm_up < 0:
            raise InputError(f"warm_up {warm_up}, expected a number of calls, at least 0")
        self.network: Any = network
        self.reinforce = reinforce
        self.goals, self.costs, self.warm_up, self.weigh = dict(goals), costs, warm_up, weigh
        self.tasks = tasks
        self.waiting = _Waiting(reinforce.samples, len(reinforce.distributions.space.names), len(tasks))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The loss of each task that the batch has targets for, at one architecture."""
        distributions = self.reinforce.distributions
        space = distributions.space
        if not self.training:
            return self._most_probable(batch)
        row = distributions.sample(1)
        configuration = space.configuration(row[0])
        losses: dict[str, Tensor] = self.network.losses(batch, configuration)
        ratios = dict(zip(self.tasks, self.reinforce.ratios(row)[:, 0], strict=True))
        self.calls += 1
        if int(self.calls) > self.warm_up:
            self._learn(row, losses, self.costs(configuration) if self.costs is not None else {})
        return {task: ratios[task].to(loss) * loss for task, loss in losses.items()} if self.weigh else losses

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The super-network's."""
        shared: Iterator[nn.Parameter] = self.network.shared_parameters()
        return shared

    def _most_probable(self, batch: Any) -> dict[str, Tensor]:
        space = self.reinforce.distributions.space
        found: dict[str, Tensor] = {}
        for task, row in zip(self.tasks, self.reinforce.distributions.most_probable(), strict=True):
            losses = self.network.losses(batch, space.configuration(row))
            found |= {task: losses[task]} if task in losses else {}
        return found

    @torch.no_grad()
    def _learn(self, row: Rows, losses: Mapping[str, Tensor], costs: Mapping[str, float]) -> None:
        values = {**{task: loss.item() for task, loss in losses.items()}, **costs}
        like = self.waiting.quality
        quality, penalty = (
            torch.tensor([[each(goal, values) for goal in self.goals.values()]]).to(like)
            for each in (Goal.value, Goal.penalty)
        )
        if batch := self.waiting.add(torch.from_numpy(row).to(like.device), quality, penalty, self.reinforce.count):
            self.reinforce.update(batch[0].cpu().numpy(), *batch[1:])


class _Waiting(Precise):
    """Samples that wait for their batch to be whole: a checkpoint has them too."""

    rows: Tensor
    quality: Tensor
    penalty: Tensor
    held: Tensor

    def __init__(self, samples: int, genes: int, tasks: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(samples, genes, dtype=torch.int64))
        self.register_buffer("quality", torch.zeros(samples, tasks))
        self.register_buffer("penalty", torch.zeros(samples, tasks))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    def add(self, rows: Tensor, quality: Tensor, penalty: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Add samples, those of all processes; the whole batch when there are as many as are wanted, which then are gone."""
        held = int(self.held)
        kept = (self.rows, self.quality, self.penalty)
        new = (_of_all(rows), _of_all(quality), _of_all(penalty))
        if held + len(new[0]) >= wanted:
            self.held.zero_()
            rows, quality, penalty = (torch.cat([a[:held], b]) for a, b in zip(kept, new, strict=True))
            return rows, quality, penalty
        for a, b in zip(kept, new, strict=True):
            a[held : held + len(b)] = b
        self.held += len(new[0])
        return None


def _of_all(tensor: Tensor) -> Tensor:
    """The rows of all processes of a run, in order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    each = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(each, tensor.contiguous())
    return torch.cat(each)


class Validated:
    """Measures architectures of a trained super-network, for `choose` or `search`: each task's mean loss over held-out
    batches, with the statistics of batch norms measured anew for each architecture.

    Args:
        network: see `Supernetwork`; it is copied.
        batches: what to measure on, in memory, as ``losses`` takes them; each counts the same.
        calibration: batches for the statistics, of *training* data; labels are not used for anything.
        costs: further numbers of a configuration.
    """

    def __init__(
        self, network: Supernetwork, batches: Iterable[Any], calibration: Iterable[Any], costs: Costs | None = None
    ) -> None:
        self.at = _At(copy.deepcopy(network))
        self.batches, self.calibration, self.costs = list(batches), list(calibration), costs
        if not self.batches or not self.calibration:
            raise InputError(
                f"{len(self.batches)} batches and {len(self.calibration)} to calibrate, expected at least 1 of each"
            )

    @torch.no_grad()
    def __call__(self, configuration: Configuration) -> dict[str, float]:
        self.at.configuration = configuration
        recalibrate(self.at, self.calibration)
        found: dict[str, list[float]] = {}
        with evaluating(self.at):
            for batch in self.batches:
                for task, loss in self.at(batch).items():
                    found.setdefault(task, []).append(float(loss))
        costs = self.costs(configuration) if self.costs is not None else {}
        return {**{task: math.fsum(each) / len(each) for task, each in found.items()}, **costs}


class _At(nn.Module):
    """A super-network at one configuration, as a plain network is called."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.configuration: Configuration = {}

    def forward(self, batch: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.network.losses(batch, self.configuration)
        return losses
