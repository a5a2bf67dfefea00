"""Counts: by hand, against published figures, and against torch's own counter on computing devices."""

from __future__ import annotations

import pytest
import torch
from tests.cost.networks import ResNet50, ViTB16
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from polytask.cost import Count, count, macs
from polytask.errors import InputError


def test_layers_by_hand() -> None:
    x = torch.empty(2, 4, 9, 9)
    assert macs(nn.Conv2d(4, 6, 3), x) == 2 * 49 * 6 * 4 * 9
    assert macs(nn.Conv2d(4, 8, 3, groups=4), x) == 2 * 49 * 8 * 9
    assert macs(nn.ConvTranspose2d(4, 3, 2, stride=2), x) == 2 * 81 * 4 * 3 * 4
    assert macs(nn.Linear(9, 5), x) == 2 * 4 * 9 * 9 * 5
    assert macs(nn.BatchNorm2d(4), x) == macs(nn.LayerNorm(9), x) == macs(nn.GELU(), x) == 0
    table = count(nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.int64)).total
    assert table == Count(macs=0, parameters=40, activation_bytes=2 * 3 * 4 * 4)


@pytest.mark.parametrize("kind", [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_by_hand(kind: tuple[type[nn.Module], int]) -> None:
    make, gates = kind
    steps, batch, width, hidden = 7, 2, 5, 6
    first, second = gates * hidden * (width + hidden), gates * hidden * (2 * hidden + hidden)
    network = make(width, hidden, 2, bidirectional=True)  # type: ignore[call-arg]
    assert macs(network, torch.empty(steps, batch, width)) == 2 * steps * batch * (first + second)


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, key=k, value=v)
        return (q @ k.mT).softmax(-1) @ v


def test_attention_costs_the_same_fused_or_not_but_for_its_matrix() -> None:
    q, k, v = torch.empty(2, 3, 5, 8), torch.empty(2, 3, 7, 8), torch.empty(2, 3, 7, 4)
    fused, plain = count(Attention(True), q, k, v).total, count(Attention(False), q, k, v).total
    assert fused.macs == plain.macs == 6 * 5 * 7 * (8 + 4)
    assert fused.activation_bytes == 6 * 5 * 4 * 4
    assert plain.activation_bytes >= fused.activation_bytes + 2 * 6 * 5 * 7 * 4
    assert count(Attention(True), q, k, v, device="cpu").total == fused
    whole = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.empty(3, 5, 8)
    assert macs(whole, x, x, x) == 3 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)


def test_parts_are_within_the_whole() -> None:
    shared = nn.Linear(4, 4, bias=False)
    network = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, nn.Linear(4, 2, bias=False))
    found = count(network, torch.empty(3, 4))
    assert found.total.macs == 3 * (16 + 16 + 8) and found.total.parameters == 16 + 8
    assert found.modules["0"].macs == 48 and found.modules["2"] == Count(24, 8, 24)
    assert found.modules["0.1"] == Count(0, 0, 48)


def test_counting_changes_and_computes_nothing() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    assert macs(huge, torch.empty(1, 10**6, device="meta")) == 10**12
    x = torch.randn(5, 3)
    assert count(network, x).total == count(network, x, device="cpu").total
    assert network.training and network[1].num_batches_tracked == 0


def test_the_published_sizes() -> None:
    """He et al., CVPR 2016 and Dosovitskiy et al., ICLR 2021, as torchvision's documentation lists the two networks."""
    x = torch.empty(1, 3, 224, 224, device="meta")
    with torch.device("meta"):
        networks = {"resnet": ResNet50(), "vit": ViTB16()}
    resnet, vit = (count(network, x).total for network in networks.values())
    assert resnet.parameters == 25_557_032 and vit.parameters == 86_567_656
    assert resnet.macs == pytest.approx(4.09e9, rel=0.01) and vit.macs == pytest.approx(17.56e9, rel=0.01)


def test_torchs_own_counter_agrees() -> None:
    network = nn.Sequential(nn.Conv1d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 4, 5), nn.Unflatten(1, (5, 1)))
    x = torch.randn(2, 3, 10)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert 2 * macs(network, x) == counter.get_total_flops()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x if x.sum() > 0 else -x


def test_what_cannot_run_is_one_error() -> None:
    with pytest.raises(InputError, match="device='cpu' where its way depends on values"):
        macs(Branching(), torch.ones(1, 3))
    assert count(Branching(), torch.ones(1, 3), device="cpu").total.macs == 9
    with pytest.raises(InputError, match="cannot run on the device 'meta'"):
        macs(nn.Linear(3, 4), torch.ones(1, 5))
