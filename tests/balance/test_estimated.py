"""Cheaper Gramians: what each estimate is, and how far off it may be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from polytask.balance import MGDA, Equal, Estimated, GramianWeighting, TaskGradients, UPGrad
from polytask.errors import InputError
from polytask.testing import check_balancer


class Remember(GramianWeighting):
    """Keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def weigh(self, gramian: Tensor, losses: dict[str, float]) -> Tensor:
        self.seen.append(gramian)
        return torch.linspace(1, 2, len(gramian), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(24, 30), nn.LayerNorm(30), nn.Linear(30, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.inputs = torch.randint(0, 9, (10, 3))

    def losses(self) -> dict[str, Tensor]:
        self.features = torch.tanh(self.shared(self.inputs))
        return {f"t{i}": (head(self.features) - i).square().mean() for i, head in enumerate(self.heads)}

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.parameters()]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.mark.parametrize("by", ["representation", "sketch", "local"])
@pytest.mark.parametrize("every", [1, 3])
def test_every_estimate_keeps_the_contract(by: str, every: int) -> None:
    check_balancer(lambda: Estimated(UPGrad(), by, every=every, momentum=0.5 if every == 3 else 0.0, sketch=20_000))


def test_the_representation_is_what_the_tasks_last_share(net: Net) -> None:
    remember = Remember()
    balancer = Estimated(remember, "representation")
    balancer.prepare(["t0", "t1", "t2"])
    balancer.backward(net.losses(), list(net.shared.parameters()), Tensor.backward)
    losses = net.losses()
    rows = torch.stack([torch.autograd.grad(loss, net.features, retain_graph=True)[0].flatten() for loss in losses.values()])
    torch.testing.assert_close(remember.seen[0], rows @ rows.T)
    got = net.gradients()
    net.zero_grad()
    weighted = sum(w * loss for w, loss in zip([1, 1.5, 2], net.losses().values(), strict=True))
    grads = torch.autograd.grad(weighted, list(net.shared.parameters()))
    torch.testing.assert_close(got[: len(grads)], list(grads))
    sum(net.losses().values()).backward()
    torch.testing.assert_close(got[len(grads) :], net.gradients()[len(grads) :])


def test_a_representation_is_missing_when_tasks_have_batches_of_their_own(net: Net) -> None:
    losses = {"a": net.losses()["t0"], "b": net.losses()["t1"]}
    balancer = Estimated(MGDA(), "representation")
    balancer.prepare(["a", "b"])
    with pytest.raises(InputError, match="no representation in common"):
        balancer.backward(losses, list(net.shared.parameters()), Tensor.backward)


def test_a_sketch_is_right_in_the_mean_and_within_its_bound(net: Net) -> None:
    shared, size, draws = list(net.shared.parameters()), 64, 200
    exact = TaskGradients(shared)
    exact.add(net.losses())
    true = exact.gramian()
    norms = true.diagonal().sqrt()
    errors = []
    for _ in range(draws):
        gradients = TaskGradients(shared, by="sketch", sketch=size)
        gradients.add(net.losses())
        errors.append((gradients.gramian() - true) / norms[:, None] / norms)
    errors = torch.stack(errors)
    bound = 3 / size**0.5
    assert float(errors.std(0).max()) < bound
    assert float(errors.mean(0).abs().max()) < 4 * bound / draws**0.5
    assert float(errors.std(0).min()) > bound / 30  # it is random, and not exact by another way


def test_between_estimates_the_last_weights_hold(net: Net) -> None:
    remember = Remember()
    balancer = Estimated(remember, every=3)
    balancer.prepare(["t0", "t1", "t2"])
    steps = []
    for _ in range(4):
        net.zero_grad()
        balancer.backward(net.losses(), list(net.shared.parameters()), Tensor.backward)
        steps.append(net.gradients())
    assert len(remember.seen) == 2
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0])


def test_a_running_estimate_is_the_exponential_mean(net: Net) -> None:
    remember = Remember()
    balancer = Estimated(remember, momentum=0.75)
    balancer.prepare(["t0", "t1", "t2"])
    shared, true = list(net.shared.parameters()), []
    for _ in range(3):
        gradients = TaskGradients(shared)
        gradients.add(net.losses())
        true.append(gradients.gramian())
        balancer.backward(net.losses(), shared, Tensor.backward)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1)
    expected = true[0]
    for i in (0, 1, 2):
        expected = 0.75 * expected + 0.25 * true[i]
        torch.testing.assert_close(remember.seen[i], expected)


def test_state_survives(net: Net) -> None:
    one = Estimated(UPGrad(), every=2, momentum=0.5)
    one.prepare(["t0", "t1", "t2"])
    one.backward(net.losses(), list(net.shared.parameters()), Tensor.backward)
    other = Estimated(UPGrad(), every=2, momentum=0.5)
    other.prepare(["t0", "t1", "t2"])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    results = []
    for balancer in (one, other):
        net.zero_grad()
        balancer.backward(net.losses(), list(net.shared.parameters()), Tensor.backward)
        results.append(net.gradients())
    torch.testing.assert_close(*results)


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="Equal is no Gramian weighting"):
        Estimated(Equal())
    with pytest.raises(InputError, match="by is 'rough', expected one of 'exact'"):
        Estimated(MGDA(), "rough")
    with pytest.raises(InputError, match="every 0"):
        Estimated(MGDA(), every=0)
    with pytest.raises(InputError, match="numbers for each task"):
        Estimated(MGDA(), every=2).prepare([])
