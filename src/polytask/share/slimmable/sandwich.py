"""Training all configurations of a supernet at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.share.slimmable.chain import Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.distillation import REPRESENTATIONS, output_distance, representation_distance
from polytask.share.slimmable.supernet import Supernet

Targets: TypeAlias = Mapping[str, Tensor]


class Sandwich(nn.Module):
    """The losses of a supernet's largest, smallest and some random configurations, which `polytask.fit` trains.

    Each step is one on the sum over configurations ``a`` (the sandwich rule of Yu and Huang, *Universally slimmable networks
    and improved training techniques*, ICCV 2019): ``L_t(a_max) + sum_a [L_t(a) + beta D(a)]``, for each task ``t``. Aich et
    al. (*Efficient controllable multi-task architectures*, ICCV 2023) distil what the encoder represents: tasks conflict
    least in the largest encoder, so ``D`` is the distance of a smaller encoder's features from its features, one term
    whatever the tasks and the decoders (configuration-invariant distillation). Decoders learn from labels alone. Their code
    is not public: the distance, ``beta`` and the number of random configurations are a reconstruction.

    In evaluation mode the losses are those of the largest and the smallest configuration, without distillation. With
    balancers that compare gradients each task has an equal part of the distance of representations.

    Args:
        supernet: the network to train; parameters, gradients and state are its own.
        distil: ``"representation"`` (default), as above; ``"outputs"``, the distance of each task's outputs from those of
            the largest configuration (in-place distillation, see `polytask.share.slimmable.output_distance`), which is
            ``D_t`` of its task; ``None``, labels alone.
        beta: the weight of distillation, 1 by default.
        samples: random configurations in each step, 2 by default.
        compare: what of the representation is compared: see `polytask.share.slimmable.representation_distance`.
    """

    def __init__(
        self,
        supernet: Supernet,
        distil: Literal["representation", "outputs"] | None = "representation",
        beta: float = 1.0,
        samples: int = 2,
        compare: str = "direction",
    ) -> None:
        super().__init__()
        if distil not in ("representation", "outputs", None):
            raise InputError(f"sandwich: distil {distil!r}, expected 'representation', 'outputs' or None")
        if beta < 0 or samples < 0:
            raise InputError(f"sandwich: beta {beta} and {samples} samples, expected neither below 0")
        if compare not in REPRESENTATIONS:
            raise InputError(f"sandwich: compare {compare!r}: {suggest(compare, REPRESENTATIONS)}")
        self.supernet = supernet
        self.tasks = supernet.tasks
        self.distil, self.beta, self.samples, self.compare = distil, beta, samples, compare

    def losses(self, batch: tuple[Tensor, Targets] | Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """The loss of each task that the batch has targets for, over all configurations of the step.

        Args:
            batch: ``(inputs, {task: target})``; or ``{task: (inputs, target)}`` where each task has inputs of its own.
        """
        drawn = [self.supernet.sample() for _ in range(self.samples if self.training else 0)]
        configurations = [self.supernet.largest, *drawn, self.supernet.smallest]
        if isinstance(batch, Mapping):
            losses: dict[str, Tensor] = {}
            for name, (inputs, target) in batch.items():
                losses |= self._losses(inputs, {name: target}, configurations)
            return losses
        return self._losses(*batch, configurations)

    def label_counts(self, batch: tuple[Tensor, Targets] | Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """For each task in the batch, how many labels its loss averages over."""
        targets = {name: target for name, (_, target) in batch.items()} if isinstance(batch, Mapping) else batch[1]
        return {name: self.tasks[name].count(target) for name, target in targets.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The encoder's parameters."""
        return self.supernet.shared_parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters of the task's decoder."""
        return self.supernet.parameters_of(task)

    def _losses(self, inputs: Tensor, targets: Targets, configurations: list[Configuration]) -> dict[str, Tensor]:
        encoded: dict[Widths, Tensor] = {}  # configurations that differ in decoders alone share the encoder's pass
        passes = []
        for configuration in configurations:
            if configuration.encoder not in encoded:
                encoded[configuration.encoder] = self.supernet.encoder(inputs, configuration.encoder)
            features = encoded[configuration.encoder]
            passes.append((features, self.supernet.decode(features, configuration, tuple(targets))))
        losses = {}
        for name, target in targets.items():
            task = self.tasks[name]
            losses[name] = sum((task.loss(outputs[name], target) for _, outputs in passes), start=inputs.new_zeros(()))
        if not self.training or self.distil is None:
            return losses
        (teacher, taught), *smaller = passes
        for features, outputs in smaller:
            if self.distil == "representation":
                distance = representation_distance(features, teacher, self.compare) / len(losses)
            for name in losses:
                if self.distil == "outputs":
                    distance = output_distance(self.tasks[name], outputs[name], taught[name])
                losses[name] = losses[name] + self.beta * distance
        return losses
