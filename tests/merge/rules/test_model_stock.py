from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, assert_same, deltas, make_models, merge

from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average
from polytask.merge.rules.model_stock import ModelStock, ratio


@pytest.mark.parametrize("count", [2, 3, 5])
def test_between_base_and_average(count: int) -> None:
    shapes = {"a": (7, 33), "b": (), "c": (41, 211), "d": (0,)}
    base, models = make_models(count=count, shapes=shapes)
    models = [{n: m[n] + 0.05 for n in m} for m in models]  # so that task vectors agree somewhat
    expected = {}
    for name, tau in deltas(base, models).items():
        rows = tau.reshape(count, -1)
        units = rows / rows.norm(dim=1, keepdim=True)
        cosine = max(sum(float(units[i] @ units[j]) for i in range(count) for j in range(i)) * 2 / count / (count - 1), 0)
        t = count * cosine / (1 + (count - 1) * cosine)
        expected[name] = base[name] + t * tau.mean(0)
    for chunk in (4096, 2**16):
        assert_close(merge(ModelStock(), models, base, chunk), expected)


@pytest.mark.parametrize(
    ("count", "cosine", "expected"), [(2, 0.5, 2 / 3), (3, 0.5, 0.75), (4, 1.0, 1), (4, 0.0, 0), (2, -0.5, 0)]
)
def test_ratio(count: int, cosine: float, expected: float) -> None:
    products = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1)
    assert ratio(products) == pytest.approx(expected)
    sizes = torch.arange(1, count + 1).double()
    assert ratio(products * sizes[:, None] * sizes) == pytest.approx(expected)  # lengths do not matter


def test_ends() -> None:
    base, models = make_models(count=1)
    assert_close(merge_state_dicts(ModelStock(), models * 3, base), models[0])
    zeros = {"w": torch.zeros(2)}
    apart = [{"w": torch.tensor([1.0, 0])}, {"w": torch.tensor([0, 1.0])}]
    assert_same(merge_state_dicts(ModelStock(), apart, zeros), zeros)
    assert_close(merge_state_dicts(ModelStock(), [models[0]] * 2, base), merge_state_dicts(Average(), [models[0]] * 2))
