from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, assert_same, deltas, make_models, merge, quantised

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules._random import keep
from polytask.merge.rules.dare import DARE
from polytask.merge.rules.della import DELLA, probabilities
from polytask.merge.rules.task_arithmetic import TaskArithmetic


def test_the_larger_the_likelier() -> None:
    rows = torch.tensor([[0.1, -5, 0, 2, -0.3], [1, 1, 1, 1, 1]])
    found = probabilities(rows, 0.5, 0.2)
    assert found[0].tolist() == pytest.approx([0.4, 0.7, 0.3, 0.6, 0.5])
    assert found[1].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert found.mean(1).tolist() == pytest.approx([0.5, 0.5])
    assert probabilities(torch.ones(3, 1), 0.4, 0.2).flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("rescale", ["probability", "none"])
def test_della(make: object, elect: bool, rescale: str) -> None:
    base, models = make()  # type: ignore[operator]
    density, epsilon, weights = 0.4, 0.3, [1, 2, 0.5]
    expected = {}
    for name, tau in deltas(base, models).items():
        shape, kept = base[name].shape, []
        width = shape[-1] if shape else 1
        for k, each in enumerate(tau):
            chances = torch.zeros(each.numel(), dtype=torch.float64)
            values = each.flatten().tolist()
            for start in range(0, len(values), max(width, 1)):
                order = sorted(range(width), key=lambda p: (abs(values[start + p]), p))
                for rank, p in enumerate(order):
                    share = rank / (width - 1) if width > 1 else 0.5
                    chances[start + p] = density - epsilon + 2 * epsilon * share
            mask = keep(chances, len(values), 5, name, k, 0)
            kept.append(each.flatten() * mask / (chances if rescale == "probability" else 1))
        rows, w = torch.stack(kept), torch.tensor(weights).double()[:, None]
        total = (w * rows).sum(0)
        if elect:
            agree = rows * torch.where(total >= 0, 1.0, -1.0) > 0
            total = (w * rows * agree).sum(0) / (w * agree).sum(0).where(agree.any(0), torch.ones(()).double())
        expected[name] = base[name] + 0.9 * total.view(shape)
    rule = DELLA(density, epsilon, 0.9, weights, elect, rescale, 5)  # type: ignore[arg-type]
    for chunk in (4096, 2**16):
        assert_close(merge(rule, models, base, chunk), expected, atol=1e-5)


def test_the_mean_is_task_arithmetic() -> None:
    base, models = make_models(count=2, shapes={"w": (6, 5)})
    seeds = 3000
    rule = DELLA(0.3, 0.2, elect=False)
    draws = torch.stack([merge_state_dicts(rule.but(seed=s), models, base)["w"].double() for s in range(seeds)])
    expected = merge_state_dicts(TaskArithmetic(1), models, base)["w"].double()
    error = draws.std(0) / seeds**0.5
    assert float(((draws.mean(0) - expected) / error).abs().max()) < 3.9


def test_special_cases() -> None:
    base, models = make_models()
    # Without a range it is DARE, draw for draw.
    for elect in (False, True):
        same = merge_state_dicts(DARE(0.3, elect=elect, seed=2), models, base)
        assert_close(merge_state_dicts(DELLA(0.3, 0, elect=elect, seed=2), models, base), same, atol=1e-5)
    assert_same(merge_state_dicts(DELLA(0), models, base), base)
    plain = merge_state_dicts(TaskArithmetic(0.3), models, base)
    assert_close(merge_state_dicts(DELLA(1, scale=0.3, elect=False), models, base), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 1.1},
        {"density": 0.1, "epsilon": 0.15},
        {"density": [0.5, 0.9]},
        {"epsilon": [0.1, 0.6]},
        {"seed": -1},
        {"rescale": "norm"},
    ],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        DELLA(**settings)  # type: ignore[arg-type]
