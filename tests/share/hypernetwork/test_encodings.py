"""How contexts are written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.share.hypernetwork import ENCODINGS, complement, cos_sin

values = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6)


@settings(max_examples=25)
@given(values)
def test_the_squared_norm_of_cos_sin_is_the_dimension(gamma: list[float]) -> None:
    encoded = cos_sin(torch.tensor(gamma, dtype=torch.float64))
    assert float(encoded.square().sum()) == pytest.approx(len(gamma))


@settings(max_examples=25)
@given(values)
def test_the_magnitudes_of_complement_sum_to_the_dimension_and_its_norm_is_not_constant(gamma: list[float]) -> None:
    assert float(complement(torch.tensor(gamma, dtype=torch.float64)).abs().sum()) == pytest.approx(len(gamma))
    assert float(complement(torch.tensor([0.5])).norm()) < float(complement(torch.tensor([0.0])).norm())


def test_ends_and_order() -> None:
    torch.testing.assert_close(cos_sin(torch.tensor([0.0])), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(cos_sin(torch.tensor([1.0])), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    # All cosines, then all sines.
    torch.testing.assert_close(cos_sin(torch.tensor([[0.0, 1.0]])), torch.tensor([[1.0, 0.0, 0.0, 1.0]]), atol=1e-6, rtol=0)
    assert complement(torch.tensor([[0.25, 1.0]])).tolist() == [[0.25, 1.0, 0.75, 0.0]]


def test_the_mean_squares_are_those_of_what_is_made() -> None:
    torch.manual_seed(0)
    even = torch.rand(200_000, 3)
    for name in ("none", "cos_sin", "complement", "unit"):
        encoded = ENCODINGS[name](even)
        assert encoded.shape[1] == 3 * ENCODINGS[name].factor
        assert float(encoded.square().mean()) == pytest.approx(ENCODINGS[name].square(1 / 3, 3), rel=0.01)
    torch.testing.assert_close(ENCODINGS["unit"](torch.randn(4, 7)).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["cos_sin", "complement"])
def test_values_outside_of_0_to_1_are_refused_since_a_cosine_wraps(name: str) -> None:
    for wrong, said in (([0.2, 1.5], "0.2 to 1.5"), ([-0.1, 0.3], "-0.1 to 0.3"), ([float("nan")], "nan")):
        with pytest.raises(InputError, match=f"context with values from {said}.*expected 0 to 1"):
            ENCODINGS[name](torch.tensor(wrong))
