"""SuperTickets: the supernet's counts, and two in one against plain training, one by one."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.cost import count
from polytask.papers.supertickets import (
    NORMS,
    PAPER,
    Architecture,
    Block,
    Classifier,
    Dense,
    HighResolutionNet,
    Schedule,
    digits,
    imagenet,
    segmentation,
    two_in_one,
)
from polytask.papers.supertickets import comparison as claim
from polytask.papers.supertickets.picture import plot
from polytask.shrink import Slimming

SIZES = Architecture(inputs=1, stem=(4,), stages=(((1,), (4,)), ((1, 1), (4, 6))), kernels=(3, 5), expansion=2, momentum=0.1)
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 1, 8, 8, generator=GENERATOR), torch.randint(0, 3, (16,), generator=GENERATOR)


def network(classes: int = 3) -> HighResolutionNet:
    torch.manual_seed(0)
    return HighResolutionNet(SIZES, Classifier(SIZES, classes, raised=None, last=8, dropout=0.0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def losses(network: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"class": F.cross_entropy(network(batch[0]), batch[1])}


def run(
    model: nn.Module, data: Any = None, norms: str = NORMS, wrap: Any = lambda model: model, **settings: Any
) -> list[Any]:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = Schedule(**{"epochs": 3, "interval": 1, "look": 1, "warm": 1, "average": 0.0, "least": 0.0, **settings})
    data = data or (lambda epoch: [(X, Y)])
    return two_in_one(model, losses, data, optimizer, schedule, inputs=[X[:1]], norms=norms, calibration=[X], wrap=wrap)


@pytest.mark.parametrize(
    ("build", "parameters", "auxiliary", "blocks", "gmacs"),
    [
        (imagenet, 13_339_772, 95_904, 67, 2.423),
        pytest.param(lambda: segmentation(19), 10_200_091, 89_856, 61, 5.918, marks=pytest.mark.soak),
    ],
)
def test_the_supernet_is_the_authors(build: Any, parameters: int, auxiliary: int, blocks: int, gmacs: float) -> None:
    with torch.device("meta"):
        model = build()
    total = count(model, torch.empty(1, 3, 224, 224)).total
    own = [module for module in model.modules() if isinstance(module, Block)]
    hidden = sum(branch.depthwise[1].num_features for block in own for branch in block.branches)  # type: ignore[union-attr, index]
    assert 2 * hidden == auxiliary  # a factor and a bias of each further batch norm, which are left out
    assert total.parameters == parameters - auxiliary and len(own) == blocks
    assert total.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)


def test_ade20k_differs_from_cityscapes_by_its_classes() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in Dense(Architecture(), classes).parameters()) for classes in (19, 150)]
    assert sizes[1] - sizes[0] == 10_212_012 - 10_200_091 == 131 * 91
    assert pytest.approx(5.955, abs=1e-3) == 5.918 + 131 * 90 * 56**2 / 1e9


def test_maps_of_odd_sizes() -> None:
    model = HighResolutionNet(SIZES, Dense(SIZES, 5, last=6))
    assert model(torch.randn(2, 1, 11, 13)).shape == (2, 5, 6, 7)


def test_the_penalty_is_normalised_over_the_supernets_atoms() -> None:
    model = network()
    slimming = Slimming(model, X[:1], norms=NORMS)
    own = [module for module in model.modules() if isinstance(module, Block)]
    assert len(slimming.atoms) == 2 * len(own) and all(atoms.norm.endswith("depthwise.1") for atoms in slimming.atoms)
    units = [slimming.structure[atoms.group].units for atoms in slimming.atoms]
    assert sum(n * a.price for n, a in zip(units, slimming.atoms, strict=True)) / sum(units) == pytest.approx(1)
    # 16 places of 4 channels in, 4 out; a 3x3 and a 5x5 kernel
    assert [atoms.macs for atoms in slimming.atoms[:2]] == [16 * (4 + 9 + 4), 16 * (4 + 25 + 4)]


def test_without_penalty_and_sparsity_it_is_plain_training() -> None:
    model, plain = network(), network()
    (*_, last) = run(model, rho=0.0, final=0.0, decay=1e-3)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        squares = sum((p.square().sum() for p in plain.parameters() if p.ndim > 1), torch.zeros(()))
        (F.cross_entropy(plain(X), Y) + 0.5e-3 * squares).backward()
        optimizer.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert last.sparsity == 0 and not last.ticket.masks.keep and last.macs == count(plain, X[:1]).total.macs


def test_a_penalty_alone_is_a_search_that_shrinks_the_network() -> None:
    model = plain()
    found = run(model, lambda epoch: 20 * [(X, Y)], epochs=4, rho=0.1, final=0.0, threshold=0.02, norms="*")
    costs = [drawn.macs for drawn in found]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]
    again = plain()
    found[-1].ticket.draw(again)
    assert count(again, X[:1]).total.macs == costs[-1] == count(model, X[:1]).total.macs
    assert not found[-1].ticket.masks.keep


def test_both_at_once_keep_to_the_schedule_and_the_budget() -> None:
    start = network()
    budget = 0.7 * count(start, X[:1]).total.macs
    model = copy.deepcopy(start)
    found = run(model, epochs=5, rho=0.01, final=0.3, budget=budget, search=2, reuse=True)
    assert [drawn.sparsity for drawn in found] == [0.1, 0.2, 0.3, 0.3, 0.3]
    assert all(drawn.ticket.masks.sparsity == pytest.approx(drawn.sparsity, abs=1e-3) for drawn in found)
    assert found[0].macs == count(start, X[:1]).total.macs and all(
        0.9 * budget < drawn.macs <= budget for drawn in found[1:]
    )
    for drawn in found:
        drawn.ticket.draw(copy.deepcopy(start))
    stored = dict(model.named_parameters())
    assert all((stored[name][~mask] != 0).any() for name, mask in found[-1].ticket.masks.keep.items() if not mask.all())


def test_what_is_pruned_comes_back_unless_it_is_frozen() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [[(torch.randn(16, 1, 8, 8, generator=generator), Y) for _ in range(5)] for _ in range(5)]
    back = {}
    for connectivity in ("changing", "frozen", "reset"):
        found = run(plain(), batches.__getitem__, epochs=5, rho=0.0, final=0.3, connectivity=connectivity, decay=1.0)
        back[connectivity] = claim.came_back(found)
        masks = [drawn.ticket.masks.keep for drawn in found]
        if connectivity == "frozen":
            assert all((later[name] <= mask).all() for a, later in pairwise(masks) for name, mask in a.items())
    assert back["frozen"] == 0 and back["changing"] > 0 and back["reset"] > 0


def test_a_wrapper_is_made_at_first_and_when_channels_were_removed() -> None:
    wrapped: list[nn.Module] = []

    def wrap(model: nn.Module) -> nn.Module:
        wrapped.append(nn.Sequential(model))
        return wrapped[-1]

    budget = 0.7 * count(plain(), X[:1]).total.macs
    settings: dict[str, Any] = {"rho": 0.01, "budget": budget, "search": 2, "norms": "*", "average": 0.9}
    bare, other = plain(), plain()
    run(bare, **settings)
    (*_, last) = run(other, **settings, wrap=wrap)
    assert len(wrapped) == 2 and last.macs <= budget
    for a, b in zip(bare.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    again = plain()
    last.ticket.draw(again)
    assert any(not torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True))  # an average


def test_the_dense_arm_is_the_widest_that_fits() -> None:
    for limit in (600, 2000):
        width = digits.dense(limit)[0].out_channels
        assert digits.size(digits.dense(limit)) <= limit < digits.size(digits.dense(limit * 2)) or width > 1


@pytest.mark.soak
def test_a_tiny_run_measures_all_that_the_claims_and_the_plot_need(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(claim.FILES)
    monkeypatch.setattr(digits, "STEPS", 1)
    monkeypatch.setattr(claim, "TEST", 100)
    found = claim.measure(0, folder)
    budget = digits.searched(digits.INTERVALS)["budget"]
    arms = [name for name in found if name.endswith(" macs")]
    assert len(arms) == 6 and all(0.97 * budget < found[name] <= budget for name in arms)
    measured = {0: found, 1: {name: value + 0.1 * len(name) for name, value in found.items()}}
    assert all(stated.judge(measured) for stated in PAPER.claims)
    assert plot(measured).axes
