"""Learning to branch: draws and their gradients, the schedule, and the tree that is left."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.errors import InputError
from polytask.share import Branching
from polytask.share.branching import BranchingPathway, drawn
from polytask.testing import check_sharing

TASKS = ("a", "b", "type")


def built(width: int = 4, tasks: tuple[str, ...] = TASKS, **chosen: int | float) -> BranchingPathway:
    pathway = Branching(**chosen).build(width, tasks)  # type: ignore[arg-type]
    assert isinstance(pathway, BranchingPathway)
    return pathway


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_the_tree_is_the_loop_over_likely_parents(layers: int, nodes: int, seed: int) -> None:
    torch.manual_seed(seed)
    pathway = built(layers=layers, nodes=nodes).double().eval()
    for parameter in pathway.parameters():
        nn.init.normal_(parameter)
    weights, x = pathway.state_dict(), torch.randn(5, 4, dtype=torch.float64)

    def node(layer: int, n: int) -> Tensor:
        below = x if layer == 0 else node(layer - 1, int(weights[f"parents.{layer - 1}"][n].argmax()))
        return (below @ weights[f"layers.{layer}.weight"][n] + weights[f"layers.{layer}.bias"][n, 0]).clamp(min=0)

    leaves = {task: int(pathway.leaves[task].argmax()) for task in TASKS}
    for asked in (TASKS, TASKS[::-1], TASKS[1:2]):
        torch.testing.assert_close(pathway(x, asked), {task: node(layers - 1, leaves[task]) for task in asked})


@pytest.mark.parametrize("sharing", [Branching(layers=1), Branching(layers=2, nodes=1), Branching(nodes=5, steps=1)])
def test_other_settings_keep_the_contract(sharing: Branching) -> None:
    check_sharing(lambda: sharing)


def test_one_node_a_layer_is_a_network_that_all_tasks_share() -> None:
    pathway, x = built(layers=2, nodes=1), torch.randn(6, 4)
    first, second = (pathway.state_dict()[f"layers.{i}.weight"][0] for i in range(2))
    expected = dict.fromkeys(TASKS, ((x @ first).relu() @ second).relu())
    for mode in (True, False):
        torch.testing.assert_close(pathway.train(mode)(x, TASKS), expected)


def test_ways_name_the_nodes_from_the_first_layer_to_the_last_and_only_these_run() -> None:
    pathway = built(width=8, layers=3).eval()
    for choice, parents in zip(pathway.parents, ([0, 0, 2], [1, 2, 0]), strict=True):
        choice.data[range(3), parents] = 1
    for task, leaf in zip(TASKS, (0, 2, 1), strict=True):
        pathway.leaves[task].data[leaf] = 1
    assert pathway.branches() == {"a": (0, 1, 0), "b": (0, 0, 2), "type": (2, 2, 1)}
    layer = 2 * 5 * 8 * 8
    for asked, nodes in ((("a",), 3), (("a", "b"), 5), (("b", "type"), 6), (TASKS, 8)):
        with FlopCounterMode(display=False) as counter:
            pathway(torch.randn(5, 8), asked)
        assert counter.get_total_flops() == nodes * layer


def test_a_child_mostly_reads_parents_in_proportion() -> None:
    torch.manual_seed(0)
    shares, count = torch.tensor([0.6, 0.3, 0.1]), 20000
    chosen = drawn(shares.log().expand(count, 3), torch.tensor(0.7))
    torch.testing.assert_close(chosen.sum(1), torch.ones(count))
    largest = nn.functional.one_hot(chosen.argmax(1)).float().mean(0)
    assert float((largest - shares).abs().max()) < 4 * math.sqrt(0.25 / count)
    cold = drawn(torch.zeros(count, 3), torch.tensor(1e-4))
    assert float((cold.max(1).values > 0.999).float().mean()) > 0.99


@pytest.mark.parametrize(("done", "temperature"), [(0, 8.0), (50, 4.0), (75, 8 * 0.25**0.75)])
def test_a_task_reads_a_mixture_that_hardens_as_the_temperature_falls(done: int, temperature: float) -> None:
    pathway = built(width=3, tasks=("a", "b"), layers=1, nodes=3, start=8, end=2, steps=100).double()
    nn.init.zeros_(pathway.layers[0].weight)  # type: ignore[arg-type]
    values = torch.randn(3, 3, dtype=torch.float64).abs()
    pathway.layers[0].bias.data = values[:, None]
    pathway.passes.fill_(2 * done)
    torch.manual_seed(5)
    output = pathway(torch.zeros(1, 3, dtype=torch.float64), ("b",))["b"]
    torch.manual_seed(5)
    noise = -torch.empty(3, dtype=torch.float64).exponential_().log()
    scores = (noise / temperature).exp()
    mixture = scores / scores.sum()
    torch.testing.assert_close(output[0], mixture @ values)
    cotangent = torch.randn(3, dtype=torch.float64)
    output.backward(cotangent[None])
    worth = values @ cotangent
    torch.testing.assert_close(pathway.leaves["b"].grad, mixture * (worth - mixture @ worth) / temperature)
    assert pathway.leaves["a"].grad is None


def test_after_its_steps_training_is_on_the_tree_of_evaluation() -> None:
    torch.manual_seed(0)
    pathway = built(layers=3, steps=2)
    for parameter in pathway.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 4)
    tree = pathway.eval()(x, TASKS)
    pathway.train()
    while int(pathway.passes) < 2 * len(TASKS):
        pathway(x, TASKS)
    outputs = pathway(x, TASKS)
    torch.testing.assert_close(outputs, tree)
    sum(output.sum() for output in outputs.values()).backward()  # type: ignore[union-attr]
    choices = [*pathway.parents, *(pathway.leaves[task] for task in TASKS)]
    assert all(choice.grad is not None and not bool(choice.grad.any()) for choice in choices)
    assert any(bool(p.grad.any()) for p in pathway.layers.parameters() if p.grad is not None)


def test_a_step_is_a_pass_of_all_tasks_in_training_and_outlives_a_round_trip() -> None:
    together, apart = built(), built()
    x = torch.randn(2, 4)
    for _ in range(4):
        together(x, TASKS)
        for task in TASKS:
            apart(x, (task,))
    together.eval()(x, TASKS)
    assert int(together.passes) == int(apart.passes) == 12
    again = built()
    again.load_state_dict(together.state_dict())
    assert int(again.passes) == 12 and again.passes.dtype == torch.int64
    assert built().bfloat16().passes.dtype == torch.int64


def test_tasks_find_the_nodes_that_serve_them() -> None:
    torch.manual_seed(0)
    pathway = built(width=1, tasks=("a", "b"), layers=1, nodes=3, steps=60)
    pathway.layers[0].weight.data = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    pathway.layers.requires_grad_(False)
    wanted = {"a": 2.0, "b": 3.0}
    optimizer = torch.optim.Adam([p for p in pathway.parameters() if p.requires_grad], lr=0.1)
    for _ in range(60):
        outputs = pathway(torch.ones(1, 1), ("a", "b"))
        optimizer.zero_grad()
        sum((outputs[task] - value).square().sum() for task, value in wanted.items()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert pathway.branches() == {"a": (1,), "b": (2,)}


def test_parents_are_shared_and_a_tasks_leaf_is_its_own() -> None:
    pathway = built(layers=3, nodes=5)
    assert sum(p.numel() for p in pathway.shared_parameters()) == 3 * 5 * (4 * 4 + 4) + 2 * 5 * 5
    assert [p.numel() for p in pathway.parameters_of("type")] == [5]
    assert built(layers=1).nodes == len(TASKS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "branching: 0 layers, expected at least 1"),
        ({"nodes": 0}, "branching: 0 nodes, expected at least 1"),
        ({"end": 0.0}, "branching: temperatures 5.0 to 0.0, expected start >= end > 0"),
        ({"start": 0.1}, "branching: temperatures 0.1 to 0.5, expected start >= end > 0"),
        ({"steps": 0}, "branching: 0 steps, expected at least 1"),
    ],
)
def test_settings_that_make_no_tree_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Branching(**wrong)  # type: ignore[arg-type]
