"""Flat regions: what the paper's package adds to the balancer (tests/balance/test_flat.py has its closed forms)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor, nn

import polytask as pt
from polytask.balance import PCGrad
from polytask.balance import cagrad as cagrad_module
from polytask.papers.flat_mtl import PAPER, FlatRegions, LeNet, ResNet18, sharpness
from polytask.papers.flat_mtl import digits as claim


class Quadratics(nn.Module):
    """Losses ``w^T M w / 2`` of one weight vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(5, dtype=torch.float64))
        self.forms = {name: (m := torch.randn(5, 5, dtype=torch.float64)) @ m.T for name in "ab"}

    def losses(self, batch: object) -> dict[str, Tensor]:
        return {name: self.w @ m @ self.w / 2 for name, m in self.forms.items()} | {"flat": 0 * self.w.sum()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield self.w


@pytest.mark.parametrize("rho", [0.01, 1.0])
def test_sharpness_of_a_quadratic(rho: float) -> None:
    """``L(w + e) - L(w) = e^T g + e^T M e / 2`` exactly."""
    model = Quadratics()
    before = model.w.detach().clone()
    plain, adaptive = sharpness(model, None, rho), sharpness(model, None, rho, adaptive=True)
    assert torch.equal(model.w, before) and model.w.grad is None
    for name, m in model.forms.items():
        g = m @ before
        for found, e in ((plain, rho * g / g.norm()), (adaptive, rho * before.square() * g / (before * g).norm())):
            assert found[name] == pytest.approx(float(e @ g + e @ m @ e / 2))
    assert plain["flat"] == adaptive["flat"] == 0


def test_where_a_loss_has_no_gradient_it_is_not_sharp() -> None:
    class Constant(Quadratics):
        def losses(self, batch: object) -> dict[str, Tensor]:
            return {"a": torch.ones(())}

    assert sharpness(Constant(), None) == {"a": 0.0}


def test_cagrad_of_one_task_is_longer_than_its_gradient_unless_it_is_told() -> None:
    """``g (1 + c) / (1 + c^2)``: with two parts 1.2069 times SAM. polytask's CAGrad has weight 1 for one task."""
    gramian = torch.tensor([[4.0]], dtype=torch.float64)
    assert float(cagrad_module.weights(gramian, 0.4)) / 1.16 == pytest.approx(1.4 / 1.16) == pytest.approx(1.2069, abs=1e-4)
    assert float(cagrad_module.CAGrad(c=0.4).weigh(gramian, {"a": 1.0})) == 1


def test_encoders_take_the_papers_images() -> None:
    images = torch.randn(3, 1, 36, 36)
    assert LeNet()(images).shape == (3, 50)
    assert ResNet18()(images).shape == (3, 100)
    with torch.device("meta"):
        model = PAPER.scales[0].build()
    assert sum(p.numel() for p in model.shared_parameters()) == 11_221_540


def test_a_watched_rule_is_the_rule_and_counts_conflicts() -> None:
    watched = claim.Watched(PCGrad(reduction="mean"))
    losses = {"a": 1.0, "b": 1.0}
    for product in (-0.5, 0.5, -0.1):
        gramian = torch.tensor([[1.0, product], [product, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(watched.weigh(gramian, losses), PCGrad(reduction="mean").weigh(gramian, losses))
    assert (watched.steps, watched.conflicts, watched.scale) == (3, 2, "mean")
    assert claim.Mean().weigh(torch.eye(4), dict.fromkeys("abcd", 1.0)).tolist() == [0.25] * 4


# The claim's data and protocol.


@pytest.fixture
def folder() -> Path:
    return folder_with(claim.FILES)


def test_the_composites(folder: Path) -> None:
    data = claim.load(folder, seed=0)
    for part, size in claim.SIZES.items():
        inputs, targets = getattr(data, part)[:]
        assert inputs.shape == (size, 1, 36, 36)
        assert 0.05 < float(inputs.mean()) < 0.25
        assert all(set(target.tolist()) == set(range(10)) for target in targets.values())
        # The corners that no digit reaches.
        assert not inputs[:, :, 28:, :8].any() and not inputs[:, :, :8, 28:].any()
    first, again, other = (d.train[:][1]["left"] for d in (data, claim.load(folder, seed=0), claim.load(folder, seed=1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_methods_start_alike_see_the_same_batches_and_differ_in_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "SIZES", {"train": 200, "validation": 100, "test": 1000})
    data = claim.load(folder, seed=0)
    plain = claim.train(data, claim.Mean(), 0, 1)
    assert claim.train(data, claim.Mean(), 0, 1, rho=0.0) == plain
    split, naive = (claim.train(data, claim.Mean(), 0, 1, rho=0.05, split=split) for split in (True, False))
    assert split["sharpness"] == pytest.approx(naive["sharpness"], rel=1e-3)  # the mean is linear
    assert split["test"] == pytest.approx(naive["test"], abs=0.2)
    assert split["sharpness"] != pytest.approx(plain["sharpness"], rel=1e-2)


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "EPOCHS", 1)
    monkeypatch.setattr(claim, "SIZES", {"train": 128, "validation": 100, "test": 200})
    measured = claim.measure(0, folder)
    assert all(value == value and abs(value) < 1e3 for value in measured.values())
    for side in ("with", "without"):
        each = [measured[f"{rule} {side} test"] for rule in claim.RULES]
        assert measured[f"{side} test"] == pytest.approx(sum(each) / 3)
    for rule in claim.RULES:
        # What is compared is what validation chose, whatever the test says.
        best = max(("short", "long"), key=lambda name: measured[f"{rule} {name} validation"])
        assert measured[f"{rule} without test"] == measured[f"{rule} {best} test"]
    for one in PAPER.claims:
        assert set(one.pair) <= set(measured)
    figure = claim.plot({0: measured, 1: measured})
    assert len(figure.axes) == 3


def test_usable_on_other_tasks_by_name() -> None:
    data = pt.multidigits(tasks=("left", "ink"), size=100)
    torch.manual_seed(0)
    model = pt.Model(data.encoder(), data.tasks)
    pt.fit(model, data.train, steps=4, balance=FlatRegions("upgrad", adaptive=True))
    assert set(sharpness(model.eval(), data.test[:50])) == {"left", "ink"}
