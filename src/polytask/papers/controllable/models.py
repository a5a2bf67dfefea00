"""The networks of the claims, one that is told the preference, and what is cut out of a supernet as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.model import Model
from polytask.papers._dense import outputs_of
from polytask.share import TaskModules
from polytask.share.slimmable import Configuration, Supernet, recalibrate
from polytask.task import Task

WIDTH = 64


def stand_alone(supernet: Supernet, configuration: Configuration, inputs: Iterable[Any] = ()) -> Model:
    """A configuration of ``supernet`` as a `polytask.Model` of plain layers, which is evaluated, predicts and is exported.

    Args:
        supernet: any.
        configuration: its widths.
        inputs: batches on which the statistics of batch norms are measured; labels are not needed. None for networks
            without batch norms.
    """
    encoder, decoders = supernet.extract(configuration)
    model = Model(encoder, list(supernet.tasks.values()), width=supernet.width)
    for name, decoder in decoders.items():
        model.heads[name] = decoder
    batches = list(inputs)
    if batches:
        recalibrate(model, batches)
    return model.eval()


def scenes_encoder() -> nn.Sequential:
    """``(N, 1, H, W)`` -> ``(N, 64, H/4, W/4)``: of each 4 x 4 pixels three convolutions, and a projection."""
    layers = _layer(16, 32, 3), _layer(32, 48, 3), _layer(48, WIDTH, 3)
    return nn.Sequential(nn.PixelUnshuffle(4), *layers, nn.Conv2d(WIDTH, WIDTH, 1))


def scenes_decoder(task: Task) -> nn.Sequential:
    """``(N, 64, h, w)`` -> ``(N, outputs, 4 h, 4 w)``: two convolutions of 32 channels, and one that makes 4 x 4 pixels."""
    last = nn.Conv2d(32, 16 * outputs_of(task), 1)
    return nn.Sequential(nn.ReLU(), _layer(WIDTH, 32, 1), _layer(32, 32, 3), last, nn.PixelShuffle(4))


def scenes_supernet(tasks: Sequence[Task], seed: int) -> Supernet:
    """The supernet of the claims; the same weights for the same seed."""
    torch.manual_seed(seed)
    return Supernet(scenes_encoder(), {task.name: scenes_decoder(task) for task in tasks}, tasks)


class Conditioned(nn.Module):
    """One network for every preference: a small network makes of it how each decoder's input is scaled and shifted.

    What a Pareto hypernetwork (Navon et al., *Learning the Pareto front with hypernetworks*, ICLR 2021) does, with features
    that are conditioned in place of weights that are made. It trains on the loss ``T sum_t p_t L_t``, with a preference
    ``p`` that is uniform in the simplex and drawn anew in each step. Whatever the preference, it costs the same.

    Args:
        model: encoder and decoders, as `stand_alone` gives them.
        hidden: units of the small network.
    """

    def __init__(self, model: Model, hidden: int = 32) -> None:
        super().__init__()
        self.model, self.tasks = model, model.tasks
        last = nn.Linear(hidden, 2 * len(self.tasks) * model.width)
        nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        self.condition = nn.Sequential(nn.Linear(len(self.tasks), hidden), nn.ReLU(), last)

    def at(self, preference: Mapping[str, float]) -> Model:
        """The model for one preference."""
        total = sum(preference.values())
        with torch.no_grad():
            affine = self._affine(torch.tensor([preference[name] / total for name in self.tasks]))
        model = Model(self.model.encoder, list(self.tasks.values()), width=self.model.width)
        model.heads = TaskModules({n: nn.Sequential(Affine(*affine[n]), self.model.heads[n]) for n in self.tasks})
        return model.eval()

    def losses(self, batch: tuple[Tensor, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Each task's loss times ``T p_t``; the preference is drawn in training, and even in evaluation."""
        inputs, targets = batch
        even = torch.ones(len(self.tasks)) / len(self.tasks)
        drawn = torch.distributions.Dirichlet(torch.ones(len(self.tasks))).sample() if self.training else even
        affine, features = self._affine(drawn.to(inputs)), self.model.encoder(inputs)
        shares = dict(zip(self.tasks, len(self.tasks) * drawn, strict=True))
        losses = {}
        for name, target in targets.items():
            scale, shift = affine[name]
            losses[name] = shares[name] * self.tasks[name].loss(self.model.heads[name](features * scale + shift), target)
        return losses

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The encoder's parameters, and those of the small network."""
        yield from self.model.encoder.parameters()
        yield from self.condition.parameters()

    def _affine(self, preference: Tensor) -> dict[str, Tensor]:
        """For each task scale and shift, ``(2, width, 1, 1)``; 1 and 0 at first."""
        made = self.condition(preference).reshape(len(self.tasks), 2, -1, 1, 1)
        made = torch.stack([1 + made[:, 0], made[:, 1]], 1)
        return dict(zip(self.tasks, made, strict=True))


class Affine(nn.Module):
    """``x scale + shift``, with fixed numbers."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _layer(before: int, after: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(after // 8, after), nn.ReLU())
