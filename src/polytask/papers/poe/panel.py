"""The panel: an expert for each domain on one shared encoder, scores of all of them, and further domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.errors import InputError, suggest
from polytask.model import Model
from polytask.share import Adapter, Inserted, insert, soup
from polytask.share.insertion import Where
from polytask.task import Task

LABELS = ("random", "adversarial", "original")
"""What a response is to its context: the classes of the paper's predecessor, in its order."""

Combine: TypeAlias = Literal["mean", "logits", "max"] | Callable[[Inputs], Tensor]
"""How a panel's experts make one score."""


@dataclass(frozen=True)
class Panel:
    """An expert for each domain: its adapters in an encoder that all share, and its head.

    It is trained as any model, ``fit(panel.model, {domain: examples, ...})``, a batch of one domain a step: a domain's loss
    reaches the encoder, and of the experts its own alone. Targets are the classes' positions.

    Attributes:
        model: the encoder with its adapters, and a head for each domain; the domains are its tasks.
        inserted: the adapters.
    """

    model: Model
    inserted: Inserted

    @classmethod
    def build(
        cls,
        encoder: nn.Module,
        domains: Sequence[str],
        adapter: Adapter = Adapter(),
        where: Where | None = None,
        width: int | None = None,
        classes: Sequence[str] = LABELS,
    ) -> Self:
        """A new panel on ``encoder``.

        Args:
            encoder: from inputs to ``(N, width)``; for one of `transformers` see `FirstToken`.
            domains: their names.
            adapter: a bottleneck of 64 behind linear layers by default. What the paper has is not known here; with
                ``Adapter(64, "norm", "relu", start="bert")`` at ``"*[0-9].output.LayerNorm"`` it is AdapterFusion's.
            where: see `polytask.share.insert`.
            width: of the encoder's output, where it has no attribute ``width``.
            classes: of a pair of context and response; a score is the probability of the last.
        """
        model = Model(encoder, [Task.classification(domain, classes=classes) for domain in domains], width=width)
        return cls(model, insert(encoder, adapter, domains, where))

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.model.tasks)

    @torch.no_grad()
    def score(self, inputs: Inputs, domain: str | None = None, combine: Combine = "mean") -> Tensor:
        """How good each response is, ``(N,)``, from 0 to 1: the probability of the last class. Does not change the mode.

        Args:
            inputs: pairs of context and response, as the encoder takes them.
            domain: whose expert to ask; ``None`` (default) asks the whole panel.
            combine: the ``"mean"`` of the experts' probabilities (default), the probability after the mean of their
                ``"logits"``, or their ``"max"``; or a gate, a function from inputs to the experts' weights, ``(N, K)``.
        """
        if domain is not None:
            self._check(domain)
        logits = torch.stack(list(self.model(inputs, None if domain is None else [domain]).values()), 1)
        if combine == "logits":
            logits = logits.mean(1, keepdim=True)
        every = logits.softmax(-1)[..., -1]
        if domain is None and not isinstance(combine, str):
            return (combine(inputs) * every).sum(1)
        return every.amax(1) if combine == "max" else every.mean(1)

    def add(self, domain: str, of: Sequence[str] | None = None) -> Panel:
        """The panel with an expert for a further domain, which alone is trained from now on.

        Its adapters and its head begin as the mean of those of other domains.

        Args:
            domain: the new one.
            of: which domains, such as the nearest alone; all by default.
        """
        names = self.domains if of is None else tuple(of)
        for name in names:
            self._check(name)
        inserted, old = soup(self.inserted, domain, names), self.model
        classes: Any = old.tasks[names[0]].settings()["classes"]
        model = Model(old.encoder, [*old.tasks.values(), Task.classification(domain, classes=classes)], width=old.width)
        for name, head in old.heads.items():
            model.heads[name] = head
        heads = [old.heads[name].state_dict() for name in names]
        model.heads[domain].to(heads[0]["weight"].device)
        model.heads[domain].load_state_dict({key: torch.stack([h[key] for h in heads]).mean(0) for key in heads[0]})
        model.requires_grad_(False)
        for parameter in model.parameters_of(domain):
            parameter.requires_grad_(True)
        return Panel(model, inserted)

    def _check(self, domain: str) -> None:
        if domain not in self.domains:
            raise InputError(f"unknown domain {domain!r}: {suggest(domain, self.domains)}")


class NearestDomain:
    """A gate by likeness: weights ``(N, K)``, a softmax over domains of ``-|x - mean_k|^2 / temperature``.

    Distances are of what ``read`` makes of the inputs, and divided by the mean squared distance of the domains' own examples
    from their means. The paper's gate is not known here; a learnt one is any model of the domain, as a function.

    Args:
        inputs: of each domain of a panel, in its order, ``(N_k, ...)``.
        read: from inputs to vectors ``(N, width)``, such as those of the context; the inputs themselves by default.
        temperature: above 0; 0.1 by default. A low one asks the nearest expert alone, a high one all alike.
    """

    def __init__(
        self, inputs: Mapping[str, Inputs], read: Callable[[Any], Tensor] = lambda x: x, temperature: float = 0.1
    ) -> None:
        if temperature <= 0:
            raise InputError(f"temperature {temperature}, expected above 0")
        vectors = [read(of) for of in inputs.values()]
        self.read, self.temperature = read, temperature
        self.means = torch.stack([of.mean(0) for of in vectors])
        spread = [(of - mean).square().sum(1).mean() for of, mean in zip(vectors, self.means, strict=True)]
        self.spread = torch.stack(spread).mean()

    def __call__(self, inputs: Inputs) -> Tensor:
        distances = torch.cdist(self.read(inputs), self.means).square() / self.spread
        return (-distances / self.temperature).softmax(1)
