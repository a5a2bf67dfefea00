"""Three ways to train: without exits, with exits from the first step on, and exits alone on a network that stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.examples import Examples
from polytask.route import EarlyExit, exit_loss, exit_weights
from polytask.training import fit


class ExitTraining(nn.Module):
    """A network with exits and its loss, one number: exits are no tasks to be balanced.

    Args:
        network: any, with none or some early exits.
        final: see `polytask.route.exit_weights`; the weights rise with ``progress``, 0 to 1.
        frozen: whether early exits alone are trained, by the sum of their cross-entropies; batch norms of the blocks keep
            their statistics then.
    """

    def __init__(self, network: EarlyExit, final: Sequence[float] = (), frozen: bool = False) -> None:
        super().__init__()
        self.network, self.final, self.frozen, self.progress = network, list(final), frozen, 0.0

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Of images and one target."""
        images, targets = batch
        (labels,) = targets.values()
        weights = [1.0] * len(self.final) if self.frozen else exit_weights(self.progress, self.final)
        return {"class": exit_loss(self.network(images), labels, weights)}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> ExitTraining:
        """Training mode, but for what is frozen."""
        super().train(mode)
        if self.frozen:
            for part in self._kept():
                part.eval()
        return self

    def _kept(self) -> list[nn.Module]:
        return [self.network.blocks, self.network.heads[-1]]


class _Progress:
    """Tells the weights of the losses how far training is."""

    def __init__(self, training: ExitTraining, steps: int) -> None:
        self.training, self.steps = training, steps

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        self.training.progress = min(1.0, step / self.steps)

    def record(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def train(
    network: EarlyExit,
    data: Examples,
    final: Sequence[float] = (),
    *,
    epochs: float = 100,
    batch_size: int = 128,
    **settings: Any,
) -> EarlyExit:
    """Train everything: without early exits a plain network, with some of them a shallow-deep network. In place.

    Args:
        network: in training mode or not; it is left in evaluation mode.
        data: images and one target, class numbers.
        final: of each early exit the weight that its loss comes to: the paper's are 0.15, 0.3, 0.45, 0.6, 0.75 and 0.9,
            the parts of the work that are done there. The weights rise step by step; the authors' rise epoch by epoch.
        epochs, batch_size: the paper's by default.
        settings: of `polytask.fit`, such as those of `published`.
    """
    training = ExitTraining(network, final)
    listener = _Progress(training, max(1, round(epochs * (len(data) // batch_size))))
    fit(training, data, epochs=epochs, batch_size=batch_size, listeners=[listener], **settings)
    return network.eval()


def train_exits(
    network: EarlyExit,
    data: Examples,
    *,
    epochs: float = 25,
    batch_size: int = 128,
    lr: float = 1e-3,
    **settings: Any,
) -> EarlyExit:
    """Train the early exits alone; the last exit's answers stay what they are, bit for bit. In place.

    Args:
        network, data, settings: as for `train`.
        epochs, batch_size, lr: of Adam; the paper's by default, who divide the rate by 10 after 15 epochs, see `milestones`.
    """
    frozen = [*network.blocks.parameters(), *network.heads[-1].parameters()]
    before = [parameter.requires_grad for parameter in frozen]
    training = ExitTraining(network, [1.0] * len(network.thresholds), frozen=True)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        fit(training, data, epochs=epochs, batch_size=batch_size, lr=lr, **settings)
    finally:
        for parameter, trained in zip(frozen, before, strict=True):
            parameter.requires_grad_(trained)
    return network.eval()


def with_exits(network: EarlyExit, heads: Mapping[int, nn.Module]) -> EarlyExit:
    """The same blocks and the same last head, shared with ``network``, and these early exits."""
    kept = {len(network.blocks): network.heads[-1]}
    made = EarlyExit(list(network.blocks), {**heads, **kept}, network.confidence, network.answer, network.agree)
    return made.train(network.training)


def only_exits(network: EarlyExit, exits: Sequence[int]) -> EarlyExit:
    """The same network without its other early exits: ``exits`` are places, from 0."""
    some = with_exits(network, {network.depths[k]: network.heads[k] for k in exits})
    places = list(exits)
    some.thresholds.copy_(network.thresholds[places])
    some.temperatures.copy_(network.temperatures[[*places, -1]])
    return some


def milestones(*parts: float) -> Any:
    """A schedule for `polytask.fit`: the rate is divided by 10 at these parts of the steps."""

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(part * steps) for part in parts], gamma=0.1)

    return schedule


def published(weight_decay: float = 5e-4) -> dict[str, Any]:
    """The paper's settings of `polytask.fit`: SGD with momentum 0.9, its rate 0.1, a tenth of it after 35, 60 and 85 %.

    The weight decay is 5e-4 for VGG, and 1e-4 for MobileNet and ResNet. Crops and flips of images are the data's business.
    """

    def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=weight_decay)

    return {"optimizer": sgd, "schedule": milestones(0.35, 0.6, 0.85)}
