"""Early exits: the same as all exits looked at together, without the work behind the exit; and budgets kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.route import EarlyExit, calibrate, confidence, efficacy, exit_costs


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


def ruled(answer: str, agree: int, kind: str = "probability") -> EarlyExit:
    torch.manual_seed(1)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(5)]
    heads, common = {depth: nn.Linear(6, 3) for depth in (1, 2, 4, 5)}, 2 * torch.randn(3, 6)
    with torch.no_grad():
        for block in blocks:
            block[0].weight.mul_(0.3).add_(torch.eye(6))
        for head in heads.values():
            head.weight.add_(common)
    return EarlyExit(blocks, heads, kind, answer, agree).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["last", "surest"])
@pytest.mark.parametrize("agree", [1, 2, 3])
def test_every_rule_by_hand_by_run_and_by_the_logits_of_all_exits(answer: str, agree: int) -> None:
    network, x = ruled(answer, agree), torch.randn(200, 6)
    network.thresholds.copy_(torch.tensor([0.95, 0.8, 0.9]))
    network.temperatures.copy_(torch.tensor([1.5, 0.5, 1.0, 0.8]))
    with torch.no_grad():
        every = network(x)
    expected_exits, expected = [], []
    for i in range(200):
        sure = [float((every[k][i] / network.temperatures[k]).softmax(0).max()) for k in range(4)]
        said = [int(every[k][i].argmax()) for k in range(4)]
        fires = [
            k for k in range(3)
            if sure[k] >= network.thresholds[k] and k + 1 >= agree and len(set(said[k + 1 - agree : k + 1])) == 1
        ]  # fmt: skip
        expected_exits.append(fires[0] if fires else 3)
        expected.append(every[fires[0] if fires else sure.index(max(sure)) if answer == "surest" else 3][i])
    for found in (network.run(x), network.decide(every)):
        assert found.exits.tolist() == expected_exits and len(set(expected_exits)) >= (3 if agree == 1 else 2)
        torch.testing.assert_close(found.outputs, torch.stack(expected))


def test_above_1_nothing_leaves_and_the_last_answer_is_that_of_the_whole_network() -> None:
    x = torch.randn(50, 6)
    for answer in ("last", "surest"):
        network = ruled(answer, 1)
        network.thresholds.fill_(1.01)
        every, found = network(x), network.run(x)
        assert (found.exits == 3).all()
        if answer == "last":
            static = EarlyExit(list(network.blocks), {5: network.heads[-1]}).eval()
            assert torch.equal(found.outputs, static.run(x).outputs) and torch.equal(found.outputs, static(x)[0])
        else:
            chances = torch.stack(every).softmax(-1).amax(-1)
            torch.testing.assert_close(found.outputs.softmax(1).amax(1), chances.amax(0))
            assert (chances.argmax(0) != 3).any()


def test_at_0_all_leave_at_the_first_exit_for_its_share_of_the_work() -> None:
    network, x = ruled("surest", 1), torch.randn(9, 6)
    network.thresholds.zero_()
    costs = exit_costs(network, x)
    assert costs == [36 + 18, 72 + 36, 144 + 54, 180 + 72]
    exits = network.run(x).exits
    assert not exits.any() and efficacy(exits, costs) == pytest.approx(1 - costs[0] / costs[-1])
    assert efficacy(torch.full((9,), 3), costs) == 0.0
    network.agree = 2  # the thresholds of 0 leave patience alone
    assert (network.run(x).exits >= 1).all()


def test_the_area_under_the_curve_is_the_mean_work_saved() -> None:
    exits, costs = torch.randint(3, (400,)), [2.0, 3.0, 8.0]
    area = sum((costs[k + 1] - costs[k]) / costs[-1] * float((exits <= k).double().mean()) for k in range(2))
    assert efficacy(exits, costs) == pytest.approx(area)


def test_a_block_that_is_used_twice_costs_twice() -> None:
    block = nn.Linear(4, 4)
    assert exit_costs(EarlyExit([block, block], {1: nn.Linear(4, 2), 2: nn.Linear(4, 2)}), torch.empty(3, 4)) == [24, 48]


def test_gradients_flow_through_what_was_computed_and_nothing_else() -> None:
    network, x = ruled("last", 1), torch.randn(8, 6, requires_grad=True)
    network.thresholds.zero_()
    assert not network.run(x).outputs.requires_grad
    outputs = network.run(x, gradients=True).outputs
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), [x])[0] for y in (outputs, network(x)[0])))
    used = torch.autograd.grad(network.run(x, gradients=True).outputs.sum(), list(network.parameters()), allow_unused=True)
    names = [name for (name, _), slope in zip(network.named_parameters(), used, strict=True) if slope is not None]
    assert names == ["blocks.0.0.weight", "blocks.0.0.bias", "heads.0.weight", "heads.0.bias"]
    network.thresholds.fill_(0.95)
    some = torch.autograd.grad(network.run(x, gradients=True).outputs.square().sum(), [x])[0]
    whole = torch.autograd.grad(network.decide(network(x)).outputs.square().sum(), [x])[0]
    torch.testing.assert_close(some, whole)


def test_rules_that_cannot_be_are_refused() -> None:
    for answer, agree in (("first", 1), ("last", 0)):
        with pytest.raises(InputError, match="expected 'last' or 'surest', and 1 or more"):
            ruled(answer, agree)
    with pytest.raises(InputError, match="logits of 2 exits, expected 4"):
        ruled("last", 1).decide([torch.zeros(1, 3)] * 2)
