"""Flags and normalised costs."""

import numpy as np
import pytest

from polytask.errors import InputError
from polytask.route import Expert, normalised_costs, parse_flags, weighted_costs

EXPERTS = [
    Expert("small", costs={"size": 1e6, "age": 10.0, "price": 2.0}),
    Expert("middle", costs={"size": 1e7, "age": 4.0, "price": 2.0}),
    Expert("large", costs={"size": 1e8, "age": 0.0, "price": 2.0}),
]


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("no flag", "no flag", {}),
        ("  spaces stay  ", "  spaces stay  ", {}),
        ("[Flag: small model] hello", "hello", {"size": 1.0}),
        ("hello [FLAG:small  model 0.3] world", "hello world", {"size": 0.3}),
        ("hello [flag: small model = 2] [flag: small model]", "hello", {"size": 3.0}),
        ("a [Flag: fast] [Flag: cheap 0.5]", "a", {"latency": 1.0, "price": 0.5}),
        ("a list [1, 2] and [Flags]", "a list [1, 2] and [Flags]", {}),
    ],
)
def test_flags_are_taken_out(prompt: str, text: str, weights: dict[str, float]) -> None:
    assert parse_flags(prompt) == (text, weights)
    assert parse_flags(text) == (text, {})


def test_an_unknown_flag_is_an_error_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown flag 'smal model' in the prompt: did you mean 'small model'"):
        parse_flags("hi [Flag: smal model]")
    with pytest.raises(InputError, match=r"'1.2.3' is no number"):
        parse_flags("hi [Flag: fast 1.2.3]")
    assert parse_flags("hi [Flag: kind]", {"kind": {"rudeness": 2.0}}) == ("hi", {"rudeness": 2.0})


def test_costs_are_brought_to_one_scale() -> None:
    np.testing.assert_allclose(
        normalised_costs(EXPERTS, ["size", "age", "price"]), [[0, 1, 0], [0.5, 0.4, 0], [1, 0, 0]], atol=1e-12
    )
    np.testing.assert_allclose(weighted_costs(EXPERTS, {"size": 2.0, "age": 1.0}), [1.0, 1.4, 2.0])
    assert weighted_costs(EXPERTS, {}).tolist() == [0, 0, 0]
    scaled = [Expert(e.name, costs={name: 1000 * value for name, value in e.costs.items()}) for e in EXPERTS]
    np.testing.assert_allclose(normalised_costs(scaled, ["size", "age"]), normalised_costs(EXPERTS, ["size", "age"]))


def test_costs_that_are_not_stated_or_not_positive() -> None:
    with pytest.raises(InputError, match="no expert states a cost 'sise': did you mean 'size'"):
        weighted_costs(EXPERTS, {"sise": 1.0})
    with pytest.raises(InputError, match="expert 'bare': size None, expected a positive number"):
        weighted_costs([*EXPERTS, Expert("bare")], {"size": 1.0})
    with pytest.raises(InputError, match=r"expert 'free': price 0.0, expected a positive number"):
        weighted_costs([*EXPERTS, Expert("free", costs={"price": 0.0})], {"price": 1.0})
    with pytest.raises(InputError, match=r"weight -1.0 of the cost 'size'"):
        weighted_costs(EXPERTS, {"size": -1.0})
