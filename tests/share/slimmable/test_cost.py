"""Operations: by hand, of the table, and of what is extracted."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.share.slimmable.networks import images, residual, supernet
from torch import nn

from polytask.share.slimmable import WIDTHS, Configuration, Costs, Slimmable, macs


def by_hand(network: nn.Module, x: torch.Tensor) -> int:
    """Of convolutions and linear layers, by the shapes that they see."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += module.weight[0].numel() * output.numel()
        elif isinstance(module, nn.Linear):
            total += module.in_features * output.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(x)
    return total


def test_nothing_is_computed_and_nothing_changes() -> None:
    network = nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(800, 3))
    assert macs(network, images()) == macs(network, images().to("meta")) == by_hand(network.eval(), images())
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize("widths", [1.0, 0.5, (0.25, 0.75)])
def test_a_width_costs_what_is_extracted_of_it(widths: float) -> None:
    network = Slimmable(residual())
    assert macs(network, images(), widths) == by_hand(network.extract(widths), images())


@pytest.mark.parametrize("width", WIDTHS)
def test_between_slimmed_layers_operations_grow_with_the_square_of_the_width(width: float) -> None:
    inner = nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 5, 1))
    first, middle, last = (64 * 100, 64 * 64 * 9 * 100, 64 * 5 * 100)
    expected = first * width + middle * width**2 + last * width
    assert macs(Slimmable(inner), torch.empty(1, 1, 10, 10), width) == expected


def test_the_table_is_a_counter_on_the_extracted_network() -> None:
    network, x = supernet(), torch.empty(1, 1, 8, 8)
    costs = Costs(network, x)
    for encoder, width in itertools.product(WIDTHS, WIDTHS):
        chosen = Configuration(encoder, {"classes": width, "edge": 1.0, "depth": 0.25})
        plain, decoders = network.extract(chosen)
        x = torch.zeros(1, 1, 8, 8)
        total = by_hand(plain, x) + sum(by_hand(decoder, plain(x)) for decoder in decoders.values())
        parts = [costs.encoder(encoder), *(costs.decoder(task, w) for task, w in chosen.decoders.items())]
        assert costs(chosen) == total == sum(parts)


def test_norms_that_refuse_to_evaluate_are_counted() -> None:
    chain = nn.Sequential(nn.Conv2d(2, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))
    network = Slimmable(chain, batch_norm="recalibrated").eval()
    assert macs(network, images()[:1], 0.5) == (2 * 8 + 8 * 4) * 144
