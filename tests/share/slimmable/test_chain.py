"""A chain at every width: the plain network at 1, and what is extracted at the others."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.share.slimmable.networks import CHAINS, grouped, images
from torch import Tensor, nn

from polytask import InputError
from polytask.share.slimmable import WIDTHS, Slimmable, narrowed

EACH = pytest.mark.parametrize("name", CHAINS)


@EACH
@pytest.mark.parametrize("training", [False, True])
def test_at_width_1_it_is_the_plain_network_bit_by_bit(name: str, training: bool) -> None:
    plain = CHAINS[name]().train(training)
    network = Slimmable(plain)
    assert network.training == training
    x, again = images().requires_grad_(), images().requires_grad_()
    expected, found = plain(x), network(again)
    assert torch.equal(found, expected)
    expected.square().sum().backward(), found.square().sum().backward()
    assert x.grad is not None and again.grad is not None and torch.equal(x.grad, again.grad)
    if name in ("grouped", "residual"):
        assert list(network.state_dict()) == list(plain.state_dict())
        network.load_state_dict({key: 2 * value for key, value in plain.state_dict().items()})
    whole = Slimmable(plain).extract()
    assert list(whole.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in whole.state_dict().items() if not training)


@EACH
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_extracted_gives_the_same_outputs(name: str, width: float) -> None:
    network = Slimmable(CHAINS[name]()).eval()
    small = network.extract(width)
    assert not small.training and not any(type(module).__name__.startswith("Slim") for module in small.modules())
    torch.testing.assert_close(small(images()), network(images(), width))
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in CHAINS[name]().parameters())


@EACH
def test_stages_have_widths_of_their_own(name: str) -> None:
    network = Slimmable(CHAINS[name](), batch_norm="recalibrated")
    assert network.stages == {"grouped": 2, "batched": 2, "residual": 2, "flat": 3}[name]
    assert network.width == {"grouped": 5, "batched": 24, "residual": 4, "flat": 3}[name]
    if name == "flat":
        network = Slimmable(CHAINS[name]())
    widths = (0.5, 1.0, 0.25)[: network.stages] if name != "residual" else (0.25, 0.75)
    torch.manual_seed(0)
    found = network.train()(images(), widths)
    torch.testing.assert_close(network.extract(widths).train()(images()), found)


def embedded(small: nn.Module, whole: nn.Module) -> nn.Module:
    """The whole network with the weights of ``small`` as its first channels, and zeros for all others."""
    whole = copy.deepcopy(whole)
    state = small.state_dict()
    with torch.no_grad():
        for key, tensor in whole.state_dict().items():
            if tensor.is_floating_point():
                tensor.fill_(1.0 if key.endswith("running_var") else 0.0)
                tensor[tuple(slice(size) for size in state[key].shape)] = state[key]
    return whole


@pytest.mark.parametrize("name", ["grouped", "batched", "residual"])
@pytest.mark.parametrize("width", WIDTHS)
def test_zeroed_channels_are_no_channels(name: str, width: float) -> None:
    network = Slimmable(CHAINS[name]()).eval()
    masked = embedded(network.extract(width), network.extract())
    if width < 1:
        assert masked(images()).shape == network(images()).shape and not torch.allclose(masked(images()), network(images()))
    torch.testing.assert_close(masked(images()), network(images(), width), rtol=1e-4, atol=1e-5)


@EACH
def test_a_narrower_network_is_part_of_a_wider_one(name: str) -> None:
    network = Slimmable(CHAINS[name](), batch_norm="recalibrated")
    states = [network.extract(width).state_dict() for width in WIDTHS]
    for narrow, wide in itertools.pairwise(states):
        for key, tensor in narrow.items():
            assert torch.equal(tensor, wide[key][tuple(slice(size) for size in tensor.shape)])


def test_gradients_reach_the_slice_alone() -> None:
    network = Slimmable(grouped())
    network(images(), 0.25).square().sum().backward()
    for layer, inputs, outputs in ((network[0], 2, 8), (network[3], 8, 16), (network[7], 16, 5)):
        grad: Any = layer.weight.grad
        assert bool((grad[:outputs, :inputs].flatten(2).abs().amax(-1) > 0).all())
        assert not grad[outputs:].any() and not grad[:, inputs:].any()


def test_threads_at_different_widths_do_not_meet() -> None:
    network = Slimmable(grouped()).eval()
    with torch.no_grad():
        expected = {width: network(images(), width) for width in WIDTHS}

        def run(width: float) -> bool:
            with torch.no_grad():
                return all(torch.equal(network(images(), width), expected[width]) for _ in range(5))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, WIDTHS * 3))


@pytest.mark.soak
def test_one_graph_for_each_width_under_torch_compile() -> None:
    network = Slimmable(grouped()).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for width in (1.0, 0.25):
        torch.testing.assert_close(compiled(images(), width), network(images(), width))


def test_half_precision_by_autocast() -> None:
    network = Slimmable(grouped())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(images(), 0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), network(images(), 0.5), rtol=0.1, atol=0.1)


def test_random_layers_and_modes_are_those_of_the_network() -> None:
    network = Slimmable(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2)))
    x: Tensor = torch.ones(50, 4)
    assert not torch.equal(network(x, 0.5), network(x, 0.5))
    assert torch.equal(network.eval()(x, 0.5), network(x, 0.5))


def test_widths_that_cannot_be_are_refused() -> None:
    network = Slimmable(grouped())
    for widths in (0.0, 1.5, (0.5,), (0.5, 0.5, 0.5), (0.5, -1.0), float("nan")):
        with pytest.raises(InputError, match="expected a number above 0 up to 1, or 2, one for each stage"):
            network(images(), widths)
    assert network.extract(0.3)[0].out_channels == narrowed(32, 0.3) == 16  # any other width will do
