"""Early exits: the same as all exits looked at together, without the work behind the exit; and budgets kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.route import EarlyExit, calibrate, confidence


class Counted(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows = module, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.module(x)


def chain(kind: str = "probability") -> EarlyExit:
    torch.manual_seed(0)
    blocks = [Counted(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())) for _ in range(4)]
    heads = {depth: nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5)) for depth in (1, 3, 4)}
    return EarlyExit(blocks, heads, kind).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["probability", "entropy", "margin"])
def test_examples_leave_where_all_exits_say_so(kind: str) -> None:
    model, x = chain(kind), torch.randn(20, 3, 6, 6)
    every = model(x)
    sure = [confidence(logits, kind) for logits in every]  # type: ignore[arg-type]
    model.thresholds.copy_(torch.stack([sure[0].median(), sure[1].median()]))
    expected = [next((k for k in range(2) if sure[k][i] >= model.thresholds[k]), 2) for i in range(20)]
    for block in model.blocks:
        block.rows.clear()  # type: ignore[operator, union-attr]
    found = model.run(x)
    assert found.exits.tolist() == expected and set(expected) == {0, 1, 2}
    torch.testing.assert_close(found.outputs, torch.stack([every[k][i] for i, k in enumerate(expected)]))
    later = sum(k > 0 for k in expected)
    assert [block.rows for block in model.blocks] == [[20], [later], [later], [sum(k == 2 for k in expected)]]


def test_nothing_runs_behind_the_last_that_left_and_nothing_leaves_at_1() -> None:
    model, x = chain(), torch.randn(4, 3, 6, 6)
    assert model.run(x).exits.tolist() == [2] * 4
    torch.testing.assert_close(model.run(x).outputs, model(x)[-1])
    model.thresholds.zero_()
    model.blocks[1].rows.clear()  # type: ignore[operator, union-attr]
    assert model.run(x).exits.tolist() == [0] * 4 and model.blocks[1].rows == []
    assert model.run(x[:0]).outputs.shape == (0, 5)
    with pytest.raises(InputError, match=r"expected model\.eval"):
        model.train().run(x)


def test_all_exits_train_the_first_block() -> None:
    model = chain().train()
    x = torch.randn(4, 3, 6, 6)
    for k in range(3):
        weight = model.blocks[0].module[0].weight  # type: ignore[union-attr, index]
        (gradient,) = torch.autograd.grad(model(x)[k].square().sum(), [weight])
        assert gradient.any()


def test_confidences_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0], [math.log(2), math.log(1), -100.0, -100.0]])
    torch.testing.assert_close(confidence(logits), torch.tensor([0.25, 1.0, 2 / 3]))
    torch.testing.assert_close(confidence(logits, "margin"), torch.tensor([0.0, 1.0, 1 / 3]))
    entropy = math.log(3) - 2 / 3 * math.log(2)
    torch.testing.assert_close(confidence(logits, "entropy"), torch.tensor([0.0, 1.0, 1 - entropy / math.log(4)]))


@given(st.integers(0, 1000), st.floats(1.0, 9.0))
def test_a_budget_is_kept_on_what_it_was_calibrated_on(seed: int, budget: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(50, 3, generator=generator).round(decimals=1) for _ in range(3)]  # ties too
    costs = [1.0, 4.0, 9.0]
    thresholds = calibrate(logits, costs, budget)
    sure = [confidence(one) for one in logits]
    exits = [next((k for k in range(2) if sure[k][i] >= thresholds[k]), 2) for i in range(50)]
    spent = sum(costs[k] for k in exits) / 50
    assert spent <= budget + 1e-9
    if budget > 8.9999:
        assert spent > 8.5


def test_more_budget_is_used_and_least_budgets_are_named() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(2000, 4) for _ in range(3)]
    spent = []
    for budget in (1.0, 2.0, 4.0, 6.0, 9.0):
        thresholds, costs = calibrate(logits, [1.0, 4.0, 9.0], budget, "margin"), torch.tensor([1.0, 4.0, 9.0])
        leave = [confidence(logits[k], "margin") >= thresholds[k] for k in range(2)]
        exits = torch.where(leave[0], 0, torch.where(leave[1], 1, 2))
        spent.append(float(costs[exits].mean()))
        assert budget - 0.02 < spent[-1] <= budget
    assert spent == sorted(spent)
    with pytest.raises(InputError, match=r"budget 0.5, expected at least 1.0, what the first exit costs"):
        calibrate(logits, [1.0, 4.0, 9.0], 0.5)
    for costs in ([1.0, 2.0], [1.0, 1.0, 2.0]):  # type: ignore[assignment]
        with pytest.raises(InputError, match="expected one for each, rising"):
            calibrate(logits, costs, 5.0)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    for heads in ({}, {1: nn.Identity()}, {0: nn.Identity(), 2: nn.Identity()}, {2: nn.Identity(), 3: nn.Identity()}):
        with pytest.raises(InputError, match="one behind the last"):
            EarlyExit([nn.Identity(), nn.Identity()], heads)
    with pytest.raises(InputError, match="did you mean 'margin'"):
        EarlyExit([nn.Identity()], {1: nn.Identity()}, "margins")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected \(examples, classes\)"):
        confidence(torch.randn(3, 4, 5))
