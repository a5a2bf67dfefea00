"""The task scope: nested, in threads, in checkpointed blocks and under the compiler."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask import scope, task_scope
from polytask.errors import InputError
from polytask.scope import current, task_index

TASKS = ("left", "right", "ink, or no ink")


class Told(nn.Module):
    """Adds a vector of the task to each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.token = nn.Linear(4, 4), nn.Embedding(len(TASKS), 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.linear(x) * self.token(task_index(x, TASKS))).tanh()
        return out


def test_scopes_nest_and_end() -> None:
    assert current() is None
    with task_scope("left"):
        with task_scope(["left", "right"], index=torch.tensor([1, 0])):
            inner = current()
            assert inner is not None and inner.names == ("left", "right")
        outer = current()
        assert outer is not None and outer.names == ("left",) and outer.index is None
    assert current() is None


def test_a_scope_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), task_scope("left"):
        1 / 0  # noqa: B018
    assert current() is None


def test_one_scope_can_be_entered_again_and_inside_itself() -> None:
    again = task_scope("left")
    for _ in range(2):
        with again, again:
            assert current() is not None
    assert current() is None


def test_positions_are_those_in_the_modules_own_list() -> None:
    x = torch.zeros(3, 2)
    with task_scope("right"):
        assert task_index(x, TASKS).tolist() == [1, 1, 1]
        assert task_index(x[:0], TASKS).tolist() == []
        assert task_index(x, TASKS).dtype == torch.int64
    with task_scope(["ink, or no ink", "left"], index=torch.tensor([0, 1, 1], dtype=torch.int32)):
        assert task_index(x, TASKS).tolist() == [2, 0, 0]


def test_each_thread_has_scopes_of_its_own() -> None:
    model, x, ready = Told(), torch.randn(5, 4), threading.Barrier(len(TASKS))
    alone: dict[str, Tensor] = {}
    for name in TASKS:
        with task_scope(name):
            alone[name] = model(x).detach()
    together: dict[str, list[Tensor]] = {name: [] for name in TASKS}
    seen: list[Any] = []

    def serve(name: str) -> None:
        seen.append(current())
        with task_scope(name):
            for _ in range(20):
                ready.wait()
                together[name].append(model(x).detach())

    with task_scope("left"):  # of this thread alone
        threads = [threading.Thread(target=serve, args=(name,)) for name in TASKS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [None] * len(TASKS)
    assert all(torch.equal(output, alone[name]) for name in TASKS for output in together[name])


def test_a_checkpointed_block_is_computed_again_in_its_own_scope() -> None:
    plain, kept = Told(), Told()
    x = torch.randn(5, 4)
    losses = []
    for name in ("left", "right"):
        with task_scope(name):
            plain(x).sum().backward()
            losses.append(checkpoint(kept, x, use_reentrant=False, context_fn=scope.kept).sum())
    with task_scope("ink, or no ink"):  # another scope is open when the backward pass runs
        sum(losses).backward()
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_checkpointed_block_can_be_computed_again_more_than_once() -> None:
    """As many times as a method asks for gradients of one graph."""
    model, x = Told(), torch.randn(5, 4)
    with task_scope("right"):
        out = checkpoint(model, x, use_reentrant=False, context_fn=scope.kept)
        direct = model(x)
    for column in range(3):
        (a,) = torch.autograd.grad(out[:, column].sum(), model.linear.weight, retain_graph=True)
        (b,) = torch.autograd.grad(direct[:, column].sum(), model.linear.weight, retain_graph=True)
        torch.testing.assert_close(a, b)


def test_a_checkpointed_block_outside_a_scope_stays_outside() -> None:
    x = torch.ones(2, requires_grad=True)
    checkpoint(lambda t: t * (2 if current() is None else 3), x, use_reentrant=False, context_fn=scope.kept).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_compiled_model_serves_every_task_without_compiling_again(backend: str) -> None:
    torch._dynamo.reset()
    graphs = 0

    def counting(graph: Any, inputs: Sequence[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    model = Told()
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    x = torch.randn(6, 4)
    scopes = [task_scope(name) for name in TASKS] + [task_scope(TASKS, index=torch.tensor([2, 1, 0, 0, 1, 2]))]
    for opened in scopes:
        with opened:
            expected, found = model(x), compiled(x)
        torch.testing.assert_close(found, expected)
        a = torch.autograd.grad(found.square().sum(), list(model.parameters()))
        b = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        torch.testing.assert_close(a, b)
    assert graphs == 1
    with pytest.raises(InputError, match="no task scope is open"):
        compiled(x)


def test_an_input_that_needs_a_gradient_is_no_trouble() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with task_scope("left"):
        Told()(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_errors_say_what_is_missing() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"no task scope is open, expected one of \['left', 'right'"):
        task_index(x, TASKS)
    with task_scope("lefd"), pytest.raises(InputError, match="the task scope names 'lefd', expected one of"):
        task_index(x, TASKS)
    with task_scope(["left", "right"]), pytest.raises(InputError, match="without saying which example belongs to which"):
        task_index(x, TASKS)
    index = torch.tensor([0, 1])
    with task_scope(["left", "right"], index), pytest.raises(InputError, match="2 examples, the batch has 3"):
        task_index(x, TASKS)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.tensor([[0, 1]]), r"shape \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (torch.tensor([True]), "bool"),
        (torch.tensor([0, 2]), "from 0 to 2, expected 0 to 1"),
        (torch.tensor([-1, 0]), "from -1 to 0"),
    ],
)
def test_an_index_that_cannot_be_is_refused_at_once(index: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        task_scope(["left", "right"], index)
    with pytest.raises(InputError, match="of no tasks"):
        task_scope([])
