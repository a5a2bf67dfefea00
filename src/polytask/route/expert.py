"""Experts: anything that can be given a prompt and be told afterwards how bad its answer was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polytask.errors import InputError, suggest
from polytask.route.endpoint import Endpoint


class Example(NamedTuple):
    """A prompt and, where the loss needs one, what a good answer is: any value that JSON has."""

    prompt: str
    reference: Any = None


Losses: TypeAlias = Callable[[Sequence[Example]], Sequence[float]]
"""Examples to a loss for each, lower is better. An exception, or a number that is not finite, is a failure."""


@dataclass(frozen=True)
class Expert:
    """A model that prompts may be sent to.

    Args:
        name: what it is known by, in tables and routers too: another model needs another name.
        losses: what it costs in quality, see `scoring`, `answering`, `predicting` and
            `polytask.route.bits_per_character`; a router that is only served needs none.
        costs: what it costs otherwise, in any unit, by name: ``{"size": 7e9, "price": 0.2, "latency": 0.4, "age": 12}``.
        description: one line that says what it is for.
        endpoint: where it answers, for a router that is served.
        batch: how many examples ``losses`` is given at once, 32 by default.

    >>> short = Expert("short", scoring(lambda prompt: float(len(prompt))), {"size": 1.0})
    >>> short.losses([Example("four")])
    [4.0]
    """

    name: str
    losses: Losses | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    endpoint: Endpoint | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        if not self.name or self.batch < 1:
            raise InputError(f"expert {self.name!r}: batch {self.batch}, expected a name and a batch of at least 1")
        for cost, value in self.costs.items():
            if not np.isfinite(value):
                raise InputError(f"expert {self.name!r}: {cost} {value}, expected a finite number")


def scoring(loss: Callable[[str], float]) -> Losses:
    """Losses of a function of the prompt alone, such as how well a language model predicts it."""

    def losses(examples: Sequence[Example]) -> list[float]:
        return [float(loss(example.prompt)) for example in examples]

    return losses


def answering(answer: Callable[[str], Any], loss: Callable[[Any, Any], float]) -> Losses:
    """Losses of a function from a prompt to an answer, which ``loss(answer, reference)`` judges.

    ``answer`` may be an endpoint's: ``answering(Endpoint(url, "small").answer, loss)``.
    """

    def losses(examples: Sequence[Example]) -> list[float]:
        return [float(loss(answer(example.prompt), example.reference)) for example in examples]

    return losses


def predicting(model: Any, loss: Callable[[Any, Any], float] | None = None) -> Losses:
    """Losses of a fitted model of scikit-learn's kind that takes texts, a pipeline that begins with a vectorizer.

    Args:
        model: with ``predict_proba`` and ``classes_``, or with ``predict``.
        loss: ``loss(prediction, reference)``; by default the cross-entropy of the reference's class, in nats.
    """
    if loss is not None:

        def judged(examples: Sequence[Example]) -> list[float]:
            predictions = model.predict([example.prompt for example in examples])
            return [float(loss(made, example.reference)) for made, example in zip(predictions, examples, strict=True)]

        return judged

    def cross_entropies(examples: Sequence[Example]) -> list[float]:
        classes = {value: place for place, value in enumerate(model.classes_.tolist())}
        for example in examples:
            if example.reference not in classes:
                known = suggest(str(example.reference), map(str, classes))
                raise InputError(f"{example.reference!r} is no class of the model: {known}")
        chances = model.predict_proba([example.prompt for example in examples])
        places = [classes[example.reference] for example in examples]
        chosen = np.clip(chances[np.arange(len(examples)), places], np.finfo(float).tiny, None)
        return [float(value) for value in -np.log(chosen)]

    return cross_entropies
