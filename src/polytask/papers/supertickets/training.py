"""Two in one: an architecture is searched and weights are pruned while one network trains; tickets are drawn on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from polytask.cost import macs
from polytask.nn.recalibration import recalibrate
from polytask.shrink import Masks, Removed, Slimming, Ticket, maskable, masks_by_score, ramp, stepwise


@dataclass(frozen=True)
class Schedule:
    """What happens when; the paper's for ImageNet by default. Time is in epochs.

    Args:
        epochs: of training.
        rho: the weight of the penalty on factors, to which it rises from ``free`` to ``warm``; 1.4e-4 for Cityscapes. 0
            searches nothing.
        decay: of the weights of convolutions and linear layers, as half its square in the loss: masked ones decay too.
        look: how often dead atoms are looked for; after the last epoch as well, and then in the average alone.
        threshold: factors up to it are dead.
        least: operations that dead atoms have to account for before they are removed; the last time any do.
        interval: how often weights are pruned and a ticket is drawn.
        final: the share of weights that is pruned in the end; reached by tenths, one for each interval. 0 prunes nothing.
        average: the decay of the moving average of weights, smaller in the first steps; 0 for the weights themselves.
        connectivity: ``"changing"`` scores all weights by their stored values each time, so that pruned ones can come back;
            ``"reset"`` lets all of them take part again between a ticket and the next; ``"frozen"`` leaves out for good.
        reuse: whether masks stay when atoms are removed; else all weights of the smaller network take part until the next
            interval. What the paper did for which of its figures is not known.
        budget, search: not in the paper, to compare at equal operations: the search is over once the operations are at
            ``budget``; after ``search`` epochs those with the smallest factors go until they are.
    """

    epochs: int = 350
    rho: float = 1.8e-4
    free: float = 0
    warm: float = 25
    decay: float = 1e-5
    look: int = 10
    threshold: float = 1e-3
    least: float = 1e6
    interval: int = 25
    final: float = 0.9
    average: float = 0.9999
    connectivity: Literal["changing", "reset", "frozen"] = "changing"
    reuse: bool = False
    budget: float | None = None
    search: int | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """A ticket, the epoch after which it was drawn (from 0), its sparsity, and its operations, those of zeros included."""

    epoch: int
    sparsity: float
    macs: int
    ticket: Ticket


def two_in_one(
    network: nn.Module,
    losses: Callable[[nn.Module, Any], Mapping[str, Tensor]],
    data: Callable[[int], Collection[Any]],
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    inputs: Sequence[Any],
    norms: str = "*",
    scheduler: LRScheduler | None = None,
    calibration: Sequence[Any] = (),
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> list[Drawn]:
    """Train a network, and draw a ticket at each interval; the network itself is left smaller, with all its stored weights.

    At the end of an epoch atoms are removed first, then weights are pruned and a ticket is drawn, as in the authors' code.
    There a kernel goes whose atoms are all dead; here one of them stays, so that modules keep their names.

    Args:
        network: any module; what `polytask.shrink.Slimming` asks for, unless ``rho`` is 0 and there is no budget.
        losses: from the network, as ``wrap`` gives it, and a batch to each task's loss; their sum is minimised.
        data: from the number of an epoch to its batches, such as ``lambda epoch: loader``.
        optimizer: of the network, without weight decay of its own.
        schedule: what happens when.
        inputs: one example of what the network takes.
        norms: a pattern of the batch norms whose factors are searched, `NORMS` for the paper's supernet.
        scheduler: stepped after each step.
        calibration: batches of inputs on which a ticket's batch norms are recalibrated; the paper takes ten.
        wrap: applied to the network at first and whenever its parameters are new, such as ``DistributedDataParallel``;
            processes then remove and prune the same.
    """
    slimming = Slimming(network, *inputs, norms=norms) if schedule.rho > 0 or schedule.budget is not None else None
    average = AveragedModel(network, multi_avg_fn=_averaging(schedule.average)) if schedule.average else None
    averaged = network if average is None else average.module
    masks, forward, found = Masks({}), wrap(network), list[Drawn]()
    for epoch in range(schedule.epochs):
        searching = slimming is not None and not _over(slimming, schedule, epoch)
        network.train()
        with masks.effective(network):
            batches = data(epoch)
            for number, batch in enumerate(batches):
                optimizer.zero_grad()
                loss = torch.stack(list(losses(forward, batch).values())).sum() + _decay(network, schedule.decay)
                if slimming is not None and searching:
                    rho = ramp(epoch + number / len(batches), schedule.rho, schedule.free, schedule.warm)
                    loss = loss + rho * slimming.penalty()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                if average is not None:
                    average.update_parameters(network)
        if slimming is not None and searching and (removed := _found(slimming, averaged, schedule, epoch)):
            copies = [] if average is None else [averaged]
            masks = slimming.remove(removed, optimizer=optimizer, averages=copies, masks=masks)
            masks, forward = masks if schedule.reuse else Masks({}), wrap(network)
        if (epoch + 1) % schedule.interval == 0:
            sparsity = stepwise(epoch, schedule.interval, schedule.final)
            masks = _pruned(network, masks if schedule.connectivity == "frozen" else Masks({}), sparsity)
            ticket = _calibrated(averaged, masks, calibration)
            found.append(Drawn(epoch, sparsity, slimming.macs if slimming else macs(network, *inputs), ticket))
            if schedule.connectivity == "reset":
                masks = Masks({})
    return found


def _over(slimming: Slimming, schedule: Schedule, epoch: int) -> bool:
    """Whether the search is over before this epoch."""
    by_time = schedule.search is not None and epoch >= schedule.search
    return by_time or (schedule.budget is not None and slimming.macs <= schedule.budget)


def _found(slimming: Slimming, average: nn.Module, schedule: Schedule, epoch: int) -> Removed:
    """What is removed after this epoch: dead atoms, once they are worth it; when the search is over what the budget asks."""
    last = epoch + 1 == schedule.epochs
    over = schedule.budget is not None and epoch + 1 == (schedule.search or schedule.epochs)
    if not (last or over or (epoch + 1) % schedule.look == 0):
        return {}
    networks = [average] if last else [slimming.network, average]
    dead = slimming.dead(*networks, threshold=schedule.threshold)
    saving = slimming.saving(dead) if dead else 0
    if schedule.budget is not None and (over or slimming.macs - saving <= schedule.budget):
        return slimming.smallest(average, schedule.budget)
    return dead if last or saving >= schedule.least else {}


def _pruned(network: nn.Module, masks: Masks, sparsity: float) -> Masks:
    """The masks of the largest stored weights, of those alone that ``masks`` keep."""
    if sparsity == 0:
        return masks
    scores = {name: weight.detach().abs() for name, weight in maskable(network).items()}
    return masks_by_score(scores, sparsity, within=masks)


def _calibrated(network: nn.Module, masks: Masks, calibration: Sequence[Any]) -> Ticket:
    """The ticket of a copy whose batch norms have the statistics of the network with masks."""
    network = copy.deepcopy(network)
    masks.apply(network)
    if calibration:
        recalibrate(network, calibration)
    return Ticket.of(network, masks)


def _decay(network: nn.Module, decay: float) -> Tensor | float:
    """Half the squares of the weights of two dimensions or more, as they are stored, times ``decay``."""
    if decay == 0:
        return 0.0
    return 0.5 * decay * torch.stack([weight.square().sum() for weight in maskable(network).values()]).sum()


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """A moving average that goes faster at first, ``min(decay, (1 + n) / (10 + n))`` after ``n`` steps."""

    def update(averages: Any, parameters: Any, steps: Any) -> None:
        torch._foreach_lerp_(averages, parameters, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))

    return update
