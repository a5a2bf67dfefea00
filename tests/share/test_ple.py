"""PLE: the loop over its levels, what is whose, and what runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import InputError
from polytask.share import PLE
from polytask.share._experts import Experts
from polytask.testing import check_sharing

TASKS = ("a", "b", "type")


def softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum()


def by_hand(weights: dict[str, Tensor], sizes: PLE, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """What one row ``x`` gives for every task: expert by expert, from the weights' names alone."""

    def name(task: str) -> str:
        return "type_" if task == "type" else task

    def experts(place: str, count: int, x: Tensor) -> list[Tensor]:
        outputs = []
        for e in range(count):
            first = weights[f"{place}.hidden.weight"].unflatten(0, (count, -1))[e]
            hidden = (first @ x + weights[f"{place}.hidden.bias"].unflatten(0, (count, -1))[e]).clamp(min=0)
            outputs.append(
                (hidden @ weights[f"{place}.output.weight"][e] + weights[f"{place}.output.bias"][e, 0]).clamp(min=0)
            )
        return outputs

    def gated(place: str, x: Tensor, outputs: list[Tensor]) -> Tensor:
        gate = softmax(weights[f"{place}.weight"] @ x + weights[f"{place}.bias"])
        assert len(gate) == len(outputs)
        return torch.stack([g * output for g, output in zip(gate, outputs, strict=True)]).sum(0)

    common, inputs = x, dict.fromkeys(tasks, x)
    for level in range(sizes.levels):
        at = f"levels.{level}"
        shared = experts(f"{at}.shared", sizes.shared, common)
        own = {t: experts(f"{at}.own.{name(t)}", sizes.own, inputs[t]) if sizes.own else [] for t in tasks}
        inputs = {t: gated(f"{at}.gates.{name(t)}", inputs[t], [*shared, *own[t]]) for t in tasks}
        if level < sizes.levels - 1:
            common = gated(f"{at}.shared_gate", common, [*shared, *(output for t in tasks for output in own[t])])
    return inputs


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_it_is_the_loop_over_levels_and_experts(shared: int, own: int, levels: int, hidden: int, tasks: int) -> None:
    torch.manual_seed(0)
    names, sharing = TASKS[:tasks], PLE(shared, own, levels, hidden)
    pathway = sharing.build(4, names).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = [by_hand(dict(pathway.state_dict()), sharing, row, names) for row in x]
    for asked in (names, names[::-1], names[-1:], names[1:]):
        outputs = pathway(x, asked)
        assert tuple(outputs) == asked
        for task, output in outputs.items():
            torch.testing.assert_close(output, torch.stack([row[task] for row in expected]))


@pytest.mark.parametrize("sharing", [PLE(2, 0, 2), PLE(1, 2, 3), PLE(2, 1, 1, hidden=3)])
def test_other_settings_keep_the_contract(sharing: PLE) -> None:
    check_sharing(lambda: sharing)


def test_gates_of_two_levels_and_experts_of_one_are_a_tasks_own() -> None:
    pathway = PLE(levels=3).build(4, ("a", "b"))
    names = {id(parameter): name for name, parameter in pathway.named_parameters()}
    own = {names[id(parameter)].rsplit(".", 1)[0] for parameter in pathway.parameters_of("a")}
    assert own == {"levels.1.gates.a", "levels.2.gates.a", "levels.2.own.a.hidden", "levels.2.own.a.output"}
    shared = {names[id(parameter)] for parameter in pathway.shared_parameters()}
    assert "levels.0.gates.a.weight" in shared and "levels.1.own.b.output.bias" in shared


def test_below_the_top_a_task_reaches_the_experts_of_others_and_their_gates_where_these_lead_on() -> None:
    torch.manual_seed(0)
    pathway = PLE(levels=3, hidden=32).build(16, ("a", "b"))
    pathway(torch.rand(64, 16), ("a",))["a"].sum().backward()
    reached = {n.rsplit(".", 1)[0] for n, p in pathway.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"levels.0.own.b.hidden", "levels.1.own.b.hidden", "levels.0.gates.b"} <= reached
    assert not reached & {"levels.1.gates.b", "levels.2.gates.b", "levels.2.own.b.hidden", "levels.2.own.b.output"}


def test_only_what_is_needed_runs() -> None:
    pathway = PLE(levels=2).build(4, ("a", "b", "c"))
    ran: list[str] = []
    for name, module in pathway.named_modules():
        if isinstance(module, (Experts, torch.nn.Linear)) and "hidden" not in name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    pathway(torch.randn(2, 4), ("b",))
    below = ["levels.0.shared", *(f"levels.0.own.{task}" for task in "abc"), "levels.0.gates.b", "levels.0.shared_gate"]
    assert sorted(ran) == sorted([*below, "levels.1.shared", "levels.1.own.b", "levels.1.gates.b"])


def test_it_has_the_sizes_that_it_was_given() -> None:
    pathway = PLE(shared=2, own=3, levels=2, hidden=5).build(4, ("a", "b"))
    expert = 4 * 5 + 5 + 5 * 4 + 4
    gates = 2 * 5 * (4 + 1)
    assert sum(p.numel() for p in pathway.parameters()) == 2 * ((2 + 2 * 3) * expert + gates) + (2 + 2 * 3) * (4 + 1)
    assert PLE().settings() == {"shared": 1, "own": 1, "levels": 2, "hidden": None}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shared": 0}, "ple: shared 0, expected at least 1"),
        ({"own": -1}, "ple: own -1, expected at least 0"),
        ({"levels": 0}, "ple: levels 0, expected at least 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PLE(**wrong)  # type: ignore[arg-type]
