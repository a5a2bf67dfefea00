"""What a mixture of LoRAs costs a token, and which of its experts are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from polytask.share.insertion import ATTRIBUTE
from polytask.share.routed_lora import RoutedLoRAPart


@contextmanager
def rank_use(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, how many tokens choose each expert, ``(E,)`` int64, by the name of the adapted module.

    Every token that passes is counted, those of padding too. Experts are single ranks for `polytask.share.SMoRA`; the counts
    of mixtures that choose nothing, as `polytask.share.HydraLoRA`, are all equal.
    """
    counts: dict[str, Tensor] = {}

    def count(place: str, router: nn.Module, inputs: object, gates: Tensor) -> None:
        chosen = (gates.detach() > 0).flatten(0, -2).sum(0)
        counts[place] = counts[place] + chosen if place in counts else chosen

    with ExitStack() as stack:
        for name, part in _routed(model):
            place = name.rpartition(f".{ATTRIBUTE}.")[0]
            stack.enter_context(part.router.register_forward_hook(partial(count, place)))
        yield counts


def active_parameters(model: nn.Module) -> int:
    """How many parameters of mixtures of LoRAs a token uses: the factors of the experts that it chooses, and all routers."""
    active = 0
    for _, part in _routed(model):
        k = int(getattr(part.router, "k", len(part.b)))
        active += sum(factor.numel() // len(factor) * min(k, len(factor)) for factor in (part.a, part.b))
        active += sum(parameter.numel() for parameter in part.router.parameters())
    return active


def _routed(model: nn.Module) -> Iterator[tuple[str, RoutedLoRAPart]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RoutedLoRAPart))
