"""Removal: the masked network's outputs, the optimizer's state, and what is put back on loading."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.shrink.networks import NETWORKS, built, outputs
from torch import nn

from polytask.cost import macs
from polytask.errors import InputError, MissingExtra
from polytask.nn.sentence import SentenceEncoder, text_encoder_folder
from polytask.shrink import Shrunk, Structure, find_structure, masked, remove, resize


def some(structure: Structure, seed: int = 0) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.units, generator=generator)[: g.units // 2].tolist() for g in structure.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_gives_what_the_masked_one_gives(name: str) -> None:
    network, x, _ = built(name)
    structure, x = find_structure(network, x), x.double()
    network.double()
    gone = some(structure)
    small, mask = remove(network, structure, gone), masked(network, structure, gone)
    for a, b in zip(outputs(small(x)), outputs(mask(x)), strict=True):
        torch.testing.assert_close(a, b)
    assert macs(small, x) < macs(network, x) == macs(mask, x)
    assert any(not torch.equal(a, b) for a, b in zip(outputs(small(x)), outputs(network(x)), strict=True))
    for module in small.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm | nn.ConvTranspose2d):
            again = copy.deepcopy(module)
            again.reset_parameters()  # by its own numbers of channels
            assert {k: v.shape for k, v in again.state_dict().items()} == {
                k: v.shape for k, v in module.state_dict().items()
            }


@pytest.mark.parametrize("name", NETWORKS)
def test_one_after_the_other_is_all_at_once(name: str) -> None:
    network, x, _ = built(name)
    structure = find_structure(network, x)
    gone = some(structure)
    step, current = network, structure
    for group, units in gone.items():
        step, current = remove(step, current, {group: units}), current.after({group: units})
    whole = remove(network, structure, gone)
    assert all(torch.equal(value, step.state_dict()[key]) for key, value in whole.state_dict().items())
    found = {group.name: group for group in find_structure(whole, x).groups}
    for group in current.groups:
        if group.units > 1:  # a single unit is no choice
            assert [m.units.tolist() for m in group.members] == [m.units.tolist() for m in found[group.name].members]


def test_channels_of_zeros_can_be_removed() -> None:
    """The independent way: what makes a channel is zeroed, its bias and its norm too, and nothing is masked behind it."""
    network, x, _ = built("residual")
    structure = find_structure(network, x)
    gone = {"stem": [1, 2, 7], "a": [0, 5]}
    silent = copy.deepcopy(network)
    with torch.no_grad():
        for layer, units in (("stem", [1, 2, 7]), ("norm", [1, 2, 7]), ("b", [1, 2, 7]), ("a", [0, 5])):
            for tensor in silent.get_submodule(layer).parameters():
                tensor[units] = 0
    torch.testing.assert_close(remove(network, structure, gone)(x), silent(x))


def test_in_place_or_on_a_copy() -> None:
    network, x, _ = built("dense")
    structure, before = find_structure(network, x), copy.deepcopy(network.state_dict())
    small = remove(network, structure, {"a": [0]})
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert remove(network, structure, {"a": [0]}, inplace=True) is network
    assert network.state_dict().keys() == before.keys() and network.a.weight.shape == small.a.weight.shape == (5, 3, 3, 3)
    assert network.head.in_channels == network.norm.num_features == 12


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.01)])
def test_the_optimizer_goes_on_as_with_masks(make: object) -> None:
    network, x, _ = built("residual")
    structure = find_structure(network, x)
    optimizer = make(network.parameters())  # type: ignore[operator]

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(network, optimizer)
    gone = {"stem": [0, 3], "a": [2]}
    mask = masked(network, structure, gone)
    other = make(mask.parameters())  # type: ignore[operator]
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = remove(network, structure, gone, optimizer=optimizer)
    assert small is network and {id(p) for p in small.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    step(small, optimizer)
    step(mask, other)
    same = remove(mask, structure, gone)
    for (name, a), b in zip(small.named_parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    for parameter, state in optimizer.state.items():
        assert all(value.shape in (parameter.shape, ()) for value in state.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_makes_the_same_network_again(name: str) -> None:
    network, x, _ = built(name)
    small = remove(network, find_structure(network, x), some(find_structure(network, x)))
    smaller = remove(small, find_structure(small, x), {find_structure(small, x).groups[0].name: [0]})
    again = NETWORKS[name][0]().eval()
    resize(again, smaller.shrunk)
    again.load_state_dict(smaller.state_dict())
    for a, b in zip(outputs(again(x)), outputs(smaller(x)), strict=True):
        assert torch.equal(a, b)
    assert len(smaller.shrunk.removed) == 2


def test_a_record_that_does_not_fit() -> None:
    for shrunk in (
        Shrunk({"0.weight": [9, 3]}),
        Shrunk({"1.weight": [2, 3]}),
        Shrunk({"0.weight": [2]}),
        Shrunk(counters={"x.heads": 1}),
    ):
        with pytest.raises(InputError, match=r"of which channels were removed|no such module"):
            resize(nn.Sequential(nn.Linear(3, 4)), shrunk)


def test_heads_and_mlps_of_minilm_are_removed() -> None:
    try:
        encoder = SentenceEncoder.pretrained(text_encoder_folder("minilm")).eval()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    codes = torch.tensor([[102, 2009, 3205, 103, 0], [102, 2009, 103, 0, 0]])
    structure = find_structure(encoder, codes)
    units = sorted(group.units for group in structure.groups)
    assert units == 6 * [12] + 6 * [1536]
    gone = some(structure)
    small = remove(encoder, structure, gone)
    torch.testing.assert_close(small(codes), masked(encoder, structure, gone)(codes), rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in encoder.parameters()) - 6 * 700 * 768
