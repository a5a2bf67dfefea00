"""Banks of layers and experts are the loop over their members."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polytask.share._experts import Bank, Experts, mix, rectified


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_a_bank_is_its_layers_one_by_one(count: int, inputs: int, outputs: int, rows: int) -> None:
    bank = Bank(count, inputs, outputs).double()
    nn.init.normal_(bank.bias)
    x = torch.randn(count, rows, inputs, dtype=torch.float64)
    found = bank(x)
    assert found.shape == (count, rows, outputs)
    for i in range(count):
        torch.testing.assert_close(found[i], x[i] @ bank.weight[i] + bank.bias[i, 0])


def test_layers_begin_so_that_a_relu_keeps_the_scale() -> None:
    torch.manual_seed(0)
    for layer in (Bank(4, 256, 64), rectified(256, 512)):
        assert float(layer.weight.detach().abs().max()) == pytest.approx((6 / 256) ** 0.5, rel=0.01)
        assert float(layer.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.02)
        assert not bool(layer.bias.any())
    x = torch.randn(512, 256).relu()
    for _ in range(4):
        x = rectified(256, 256)(x).relu().detach()
    assert 0.5 < float(x.square().mean() / 0.5) < 2


def test_experts_read_the_same_rows() -> None:
    experts, x = Experts(3, 4, 5).double(), torch.randn(6, 4, dtype=torch.float64)
    found = experts(x)
    for i in range(3):
        mine = slice(5 * i, 5 * (i + 1))
        hidden = (x @ experts.hidden.weight[mine].T + experts.hidden.bias[mine]).clamp(min=0)
        expected = (hidden @ experts.output.weight[i] + experts.output.bias[i, 0]).clamp(min=0)
        torch.testing.assert_close(found[i], expected)


def test_a_mixture_of_two_banks_is_that_of_one() -> None:
    gate, outputs = torch.rand(6, 5, dtype=torch.float64), torch.randn(5, 6, 3, dtype=torch.float64)
    expected = torch.stack([sum(gate[n, e] * outputs[e, n] for e in range(5)) for n in range(6)])  # type: ignore[misc]
    torch.testing.assert_close(mix(gate, outputs), expected)
    torch.testing.assert_close(mix(gate, outputs[:2], outputs[2:]), expected)
    assert mix(gate, outputs.bfloat16()).dtype == torch.bfloat16
