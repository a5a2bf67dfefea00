"""Widths of an encoder and its decoders, as a value."""

from __future__ import annotations

import pytest

from polytask import InputError
from polytask.share.slimmable import Configuration


def test_it_is_a_value() -> None:
    one = Configuration((0.5, 1.0), {"a": 0.25, "b": 1.0})
    other = Configuration((0.5, 1.0), {"b": 1.0, "a": 0.25})
    assert one == other and len({one, other, Configuration(0.5, {"a": 0.25, "b": 1.0})}) == 2


@pytest.mark.parametrize(
    ("encoder", "decoders", "words"),
    [
        (0.0, {}, "width 0.0 of the encoder"),
        ((0.5, 1.25), {}, "width 1.25 of the encoder"),
        (1.0, {"a": -0.5}, "width -0.5 of a, expected a number above 0 up to 1"),
    ],
)
def test_widths_are_above_0_up_to_1(encoder: float, decoders: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Configuration(encoder, decoders)
