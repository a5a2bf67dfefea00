"""Gates: closed forms, the penalty of uneven use, and whose gate it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import Gate, Gates, TaskFeature, TaskLinear, penalties, top_gates
from polytask.share.gate import chance_of_choice, cv_squared

TASKS = ("left", "type")  # the second is an attribute of modules
INDEX = torch.tensor([1, 0, 1])


def of_all(experts: int = 5, width: int = 4, **settings: object) -> Gate:
    return Gate(nn.Linear(width, experts, bias=False), experts, **settings).double()  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_weights_of_k_of_all_experts(experts: int, k: int) -> None:
    k = min(k, experts)
    logits = torch.randn(7, experts, dtype=torch.float64)
    before, after = top_gates(logits, k), top_gates(logits, k, softmax="after")
    renormalised = top_gates(logits, k, renormalise=True)
    for gates in (before, after, renormalised):
        weights = gates.dense(experts)
        assert ((weights > 0).sum(1) == k).all()
        torch.testing.assert_close(weights.gather(1, gates.experts), gates.values)
    kept = before.dense(experts)
    torch.testing.assert_close(kept[kept > 0], logits.softmax(1)[kept > 0])
    assert bool((kept.sum(1) > k / experts - 1e-12).all()) and bool((kept.sum(1) <= 1 + 1e-12).all())
    torch.testing.assert_close(after.dense(experts), kept / kept.sum(1, keepdim=True))
    torch.testing.assert_close(renormalised.dense(experts), after.dense(experts))
    if k == experts:
        torch.testing.assert_close(kept, logits.softmax(1))


def test_one_expert_needs_no_gate() -> None:
    gate = of_all(experts=1, noise=nn.Linear(4, 1), balance=1.0)
    gates = gate(torch.randn(2, 3, 4))
    assert list(gate.parameters()) == [] and gates.values.unique().tolist() == [1] and gates.experts.unique().tolist() == [0]
    assert gates.values.shape == gates.experts.shape == (2, 3, 1)


def test_unevenness() -> None:
    for n in range(2, 9):
        assert float(cv_squared(torch.eye(n)[0] * n)) == pytest.approx(n)
    assert float(cv_squared(torch.full((4,), 3.0))) == float(cv_squared(torch.zeros(4))) == 0
    assert float(cv_squared(torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx(1 / 4)


def test_the_penalty_without_noise() -> None:
    gate, x = of_all(k=2, balance=0.01), torch.randn(3, 6, 4, dtype=torch.float64)
    for _ in range(2):
        with penalties(gate) as found:
            gate(x)
        weights = gate.router(x).softmax(-1).flatten(0, 1)  # type: ignore[misc]
        importance, load = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for row in weights:
            for expert in row.argsort(descending=True)[:2]:
                importance[expert] += row[expert]
                load[expert] += 1
        expected = sum(float(((a - a.mean()) ** 2).sum() / 4 / a.mean() ** 2) for a in (importance.detach(), load))
        assert sum(found).item() == pytest.approx(0.01 * expected)
        (gradient,) = torch.autograd.grad(sum(found), gate.router.weight)  # type: ignore[arg-type, union-attr]
        assert bool(gradient.any())
    with penalties(gate) as found:
        gate(x), gate(x)
    assert float(sum(found)) == pytest.approx(0.02 * expected)  # several passes add up
    with penalties(gate.eval()) as found:
        gate(x)
    assert found == []


def test_the_chance_to_be_chosen_again() -> None:
    """Against a count over many draws of one expert's noise."""
    torch.manual_seed(0)
    clean = torch.tensor([0.4, 0.1, -0.2, 0.3], dtype=torch.float64)
    spread = torch.tensor([0.3, 0.5, 0.4, 0.2], dtype=torch.float64)
    noisy = clean + spread * torch.randn(4, dtype=torch.float64)
    found = chance_of_choice(clean, noisy, spread, 2)
    for expert in range(4):
        draws = noisy.expand(20_000, 4).clone()
        draws[:, expert] = clean[expert] + spread[expert] * torch.randn(20_000, dtype=torch.float64)
        share = (draws.topk(2, 1).indices == expert).any(1).double().mean()
        assert float(found[expert]) == pytest.approx(float(share), abs=0.015)


def test_noise_while_training_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 4, dtype=torch.float64)
    for noise, spread in ((1.5, 0.3), (nn.Linear(4, 5), None)):
        gate = of_all(k=5, softmax="after", noise=noise)
        calm = gate.eval()(x).dense(5)
        torch.testing.assert_close(gate(x).dense(5), calm)
        moved = (gate.train()(x).dense(5).log() - calm.log()).diff(dim=1)  # the softmax's sum falls out
        if spread is None:
            std = torch.nn.functional.softplus(gate.noise(x)) + 0.01  # type: ignore[operator]
            moved = moved / (std[:, 1:].square() + std[:, :-1].square()).sqrt()
            spread = 1 / math.sqrt(2)
        assert float(moved.std()) == pytest.approx(spread * math.sqrt(2), rel=0.03)


