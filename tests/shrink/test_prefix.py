"""The prefix: what it gives back, and when it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.shrink.networks import built
from torch import Tensor, nn

import polytask as pt
from polytask.shrink.prefix import Prefix


class Counted(nn.Module):
    """Counts its calls; works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.layer(x)
        return out.relu_()


def networks() -> list[nn.Sequential]:
    torch.manual_seed(0)
    first = nn.Sequential(Counted(), nn.Sequential(Counted(), Counted()), Counted(), nn.ReLU(inplace=True), Counted())
    second = copy.deepcopy(first)
    nn.init.normal_(second[3].layer.weight) if isinstance(second[3], Counted) else None
    return [first, second, copy.deepcopy(first)]


@pytest.mark.parametrize(("changed", "skipped"), [("2", 3), ("1.1", 2), ("0", 0), ("4", 4)])
def test_modules_before_the_change_run_once(changed: str, skipped: int) -> None:
    batches = [torch.randn(4, 3), torch.randn(2, 3)]
    expected = [[network(x) for x in batches] for network in networks()]
    prefix, runs = Prefix([f"{changed}.layer"], 10**6), networks()
    for number, network in enumerate(runs):
        with torch.no_grad(), prefix.applied(network):
            found = [network(x) for x in batches]
        assert all(torch.equal(a, b) for a, b in zip(found, expected[number], strict=True))
        calls = [module.calls for module in network.modules() if isinstance(module, Counted)]
        assert sum(calls) == 2 * (5 - (skipped if number else 0))
        assert not any("forward" in module.__dict__ for module in network.modules())


def test_without_room_everything_runs() -> None:
    first, second, _ = networks()
    prefix = Prefix(["2.layer"], 3 * 4 * 2)  # one output of the second batch
    for network in (first, second):
        with torch.no_grad(), prefix.applied(network):
            network(torch.ones(4, 3)), network(torch.ones(2, 3))
    assert [second[0].calls, second[1][0].calls, second[1][1].calls] == [1, 2, 2]


def test_a_model_of_several_tasks_and_residual_sums() -> None:
    data = pt.multidigits(tasks=("left", "ink"), size=8)
    model = pt.Model(data.encoder(), data.tasks).eval()
    batch = data.train[:8]
    expected = model.losses(batch)
    prefix = Prefix(["encoder.layers.4"], 10**8)
    for _ in range(2):
        with prefix.applied(model):
            found = model.losses(batch)
        assert all(torch.equal(found[task], expected[task]) for task in expected)
    network, x, _ = built("residual")
    prefix = Prefix(["b"], 10**6)
    for _ in range(2):
        with prefix.applied(network):
            assert torch.equal(network(x), network.eval()(x))
