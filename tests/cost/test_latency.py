"""Measured time: what is stated is what was done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytask.cost import measure_latency
from polytask.errors import InputError


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        return x


def test_passes_threads_and_modes() -> None:
    network, before = Seen().train(), torch.get_num_threads()
    found = measure_latency(network, torch.ones(3, 2), repeats=4, warmup=2, threads=2)
    assert network.calls == 6 * [(2, False, False)]
    assert network.training and torch.get_num_threads() == before
    assert (found.repeats, found.warmup, found.threads, found.batch_size, found.device) == (4, 2, 2, 3, "cpu")
    assert 0 < found.fastest <= found.median <= found.slowest


def test_settings_that_cannot_be() -> None:
    for settings in ({"repeats": 0}, {"warmup": -1}, {"threads": 0}):
        with pytest.raises(InputError, match="expected at least 1, 0 and 1"):
            measure_latency(nn.Identity(), torch.ones(1), **settings)
    with pytest.raises(InputError, match="no tensor"):
        measure_latency(nn.Identity(), 3)
