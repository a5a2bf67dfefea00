"""One network for many budgets: a slimmable encoder, and a slimmable decoder for each task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.share._sharing import TaskModules
from polytask.share.slimmable.chain import Slimmable, Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.conversion import BatchNorms
from polytask.share.slimmable.layers import WIDTHS
from polytask.task import Task, check_unique


class Supernet(nn.Module):
    """A shared encoder and a decoder for each task, each at a width of its own, with one set of weights for all of them.

    The encoder's last layer gives all its channels at every width, so that every decoder takes every encoder's features. A
    `Configuration` says the widths; by default all are 1.

    Args:
        encoder: a chain of layers that can be slimmed, see `Slimmable`.
        decoders: for each task such a chain, from the encoder's features to the task's outputs.
        tasks: what to predict.
        widths: the relative widths to choose from; the largest has to be 1. The default has the four of the first slimmable
            networks; the grid of the paper on controllable architectures is not known.
        per_stage: whether each stage of the encoder has a width of its own; else one width holds for all of it.
        batch_norm: see `Slimmable`. Where the encoder's width varies under a decoder's, or stages vary, a switchable norm
            averages over what comes: recalibrate what is extracted in either case.

    >>> encoder = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 64, 1))
    >>> tasks = [Task.segmentation("classes", classes=5), Task.pixel_regression("depth")]
    >>> decoders = {
    ...     name: nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))
    ...     for name, outputs in (("classes", 5), ("depth", 1))
    ... }
    >>> supernet = Supernet(encoder, decoders, tasks)
    >>> small = Configuration(0.5, {"classes": 1.0, "depth": 0.25})
    >>> {name: tuple(output.shape) for name, output in supernet(torch.randn(2, 1, 8, 8), small).items()}
    {'classes': (2, 5, 4, 4), 'depth': (2, 1, 4, 4)}
    >>> encoder, decoders = supernet.extract(small)  # plain layers, the same outputs
    >>> decoders["depth"][0]
    Conv2d(64, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(
        self,
        encoder: nn.Sequential,
        decoders: Mapping[str, nn.Sequential],
        tasks: Sequence[Task],
        widths: Sequence[float] = WIDTHS,
        per_stage: bool = False,
        batch_norm: BatchNorms = "switchable",
    ) -> None:
        super().__init__()
        check_unique(tasks)
        self.tasks = {task.name: task for task in tasks}
        if set(decoders) != set(self.tasks):
            raise InputError(f"supernet: decoders for {sorted(decoders)}, expected one for each task: {sorted(self.tasks)}")
        self.widths = tuple(sorted(set(map(float, widths))))
        if not self.widths or self.widths[0] <= 0 or self.widths[-1] != 1:
            raise InputError(f"supernet: widths {list(widths)}, expected numbers above 0 of which the largest is 1")
        self.per_stage = per_stage
        self.encoder = Slimmable(encoder, self.widths, batch_norm)
        self.width = self.encoder.width
        self.decoders = TaskModules({name: Slimmable(decoders[name], self.widths, batch_norm) for name in self.tasks})

    def forward(
        self, inputs: Tensor, configuration: Configuration | None = None, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The outputs of ``tasks``, all by default, at a configuration, the largest by default."""
        configuration = configuration or self.largest
        return self.decode(self.encoder(inputs, configuration.encoder), configuration, tasks)

    def decode(
        self, features: Tensor, configuration: Configuration, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The outputs of ``tasks``, all by default, for features of the encoder."""
        names = tuple(self.tasks) if tasks is None else tuple(tasks)
        for name in names:
            for known in (self.tasks, configuration.decoders):
                if name not in known:
                    raise InputError(f"unknown task {name!r}: {suggest(name, known)}")
        return {name: self.decoders[name](features, configuration.decoders[name]) for name in names}

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, tasks: Sequence[str] | None = None, configuration: Configuration | None = None
    ) -> dict[str, Tensor]:
        """Predictions in the user's units, see `polytask.Task.decode`. Does not change the mode."""
        outputs = self(inputs, configuration, tasks)
        return {name: self.tasks[name].decode(output) for name, output in outputs.items()}

    def extract(self, configuration: Configuration) -> tuple[nn.Sequential, dict[str, nn.Sequential]]:
        """The encoder and the decoders of a configuration by themselves: plain layers with copies of the weights."""
        decoders = {}
        for name in self.tasks:
            decoder = self.decoders[name]
            assert isinstance(decoder, Slimmable)
            decoders[name] = decoder.extract(configuration.decoders[name])
        return self.encoder.extract(configuration.encoder), decoders

    @property
    def largest(self) -> Configuration:
        """The widest configuration: everything at width 1."""
        return self._at(len(self.widths) - 1)

    @property
    def smallest(self) -> Configuration:
        """The narrowest configuration."""
        return self._at(0)

    def sample(self) -> Configuration:
        """A configuration at random, each width for itself, of torch's random numbers."""
        stages = self.encoder.stages if self.per_stage else 1
        drawn = [self.widths[i] for i in torch.randint(len(self.widths), (stages + len(self.tasks),)).tolist()]
        encoder = tuple(drawn[:stages]) if self.per_stage else drawn[0]
        return Configuration(encoder, dict(zip(self.tasks, drawn[stages:], strict=True)))

    def encoders(self) -> Iterator[Widths]:
        """The widths that the encoder can have, narrow ones first: those of `widths`, or all combinations of stages."""
        yield from itertools.product(self.widths, repeat=self.encoder.stages) if self.per_stage else self.widths

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The encoder's parameters."""
        return self.encoder.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters of the task's decoder."""
        return self.decoders.parameters_of(task)

    def _at(self, place: int) -> Configuration:
        width = self.widths[place]
        encoder = (width,) * self.encoder.stages if self.per_stage else width
        return Configuration(encoder, dict.fromkeys(self.tasks, width))