def test_noise_gives_the_load_a_gradient() -> None:
    noise = nn.Linear(4, 5, bias=False)
    gate = of_all(k=2, noise=noise, balance=1.0)
    with penalties(gate) as found:
        gate(torch.randn(9, 4, dtype=torch.float64))
    gradients = torch.autograd.grad(sum(found), list(gate.parameters()))  # type: ignore[arg-type]
    assert len(gradients) == 2 and all(bool(g.any()) for g in gradients)
    every = of_all(k=5, noise=1.0, balance=1.0)
    with penalties(every) as found:
        every(torch.randn(9, 4, dtype=torch.float64))
    assert math.isfinite(float(sum(found)))  # where all are chosen the load is even


def by_task() -> Gate:
    torch.manual_seed(0)
    return Gate(TaskLinear(4, 5, TASKS), 5, k=2, balance=1.0, tasks=TASKS).double()


def conditioned() -> tuple[Gate, TaskFeature]:
    torch.manual_seed(0)
    return Gate(nn.Linear(4 + 3, 5), 5, k=2, balance=1.0, tasks=TASKS).double(), TaskFeature(TASKS, 3).double()


@pytest.mark.parametrize("shape", [(3, 4), (3, 6, 4), (3, 2, 3, 4)])
@pytest.mark.parametrize("form", ["gates", "feature"])
def test_a_mixed_batch_is_its_examples_task_by_task(shape: tuple[int, ...], form: str) -> None:
    gate, feature = (by_task(), None) if form == "gates" else conditioned()
    x = torch.randn(shape, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        gates: Gates = gate(x) if feature is None else gate(x, feature(x))
        return gates.dense(5)

    with penalties(gate) as mixed, task_scope(TASKS, INDEX):
        together = run(x)
    alone = torch.empty_like(together)
    with penalties(gate) as separate:
        for i, task in enumerate(TASKS):
            with task_scope(task):
                alone[i == INDEX] = run(x[i == INDEX])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(sum(mixed), sum(separate))
    with task_scope("left"):
        left = run(x)
    with task_scope("type"):
        assert not torch.allclose(left, run(x))


def test_gates_with_the_same_weights_are_one_gate() -> None:
    gate, shared = by_task(), of_all(k=2, balance=1.0)
    with torch.no_grad():
        for task in TASKS:
            gate.router.weights[task].copy_(shared.router.weight.mT)  # type: ignore[union-attr, index, operator]
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    for task in TASKS:
        with penalties(gate) as own, penalties(shared) as one, task_scope(task):
            torch.testing.assert_close(gate(x).dense(5), shared(x).dense(5))
        torch.testing.assert_close(sum(own), sum(one))


def test_parameters_by_task() -> None:
    gate, (_, feature) = by_task(), conditioned()
    assert list(gate.state_dict()) == ["router.weights.left", "router.weights.type_"]
    own = [list(gate.router.parameters_of(task)) for task in TASKS]  # type: ignore[union-attr, operator]
    assert [len(o) for o in own] == [1, 1] and own[0][0] is not own[1][0]
    assert list(feature.parameters_of("left")) == []
    assert TaskLinear(3, 2, TASKS).weights["left"].abs().max() <= 3**-0.5


def test_choices_do_not_depend_on_autocast() -> None:
    gate = of_all().float()
    x = torch.randn(50, 4)
    plain = gate(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gate(x), plain)
    with torch.device("meta"):
        assert of_all()(torch.empty(3, 4)).experts.is_meta
    half = copy.deepcopy(gate).bfloat16()(x.bfloat16())
    assert plain.values.dtype == half.values.dtype == torch.float32


def test_a_pass_that_is_computed_again_adds_nothing() -> None:
    gate, x = of_all(k=2, noise=1.0, balance=1.0), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def weights(x: Tensor) -> Tensor:
        return gate(x).dense(5).square()  # type: ignore[no-any-return]

    gradients = []
    for again in (False, True):
        torch.manual_seed(1)
        with penalties(gate) as found:
            y = checkpoint(weights, x, use_reentrant=False) if again else weights(x)
        gradients.append(torch.autograd.grad(y.sum() + sum(found), [x, *gate.parameters()]))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert gate.penalty.take() is None


def test_one_compilation_serves_all_tasks() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    gate, x = by_task(), torch.randn(3, 6, 4, dtype=torch.float64)
    compiled = torch.compile(gate, backend=count, fullgraph=True)
    for task in TASKS:
        with task_scope(task):
            torch.testing.assert_close(compiled(x), gate(x))
    with task_scope(TASKS, INDEX):
        torch.testing.assert_close(compiled(x), gate(x))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k 0, expected from 1 to 5"),
        ({"k": 6}, "k 6, expected from 1 to 5"),
        ({"softmax": "inside"}, "softmax 'inside', expected"),
        ({"noise": -1.0}, "noise -1.0, balance 0.0, expected"),
        ({"balance": -1.0}, "balance -1.0, expected"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_all(**settings)


def test_a_router_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="the router gives 3 logits, expected 5"):
        Gate(nn.Linear(4, 3), 5)(torch.randn(2, 4))
