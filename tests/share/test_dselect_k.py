"""DSelect-k: the gate's closed forms, its penalties, and what it comes to when it is trained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.model import Model
from polytask.share import DSelectK, penalties
from polytask.share.dselect_k import DSelectKPathway, SelectorGate, selectors
from polytask.task import Task
from polytask.testing import check_sharing

SETTINGS = [DSelectK(4, k=4), DSelectK(5, k=2, entropy=0.1), DSelectK(3, k=1, per_example=True), DSelectK(1, k=1)]


def codes(experts: int) -> Tensor:
    bits = math.ceil(math.log2(experts))
    return torch.tensor([[e // 2**b % 2 for b in range(bits)] for e in range(experts)]).reshape(experts, bits).bool()


def smooth_step(z: float, gamma: float) -> float:
    if abs(z) >= gamma / 2:
        return float(z > 0)
    return -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5


def gate(pathway: DSelectKPathway, task: str) -> SelectorGate:
    found = pathway.gates[task]
    assert isinstance(found, SelectorGate)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.floats(0.1, 3), st.booleans())
def test_it_is_the_loop_over_selectors_and_experts(experts: int, k: int, gamma: float, per_example: bool) -> None:
    torch.manual_seed(0)
    k = min(k, experts)
    pathway = DSelectK(experts, k, gamma, per_example=per_example, hidden=2).build(3, ("a", "b")).double()
    assert isinstance(pathway, DSelectKPathway)
    for parameter in pathway.gates.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    bits = math.ceil(math.log2(experts))
    for task, output in pathway(x, ("b", "a")).items():
        for n, row in enumerate(x):
            scores = gate(pathway, task).scores
            if per_example:
                scores = scores + gate(pathway, task).reading @ row
            scores = scores.detach()
            weights = [0.0] * experts
            total = sum(math.exp(scores[s, bits]) for s in range(k))
            for s in range(k):
                for e in range(experts):
                    share = math.exp(scores[s, bits]) / total
                    for b in range(bits):
                        step = smooth_step(float(scores[s, b]), gamma)
                        share *= step if e >> b & 1 else 1 - step
                    weights[e] += share
            expected = sum(w * value for w, value in zip(weights, pathway.experts(x)[:, n], strict=True))
            torch.testing.assert_close(output[n], expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.floats(0.1, 5))
def test_a_selector_of_a_power_of_two_is_a_distribution(bits: int, gamma: float) -> None:
    shares = selectors(torch.randn(7, bits, dtype=torch.float64), codes(2**bits), gamma)
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(1), torch.ones(7, dtype=torch.float64))


def test_beyond_the_smooth_step_a_selector_is_one_expert_and_rests() -> None:
    signs = codes(8).double() * 2 - 1
    z = (0.5 * signs).requires_grad_()
    shares = selectors(z, codes(8), gamma=1.0)
    torch.testing.assert_close(shares, torch.eye(8, dtype=torch.float64), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((shares * torch.randn(8, 8)).sum(), z)
    assert not bool(gradient.any())


def test_the_gate_is_differentiable() -> None:
    z = torch.tensor([[0.2, -0.1], [0.4, 0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: selectors(z, codes(3), 1.0), z)


@pytest.mark.parametrize("sharing", SETTINGS)
def test_other_settings_keep_the_contract(sharing: DSelectK) -> None:
    check_sharing(lambda: sharing)


def test_selectors_of_all_experts_make_any_mixture() -> None:
    pathway = DSelectK(4, k=4).build(3, ("a",))
    assert isinstance(pathway, DSelectKPathway)
    mixture = torch.randn(4)
    with torch.no_grad():
        gate(pathway, "a").scores.copy_(torch.cat([codes(4).float() * 2 - 1, mixture[:, None]], 1))
    x = torch.randn(5, 3)
    expected = torch.einsum("e,enw->nw", mixture.softmax(0), pathway.experts(x))
    torch.testing.assert_close(pathway(x, ("a",))["a"], expected)


def test_at_the_middle_the_penalties_have_closed_forms() -> None:
    for experts, mass in ((8, 1.0), (5, 5 / 8)):
        pathway = DSelectK(experts, k=2, entropy=0.3).build(3, ("a", "b"))
        assert isinstance(pathway, DSelectKPathway)
        nn.init.zeros_(gate(pathway, "a").scores)
        with penalties(pathway) as found:
            pathway(torch.randn(4, 3), ("a",))
        entropy = 2 * mass * math.log(8)
        assert float(torch.stack(found).detach().sum()) == pytest.approx(0.3 * entropy + 2 * (1 / mass - 1), rel=1e-5)


def test_penalties_of_examples_are_a_mean() -> None:
    pathway = DSelectK(5, k=2, entropy=0.3, per_example=True).build(3, ("a",))
    x, values = torch.randn(4, 3), []
    for rows in (x, *x.split(1)):
        with penalties(pathway) as found:
            pathway(rows, ("a",))
        values.append(float(torch.stack(found).detach().sum()))
    assert values[0] == pytest.approx(sum(values[1:]) / 4)


def test_the_loss_has_the_penalties_in_training_alone() -> None:
    torch.manual_seed(0)
    tasks = [Task.regression("a"), Task.regression("b")]
    model = Model(nn.Identity(), tasks, DSelectK(3, entropy=1.0), width=4)
    assert isinstance(model.pathway, DSelectKPathway)
    batch = torch.randn(6, 4), {"a": torch.randn(6), "b": torch.randn(6)}
    trained, plain = model.losses(batch), model.eval().losses(batch)
    with penalties(model.train()) as found:
        model(batch[0])
    for task in ("a", "b"):
        torch.testing.assert_close(trained[task] - plain[task], sum(found) / 2)
    sum(trained.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.pathway.gates.parameters())


def test_entropy_brings_selectors_to_single_experts_that_exist() -> None:
    torch.manual_seed(0)
    alone = SelectorGate(2, DSelectK(5, k=3, entropy=0.05))
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.3)
    for _ in range(250):
        with penalties(alone) as found:
            alone(torch.zeros(1, 2))
        optimizer.zero_grad()
        sum(found).backward()  # type: ignore[union-attr]
        optimizer.step()
    torch.testing.assert_close(selectors(alone.scores[:, :3], codes(5), 1.0).max(1).values, torch.ones(3))
    weights = alone(torch.zeros(1, 2))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert 1 <= int((weights > 1e-6).sum()) <= 3


def test_gates_begin_undecided() -> None:
    torch.manual_seed(0)
    pathway = DSelectK(8, k=8, gamma=2.0, per_example=True).build(50, ("a",))
    assert isinstance(pathway, DSelectKPathway)
    for parameter in (gate(pathway, "a").scores, gate(pathway, "a").reading):
        z, w = parameter.detach()[:, :3], parameter.detach()[:, 3]
        assert float(z.abs().max()) <= 0.02 and float(w.abs().max()) <= 0.05
    assert float(gate(pathway, "a").reading.detach()[:, :3].abs().max()) == pytest.approx(0.02, rel=0.02)


def test_it_has_the_sizes_that_it_was_given() -> None:
    expert = 4 * 5 + 5 + 5 * 4 + 4
    for per_example, reads in ((False, 1), (True, 1 + 4)):
        pathway = DSelectK(6, k=2, per_example=per_example, hidden=5).build(4, ("a", "b"))
        assert sum(p.numel() for p in pathway.shared_parameters()) == 6 * expert
        assert sum(p.numel() for p in pathway.parameters_of("a")) == 2 * (3 + 1) * reads
        assert all("codes" not in name for name in pathway.state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experts": 0}, "dselect_k: 0 experts, expected at least 1"),
        ({"k": 9}, "dselect_k: k 9, expected from 1 to 8, the number of experts"),
        ({"gamma": 0.0}, "dselect_k: gamma 0.0, expected > 0"),
        ({"entropy": -1.0}, "dselect_k: entropy -1.0, expected >= 0"),
    ],
)
def test_settings_that_make_no_gate_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DSelectK(**wrong)  # type: ignore[arg-type]
