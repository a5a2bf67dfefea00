"""Mixed precision with everything that takes gradients of losses by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import polytask as pt
from polytask.balance import balancers
from polytask.errors import InputError
from polytask.training import fabric, fit

MIXED = "bf16-mixed"


def examples(seed: int = 0) -> pt.Examples:
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
    return pt.Examples(inputs, {"sign": (inputs[:, 0] > 0).float(), "sum": inputs[:, :3].sum(1)})


def network() -> pt.Model:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU())
    return pt.Model(encoder, [pt.Task.binary("sign"), pt.Task.regression("sum")], width=16)


def weights(model: pt.Model) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", list(balancers))
def test_every_balancer_learns_in_mixed_precision_what_it_learns_in_full(name: str) -> None:
    start = weights(network())
    moved = []
    for precision in ("32-true", MIXED):
        model = network()
        data: pt.Examples = examples()
        settings = {"steps": 3, "batch_size": 32, "lr": 1e-3, "optimizer": torch.optim.SGD, "balance": name}
        fit(model, data, fabric=fabric(accelerator="cpu", precision=precision), **settings)  # type: ignore[arg-type]
        moved.append(weights(model) - start)
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


def test_conflicts_are_recorded_in_mixed_precision() -> None:
    mixed = fabric(accelerator="cpu", precision=MIXED)
    fitted = fit(network(), examples(), examples(1), steps=2, batch_size=32, conflicts=True, fabric=mixed)
    full = fit(network(), examples(), examples(1), steps=2, batch_size=32, conflicts=True)
    cosines = [torch.tensor(run.history[-1]["conflicts"]["cosines"]) for run in (fitted, full)]
    assert torch.allclose(*cosines, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed needs a GPU")
def test_scaled_losses_have_no_gradients_to_compare() -> None:
    for settings in ({"balance": "upgrad"}, {"conflicts": True}):
        with pytest.raises(InputError, match=r"16-mixed scales losses .*: use bf16-mixed, or a loss weighting"):
            fit(network(), examples(), steps=1, fabric=fabric(precision="16-mixed"), **settings)  # type: ignore[arg-type]
