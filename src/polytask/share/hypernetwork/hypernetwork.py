"""A network whose weights another network makes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.errors import InputError, suggest
from polytask.share.hypernetwork.architectures import MLP, Architecture
from polytask.share.hypernetwork.contexts import Context
from polytask.share.hypernetwork.encodings import ENCODINGS
from polytask.share.hypernetwork.generator import Generator
from polytask.share.hypernetwork.initialisation import Initialisation, Zero
from polytask.share.hypernetwork.layout import Layout, named, refuse_running_statistics
from polytask.share.hypernetwork.running import by_index, for_each_context, for_each_example, one
from polytask.share.hypernetwork.strategies import Once, Strategy
from polytask.share.penalty import Penalty


class HyperNetwork(nn.Module):
    """``F(x; theta_0 + H(c))``: a network ``F`` of which a generator ``H`` makes weights out of a condition ``c``.

    The choices are the five of Chauhan, Zhou, Lu, Molaei and Clifton, *A brief review of hypernetworks in deep learning*,
    Artificial Intelligence Review 57, 2024: what conditions (``context``, with which variability of inputs and outputs), how
    weights are made (``strategy``), and the generator's ``architecture``. ``residual`` and ``encode="cos_sin"`` are those of
    Gonzalez Ortiz, Guttag and Dalca, *Magnitude invariant parametrizations improve hypernetwork learning*, ICLR 2024.

    The target runs through ``torch.func.functional_call``: gradients reach the generator, and buffers stay the target's. All
    contexts and all pieces of their weights are made by one call of the generator, in float32 under autocast (or in the
    generator's own type), and then have the type of the target's weights. One target serves one thread at a time.

    Args:
        target: any network; used in place. With ``residual`` its weights are ``theta_0``, so that a trained network goes on
            from what it is; without it, weights that are predicted are taken away.
        context: what conditions: `Tasks`, `Values`, `Noise`, `Support` or `Example`.
        architecture: of the generator: `MLP` (default, two layers of 100), `LSTM` or `Attention`.
        strategy: `Once` (default), `Heads`, `PerLayer`, `Chunks` or `LowRank`.
        predict: patterns of the names of the parameters that are predicted, all by default (``"*"``); others are the
            target's own, and the same for all contexts.
        encode: how contexts are written: ``"none"`` (default), ``"cos_sin"`` or ``"complement"`` of values from 0 to 1, or
            ``"unit"``, of norm 1.
        residual: add ``theta_0`` (default); without it the gain of a normalisation is what is predicted plus 1.
        start: how large the predicted weights are at first: `Zero` (default), `Hyperfan` or `FanOut`.
        vectorize: run a network for each example by ``vmap`` (default), else one after the other, for targets of which
            ``vmap`` knows too little, such as recurrent ones.

    Attributes:
        layout: which weights are predicted, and their order.
        terms: modules that are called with this one in training, whose values are added to the loss (`Remembered`,
            `Spread`): by a `polytask.Model`, once for each pass, or by whoever collects `polytask.share.penalties`.

    Raises:
        InputError: a pattern fits nothing; batch normalisation with running statistics, which would mix the contexts'
            networks; settings that do not go together.

    Ten lines turn a network into one that differs between tasks:

    >>> import polytask as pt
    >>> from polytask.share.hypernetwork import Chunks, HyperNetwork, Tasks
    >>> network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))  # may be trained already
    >>> encoder = HyperNetwork(network, Tasks(["churn", "spend"]), strategy=Chunks(10))
    >>> with pt.task_scope(["churn", "spend"], index=torch.tensor([0, 1, 1])):  # a batch that mixes tasks
    ...     features = encoder(torch.randn(3, 16))
    >>> model = pt.Model(encoder, [pt.Task.binary("churn"), pt.Task.regression("spend")], width=8)
    >>> {name: tuple(output.shape) for name, output in model(torch.randn(5, 16)).items()}
    {'churn': (5, 1), 'spend': (5, 1)}
    >>> plain = encoder.network("spend")  # an ordinary network, with this task's weights
    >>> encoder.describe()["output"]
    'chunk-wise: 10 x 81 numbers for 808 weights'
    """

    def __init__(
        self,
        target: nn.Module,
        context: Context,
        architecture: Architecture | None = None,
        strategy: Strategy | None = None,
        *,
        predict: str | Sequence[str] = "*",
        encode: str = "none",
        residual: bool = True,
        start: Initialisation | None = None,
        vectorize: bool = True,
    ) -> None:
        super().__init__()
        architecture, strategy, start = architecture or MLP(), strategy or Once(), start or Zero()
        refuse_running_statistics(target)
        if encode not in ENCODINGS:
            raise InputError(f"unknown encoding {encode!r}: {suggest(encode, ENCODINGS)}")
        if isinstance(start, Zero) and not residual:
            raise InputError("start=Zero() without residual makes all weights 0, expected Hyperfan() or FanOut()")
        if isinstance(start, Zero) and architecture.spectral:
            raise InputError("start=Zero() has no spectral norm to divide by, expected Hyperfan() or FanOut()")
        self.target, self.layout, self.strategy, self.residual = target, Layout.of(target, predict), strategy, residual
        self.encoding, self.vectorize = ENCODINGS[encode], vectorize
        shape = strategy.shape(self.layout)
        self.context = context.build(shape[0] if shape[0] > 1 and not strategy.embedding else 0)
        self.generator = Generator(
            architecture,
            context.width * self.encoding.factor,
            shape,
            strategy.embedding,
            strategy.heads,
            start.fan,
            bias=not residual,
        )
        norm = self.generator.norm(self.encoding.square(context.square, context.width))
        self.generator.start(strategy.variances(self.layout, start, norm), norm)
        self._fit_to(target, context)
        self.terms, self.penalty = nn.ModuleList(), Penalty()
        self._description = {
            "input": context.kind,
            "output": f"{strategy.kind}: {shape[0]} x {shape[1]} numbers for {self.layout.numel} weights",
            "variability of inputs": context.inputs,
            "variability of outputs": context.outputs,
            "architecture": str(architecture),
        }

    def _fit_to(self, target: nn.Module, context: Context) -> None:
        """Be where the target is, answer as it does, and take its predicted weights away if they are not added to."""
        weight = target.get_parameter(self.layout.entries[0].names[0])
        self.generator.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        self.context.to(weight.device)
        # What is predicted has this one's type, which follows the module when that is moved or cast.
        self.register_buffer("like", weight.detach().new_empty(0), persistent=False)
        self.like: Tensor
        for name in ("width", "members"):  # what a `polytask.Model` asks
            if hasattr(target, name):
                setattr(self, name, getattr(target, name))
        self.drawn = context.members
        if self.drawn > 1:
            self.members = self.drawn
        if not self.residual:
            for module, name in self.layout.places(target):
                module.register_parameter(name, None)

    def forward(self, inputs: Any, condition: Any = None) -> Any:
        """The target's output, each example by the weights of its context.

        Args:
            inputs: the target's one argument, a tensor or named tensors, examples along the first dimension.
            condition: what the context takes, as its class says; nothing for `Tasks`, which ask the task scope.
        """
        if self.penalty.wanted:
            for term in self.terms:
                self.penalty.add(term(self))
        if self.drawn > 1 and condition is None:
            return self.each(inputs).transpose(0, 1)
        vectors, which = self.context(inputs, condition)
        weights = self._weights(vectors)
        if which is not None:
            return by_index(self._run, weights, inputs, which)
        if len(vectors) == 1:
            return self._run(one(weights), inputs)
        return for_each_example(self._run, weights, inputs, self.vectorize)

    def each(self, inputs: Any, condition: Any = None) -> Tensor:
        """The outputs of all networks of ``condition`` for the same inputs, ``(C, N, ...)``: of some tasks, of 20 draws."""
        return for_each_context(self._run, self.weights(condition), inputs, self.vectorize)

    def weights(self, condition: Any = None) -> dict[str, Tensor]:
        """The predicted weights, ``(C, *shape)`` by their names, for conditions that are given apart from a batch.

        Args:
            condition: for `Tasks` a name or names, by default all; for `Noise` how many to draw; else what `forward` takes.
        """
        return self._weights(self.context.vectors(condition))

    @torch.no_grad()
    def network(self, condition: Any = None) -> nn.Module:
        """An ordinary copy of the target with the weights for one condition, which costs nothing more to run."""
        weights = self.weights(condition)
        count = len(next(iter(weights.values())))
        if count != 1:
            raise InputError(f"{count} conditions, expected one for a network")
        network = copy.deepcopy(self.target)
        for entry in self.layout.entries:
            own = nn.Parameter(weights[entry.names[0]][0].clone())
            for name in entry.names:
                place, _, attribute = name.rpartition(".")
                network.get_submodule(place).register_parameter(attribute, own)
        return network

    def describe(self) -> dict[str, str]:
        """The five choices, as a row of the review's table."""
        return dict(self._description)

    def flat(self, vectors: Tensor) -> Tensor:
        """``H(c)`` alone: contexts ``(C, width)`` or ``(C, n, width)`` to ``(C, P)``, in the order of ``layout``."""
        kind = vectors.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            pieces = self.generator(self.encoding(vectors.to(self.generator.dtype)))
            return self.strategy.join(self.layout, pieces)

    def _weights(self, vectors: Tensor) -> dict[str, Tensor]:
        changes = self.layout.unflatten(self.flat(vectors))
        weights: dict[str, Tensor] = {}
        for entry in self.layout.entries:
            change = changes[entry.names[0]]
            if self.residual:
                theta = named(self.target, entry.names[0])
                whole = (theta + change).to(theta.dtype)
            else:
                whole = (change + 1 if entry.gain else change).to(self.like.dtype)
            weights |= dict.fromkeys(entry.names, whole)
        return weights

    def _run(self, weights: Mapping[str, Tensor], inputs: Any) -> Any:
        return functional_call(self.target, dict(weights), (inputs,), tie_weights=False)
