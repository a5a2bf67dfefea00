"""Which widths a network of several tasks has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polytask.errors import InputError
from polytask.share.slimmable.chain import Widths


@dataclass(frozen=True)
class Configuration:
    """The widths of an encoder and of each task's decoder.

    Args:
        encoder: one relative width, above 0 up to 1, or a tuple of them, one for each stage.
        decoders: the relative width of each task's decoder.

    >>> Configuration(0.5, {"classes": 1.0, "boundary": 0.25})
    Configuration(encoder=0.5, decoders={'classes': 1.0, 'boundary': 0.25})
    """

    encoder: Widths
    decoders: Mapping[str, float]

    def __post_init__(self) -> None:
        encoder = self.encoder if isinstance(self.encoder, tuple) else (self.encoder,)
        for part, width in (*(("the encoder", width) for width in encoder), *self.decoders.items()):
            if not 0 < width <= 1:
                raise InputError(f"width {width} of {part}, expected a number above 0 up to 1")

    def __hash__(self) -> int:
        return hash((self.encoder, *sorted(self.decoders.items())))
