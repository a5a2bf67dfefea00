"""torchjd's objects as balancers give what torchjd gives."""

from __future__ import annotations

import pytest
import torch
from tests.balance.test_task_gradients import _heads, _of, explicit, written
from torch import nn

import polytask as pt
from polytask.balance import TorchJD
from polytask.errors import InputError

torchjd = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")

METHODS = ["UPGrad", "MGDA", "GradDrop", "ConFIG", "NashMTL", "TrimmedMean", "UPGradWeighting", "SumWeighting", "Sum"]


def _made(name: str) -> nn.Module:
    settings = {"NashMTL": {"n_tasks": 3}, "TrimmedMean": {"trim_number": 1}}.get(name, {})
    return getattr(torchjd, name)(**settings)


@pytest.mark.parametrize("name", METHODS)
def test_an_object_of_torchjd_is_used_as_torchjd_would(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU()).double()
    x, heads = torch.randn(8, 6).double(), _heads(9).double()
    losses, shared = _of(net, lambda: net(x), heads)(), list(net.parameters())
    jacobian = explicit(losses, shared)
    torch.manual_seed(1)
    method = _made(name)
    expected = method(jacobian @ jacobian.T if name == "UPGradWeighting" else jacobian).detach()
    if name.endswith("Weighting"):
        expected = expected @ jacobian
    balancer = TorchJD(_made(name))
    balancer.prepare(list(losses))
    torch.manual_seed(1)
    balancer.backward(losses, shared, torch.Tensor.backward)
    torch.testing.assert_close(written(shared), expected, rtol=1e-6, atol=1e-9)
    assert all(p.grad is not None for p in heads.parameters())


def test_fit_takes_an_object_of_torchjd() -> None:
    data = pt.multidigits(tasks=("left", "ink"), size=1200)
    model = pt.Model(data.encoder(), data.tasks)
    assert pt.fit(model, data.train, data.validation, steps=4, balance=torchjd.UPGrad()).steps == 4


def test_another_module_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="balance is a Linear, expected a name, a Balancer, or a torchjd aggregator"):
        TorchJD(nn.Linear(1, 1))
