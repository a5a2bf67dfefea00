"""Every registered way of sharing through the shared suite, and closed forms of those that have them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polytask.errors import InputError
from polytask.model import Model
from polytask.share import Hard, MMoE, TaskModules, sharings
from polytask.task import Task
from polytask.testing import TASKS, check_sharing


@pytest.mark.parametrize("name", sharings)
def test_every_way_of_sharing_keeps_the_contract(name: str) -> None:
    check_sharing(sharings[name])
    assert sharings[name]().name == name


@pytest.mark.parametrize("name", sharings)
def test_dense_features_are_routed_pixel_by_pixel(name: str) -> None:
    tasks = [Task.segmentation("type", classes=3), Task.segmentation("right", classes=2)]
    model = Model(nn.Conv2d(3, 6, 3), tasks, sharings[name](), width=6).eval()
    x = torch.randn(2, 3, 7, 5)
    pixels = model.encoder(x).movedim(1, -1).flatten(0, 2)
    for task, output in model(x).items():
        weight, bias = model.heads[task].parameters()
        expected = model.pathway(pixels, (task,))[task] @ weight.flatten(1).T + bias
        torch.testing.assert_close(output.movedim(1, -1).flatten(0, 2), expected)


@pytest.mark.parametrize("name", sharings)
def test_tasks_with_inputs_of_their_own_are_served_one_by_one(name: str) -> None:
    tasks = [Task.regression("type"), Task.regression("right"), Task.regression("ink")]
    model = Model(nn.Linear(3, 6), tasks, sharings[name](), width=6).eval()
    x, targets = torch.randn(3, 7, 3), torch.randn(3, 7)
    batch = {task.name: (x[k], targets[k]) for k, task in enumerate(tasks)}
    for k, (task, loss) in enumerate(model.losses(batch).items()):
        torch.testing.assert_close(loss, model.tasks[task].loss(model(x[k])[task], targets[k]))


@pytest.mark.parametrize("name", sharings)
def test_batches_of_any_size_need_one_compilation_and_evaluation_is_the_same_compiled(name: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    tasks = TASKS[:2]
    pathway = sharings[name]().build(6, tasks)
    compiled = torch.compile(pathway, backend=count, fullgraph=True, dynamic=True)
    for rows in (5, 7):
        compiled(torch.randn(rows, 6), tasks)
    assert len(graphs) <= 1
    pathway.eval()
    x = torch.randn(9, 6)
    torch.testing.assert_close(compiled(x, tasks), pathway(x, tasks))


@pytest.mark.parametrize("sharing", [MMoE(experts=1), MMoE(experts=3, hidden=2), MMoE(experts=2, hidden=11)])
def test_other_settings_keep_the_contract(sharing: MMoE) -> None:
    check_sharing(lambda: sharing)


def test_hard_sharing_hands_on_the_features() -> None:
    features = torch.randn(3, 4)
    outputs = Hard().build(4, ("a", "b"))(features, ("b", "a"))
    assert outputs["a"] is features and outputs["b"] is features and list(outputs) == ["b", "a"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(1, 4))
def test_mmoe_is_the_loop_over_its_experts(experts: int, hidden: int, width: int, rows: int) -> None:
    torch.manual_seed(0)
    pathway = MMoE(experts=experts, hidden=hidden).build(width, ("a", "b")).double()
    x = torch.randn(rows, width, dtype=torch.float64)
    weights = pathway.state_dict()
    first = [weights[f"experts.hidden.{part}"].unflatten(0, (experts, hidden)) for part in ("weight", "bias")]
    for task, output in pathway(x, ("a", "b")).items():
        for n in range(rows):
            scores = weights[f"gates.{task}.weight"] @ x[n] + weights[f"gates.{task}.bias"]
            gate = scores.exp() / scores.exp().sum()
            expected = torch.zeros(width, dtype=torch.float64)
            for e in range(experts):
                inner = (first[0][e] @ x[n] + first[1][e]).clamp(min=0)
                outer = inner @ weights["experts.output.weight"][e] + weights["experts.output.bias"][e, 0]
                expected += gate[e] * outer.clamp(min=0)
            torch.testing.assert_close(output[n], expected)


def test_mmoe_has_the_sizes_that_it_was_given() -> None:
    pathway = MMoE(experts=3, hidden=5).build(4, ("a", "b"))
    expert = 4 * 5 + 5 + 5 * 4 + 4
    gate = 4 * 3 + 3
    assert sum(p.numel() for p in pathway.parameters()) == 3 * expert + 2 * gate
    assert sum(p.numel() for p in pathway.shared_parameters()) == 3 * expert
    assert MMoE().settings() == {"experts": 8, "hidden": None}
    with pytest.raises(InputError, match="0 experts, expected at least 1"):
        MMoE(experts=0)


def test_mmoe_begins_each_layer_by_the_rule_for_relu() -> None:
    torch.manual_seed(0)
    pathway = MMoE(experts=8, hidden=64).build(256, ("a",))
    bounds = {"experts.hidden.weight": (6 / 256) ** 0.5, "experts.output.weight": (6 / 64) ** 0.5}
    for name, bound in bounds.items():
        values = pathway.state_dict()[name]
        assert float(values.abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


NAMES = ("type", "type_", "type__", "training", "values", "add_module", "__init__", "left", "left_", "9", "a b", "ü")


def test_modules_by_task_take_any_name() -> None:
    modules = TaskModules({name: nn.Linear(1, i + 1) for i, name in enumerate(NAMES)})
    assert list(modules) == list(modules.keys()) == list(NAMES) and len(modules) == len(NAMES)
    assert [modules[name].out_features for name in NAMES] == list(range(1, len(NAMES) + 1))
    assert dict(modules.items()) == {name: modules[name] for name in NAMES}
    assert all(name in modules for name in NAMES) and "right" not in modules and "type___" not in modules
    assert len(list(modules.parameters())) == 2 * len(NAMES)
    again = TaskModules({name: nn.Linear(1, i + 1) for i, name in enumerate(NAMES)})
    again.load_state_dict(modules.state_dict())
    assert "left.weight" in modules.state_dict()
