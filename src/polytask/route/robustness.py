"""How a network with early exits can be attacked: objectives for `polytask.measure.attacks`, and what counts as success.

An attack can go for the answer (`fooling`), for the work that exits save (`slowing`), or for the early exits alone while the
last one stays right (`early_only`): whoever compares with the whole network then sees nothing. Each objective runs the
network in evaluation mode, and looks at the exits' logits rather than at their decisions, so that it has a gradient.

>>> from torch import nn
>>> from polytask.measure.attacks import pgd
>>> from polytask.route import EarlyExit
>>> _ = torch.manual_seed(1)
>>> network = EarlyExit([nn.Linear(4, 8), nn.Tanh()], {1: nn.Linear(8, 3), 2: nn.Linear(8, 3)}).eval()
>>> images = torch.rand(20, 4)
>>> with torch.no_grad():
...     _ = network.thresholds.copy_(network(images)[0].softmax(1).amax(1).median())  # half of them leave early
>>> slow = pgd(slowing(network), images, torch.zeros(20), radius=0.5).images
>>> network.run(images).exits.bincount().tolist(), network.run(slow).exits.bincount().tolist()
([11, 9], [0, 20])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.nn.modes import evaluating
from polytask.nn.objective import Aim, LabelLoss, Objective, label_loss
from polytask.route.early_exit import EarlyExit

Through: TypeAlias = Literal["fired", "sum", "all"]


def view(network: EarlyExit, through: Through = "fired") -> Callable[[Tensor], Tensor]:
    """A network with early exits as one differentiable function of images, for any attack that wants logits.

    Args:
        network: runs in evaluation mode, and has its modes back afterwards.
        through: ``"fired"``: the answer's logits, ``(N, classes)``, with nothing behind an example's exit computed;
            ``"sum"``: the sum of all exits' logits; ``"all"``: those of all exits, ``(N, exits, classes)``.
    """
    _check(through)

    def function(x: Tensor) -> Tensor:
        with evaluating(network):
            if through == "fired":
                return network.run(x, gradients=True).outputs
            every = torch.stack(network(x), 1)
        return every if through == "all" else every.sum(1)

    return function


def fooling(
    network: EarlyExit,
    through: Through = "fired",
    loss: LabelLoss = "margin",
    costs: Sequence[float] | None = None,
) -> Objective:
    """Raise ``loss`` until the answer is not the label; beside the images the objective takes labels ``(N,)``.

    Args:
        network: any.
        through: where the gradient comes from. ``"fired"``: the answer's own loss, through the blocks that were run for it;
            ``"sum"``: the loss of the sum of logits; ``"all"``: the sum of all exits' losses, and then every exit has to be
            wrong.
        loss: see `polytask.nn.objective.label_loss`.
        costs: of an evaluation up to each exit, such as twice `polytask.route.exit_costs` for forward and back; each image
            is charged for the exit it took, for the last one where all are computed.
    """
    _check(through)

    def objective(images: Tensor, labels: Tensor) -> Aim:
        with evaluating(network):
            if through == "fired":
                outputs, exits = network.run(images, gradients=True)
                value = label_loss(outputs, labels, loss)
                return Aim(value, outputs.argmax(1) != labels, _charged(costs, exits))
            every = network(images)
        if through == "sum":
            value = label_loss(torch.stack(every).sum(0), labels, loss)
            reached = network.decide(every).outputs.argmax(1) != labels
        else:
            value = torch.stack([label_loss(one, labels, loss) for one in every]).sum(0)
            reached = torch.stack([one.argmax(1) != labels for one in every]).all(0)
        return Aim(value, reached, _charged(costs, torch.full_like(labels, -1)))

    return objective


def slowing(network: EarlyExit, costs: Sequence[float] | None = None) -> Objective:
    """Make no early exit sure enough to leave at: minus the early exits' cross-entropies to the even distribution.

    A slowdown attack (Hong et al., *A panda? No, it's a sloth: slowdown attacks on adaptive multi-exit neural network
    inference*, ICLR 2021). It is reached where an example leaves at the last exit. Beside the images it takes anything of
    their number, such as labels, and does not look at it. What it came to is `polytask.route.efficacy`.

    Args:
        network: with at least one early exit.
        costs: as for `fooling`; all exits are computed.
    """
    _has_early_exits(network)

    def objective(images: Tensor, labels: Tensor) -> Aim:
        with evaluating(network):
            every = network(images)
        exits = network.decide(every).exits
        value = torch.stack([one.float().log_softmax(1).mean(1) for one in every[:-1]]).sum(0)
        return Aim(value, exits == len(every) - 1, _charged(costs, torch.full_like(exits, -1)))

    return objective


def early_only(network: EarlyExit, alpha: float = 1.0, costs: Sequence[float] | None = None) -> Objective:
    """Be wrong at every early exit and right at the last one: EarlyAttack (Haque and Yang, 2023).

    Its value is minus ``sum_{k<L} p^k_y - alpha * sum_{j != y} relu(p^L_y - p^L_j)``, where ``p^k`` is the softmax of exit
    ``k``. It is reached where the largest of each early exit is not ``y``, and that of the last is.

    Args:
        network: with at least one early exit.
        alpha: how strongly ``y`` is kept at the last exit; the authors try 0.001 to 40.
        costs: as for `fooling`; all exits are computed.

    Beside the images it takes ``y``, ``(N,)``: what the last exit says of the images as they are.
    """
    _has_early_exits(network)

    def objective(images: Tensor, labels: Tensor) -> Aim:
        with evaluating(network):
            every = network(images)
        own = labels[:, None]
        chances = [one.to(torch.promote_types(one.dtype, torch.float32)).softmax(1) for one in every]
        early = torch.stack([one.gather(1, own)[:, 0] for one in chances[:-1]]).sum(0)
        kept = (chances[-1].gather(1, own) - chances[-1]).relu().sum(1)  # y itself adds 0
        said = torch.stack([one.argmax(1) for one in every])
        reached = (said[:-1] != labels).all(0) & (said[-1] == labels)
        return Aim(alpha * kept - early, reached, _charged(costs, torch.full_like(labels, -1)))

    return objective


@torch.no_grad()
def early_fooled(network: EarlyExit, images: Tensor, attacked: Tensor) -> Tensor:
    """Where every early exit is wrong about ``attacked`` and the last is not, by what the last says of ``images``; ``(N,)``.

    The images may have been made for another network: so an attack's transfer is counted.
    """
    with evaluating(network):
        labels = network(images)[-1].argmax(1)
    return early_only(network)(attacked, labels).reached


def _check(through: Through) -> None:
    if through not in get_args(Through):
        raise InputError(f"unknown view {through!r}: {suggest(through, get_args(Through))}")


def _has_early_exits(network: EarlyExit) -> None:
    if len(network.depths) < 2:
        raise InputError("a network with one exit, expected at least one early exit before the last")


def _charged(costs: Sequence[float] | None, exits: Tensor) -> Tensor | None:
    return None if costs is None else torch.tensor(list(costs), device=exits.device)[exits]
