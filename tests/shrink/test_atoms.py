"""Atoms: prices, the penalty, and shrinking while an optimizer and a moving average go on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from polytask.cost import macs
from polytask.errors import InputError
from polytask.shrink import Masks, Slimming, magnitude_masks, ramp, remove


class Inverted(nn.Module):
    """An inverted residual and a head, on a stream that a stem makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.last = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        out: Tensor = self.head(self.last(x).mean((2, 3)))
        return out


def network() -> Inverted:
    torch.manual_seed(0)
    return Inverted()


X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def test_atoms_are_priced_by_the_operations_that_they_take() -> None:
    model = network()
    slimming = Slimming(model, X[:1])
    found = {atoms.group: atoms for atoms in slimming.atoms}
    norms = {name: atoms.norm for name, atoms in found.items()}
    assert norms == {"expand.0": "depth.1", "last.0": "last.1"}  # not the stream
    assert found["expand.0"].macs == 25 * (6 + 9 + 6) and found["last.0"].macs == 25 * 6 * 9 + 4
    numbers = {name: slimming.structure[name].units for name in found}
    total = sum(numbers[name] * atoms.price for name, atoms in found.items())
    assert total / sum(numbers.values()) == pytest.approx(1)
    assert slimming.saving({"expand.0": [1, 2], "last.0": [3]}) == 2 * found["expand.0"].macs + found["last.0"].macs
    only = Slimming(model, X[:1], norms="depth.*")
    assert [(atoms.group, atoms.price) for atoms in only.atoms] == [("expand.0", 1.0)]


def test_the_penalty_and_its_gradient() -> None:
    model = network()
    slimming = Slimming(model, X[:1])
    assert slimming.penalty().item() == pytest.approx(22)
    model.depth[1].weight.data.normal_()
    slimming.penalty().backward()
    for atoms in slimming.atoms:
        norm = model.get_submodule(atoms.norm)
        torch.testing.assert_close(norm.weight.grad, atoms.price * norm.weight.detach().sign())
    assert model.stem[1].weight.grad is None


def test_the_ramp() -> None:
    assert [ramp(t, 2.0, free=10, warm=20) for t in (0, 10, 15, 20, 100)] == [0, 0, 1, 2, 2]
    assert ramp(0, 2.0, free=0, warm=0) == 2.0


def test_dead_are_those_that_are_small_in_both() -> None:
    model = network()
    slimming, other = Slimming(model, X[:1]), copy.deepcopy(model)
    model.depth[1].weight.data[[0, 1, 2]] = torch.tensor([1e-3, -1e-4, 0.0])
    other.depth[1].weight.data[[1, 2, 5]] = 0.0
    assert slimming.dead(model, other) == {"expand.0": [1, 2]}
    assert slimming.dead(other) == {"expand.0": [1, 2, 5]}
    model.last[1].weight.data[:] = 1e-5
    model.last[1].weight.data[4] = 2e-5
    assert slimming.dead(model)["last.0"] == [unit for unit in range(10) if unit != 4]  # one of a group stays


def test_the_smallest_meet_a_budget_to_the_last_atom() -> None:
    model = network()
    for norm in (model.depth[1], model.last[1]):
        norm.weight.data.uniform_()
    slimming = Slimming(model, X[:1])
    budget = 0.6 * slimming.macs
    chosen = slimming.smallest(model, budget)
    assert slimming.macs - slimming.saving(chosen) <= budget
    magnitudes = slimming.magnitudes(model)
    name, unit = max(((name, unit) for name in chosen for unit in chosen[name]), key=lambda at: magnitudes[at[0]][at[1]])
    fewer = {**chosen, name: [other for other in chosen[name] if other != unit]}
    assert slimming.macs - slimming.saving(fewer) > budget
    assert slimming.smallest(model, slimming.macs) == {}
    with pytest.raises(InputError, match="are left with one atom in each group"):
        slimming.smallest(model, 10)


def test_training_goes_on_with_a_smaller_optimizer_and_average() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=lambda a, p, _: torch._foreach_lerp_(a, p, 0.5))
    slimming, masks = Slimming(model, X[:1]), magnitude_masks(model, 0.3)

    def step() -> None:
        optimizer.zero_grad()
        (model(X).square().mean() + slimming.penalty()).backward()
        optimizer.step()
        average.update_parameters(model)

    for _ in range(2):
        step()
    for copied in (model, average.module):
        copied.depth[1].weight.data[[2, 7]] = 0
        copied.last[1].weight.data[3] = 0
        copied.eval()
    with masks.effective(model):
        expected = model(X)
    dead = slimming.dead(model, average.module)
    assert dead == {"expand.0": [2, 7], "last.0": [3]}
    masks = slimming.remove(dead, optimizer=optimizer, averages=[average.module], masks=masks)
    with masks.effective(model):
        torch.testing.assert_close(model(X), expected)
    assert slimming.macs == macs(model, X[:1])
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in average.module.named_parameters()}
    assert all(state["momentum_buffer"].shape == p.shape for p, state in optimizer.state.items())
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}
    model.train()
    step()
    assert slimming.penalty().item() > 0 and slimming.dead(model) == {}


def test_the_average_is_exact_too_with_its_own_constants() -> None:
    model = network().eval()
    other = copy.deepcopy(model)
    for copied, beta in ((model, 0.5), (other, 1.5)):
        copied.depth[1].weight.data[4] = 0
        copied.depth[1].bias.data[:] = beta
    expected, averaged = model(X), other(X)
    leaking = remove(model, Slimming(model, X[:1]).structure, {"expand.0": [4]})
    slimming = Slimming(model, X[:1])
    assert slimming.remove({"expand.0": [4]}, averages=[other]).keep == Masks({}).keep
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(other(X), averaged)
    assert not torch.allclose(leaking(X), expected, atol=1e-4)


def test_networks_without_such_norms_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"followed by a batch norm called '\*'"):
        Slimming(model, torch.randn(1, 4))
