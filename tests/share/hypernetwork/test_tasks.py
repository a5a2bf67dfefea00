"""The task as a condition: the task scope says which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.errors import InputError
from polytask.share import task_dependent
from polytask.share.hypernetwork import Chunks, Hyperfan, HyperNetwork, Strategy, Tasks
from polytask.share.hypernetwork.strategies import Once, PerLayer

TASKS = ("left", "right", "type")  # the last is an attribute of modules
INDEX = torch.tensor([0, 2, 2, 1, 0, 2])


def made(strategy: Strategy | None = None, **settings: object) -> HyperNetwork:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return HyperNetwork(target, Tasks(TASKS), strategy=strategy, **({"start": Hyperfan()} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", [Once(), PerLayer(embedding=0), PerLayer(), Chunks(5)], ids=str)
def test_a_mixed_batch_is_its_examples_task_by_task(strategy: Strategy) -> None:
    hyper, x = made(strategy).double(), torch.randn(6, 4, dtype=torch.float64)
    with pt.task_scope(TASKS, INDEX):
        mixed = hyper(x)
    mixed.square().sum().backward()
    grads = {name: p.grad for name, p in hyper.named_parameters()}
    hyper.zero_grad()
    for i, task in enumerate(TASKS):
        with pt.task_scope(task):
            alone = hyper(x[i == INDEX])
        alone.square().sum().backward()
        torch.testing.assert_close(alone, mixed[i == INDEX])
        torch.testing.assert_close(alone, hyper.network(task)(x[i == INDEX]))
    torch.testing.assert_close({name: p.grad for name, p in hyper.named_parameters()}, grads)


def test_a_scope_may_name_some_tasks_in_any_order_and_a_batch_may_have_one_or_no_example() -> None:
    hyper, x = made(), torch.randn(3, 4)
    with pt.task_scope(["type", "left"], torch.tensor([1, 0, 1])):
        rows = zip(("left", "type", "left"), x, strict=True)
        torch.testing.assert_close(hyper(x), torch.stack([hyper.network(task)(row) for task, row in rows]))
        with pytest.raises(InputError, match="the task scope has 3 examples, the batch has 2"):
            hyper(x[:2])
    with pt.task_scope(["left", "right"], torch.tensor([1, 1, 1])):
        torch.testing.assert_close(hyper(x), hyper.network("right")(x))
    with pt.task_scope(["left", "right"], torch.zeros(0, dtype=torch.int64)):
        assert hyper(x[:0]).shape == (0, 3)


def test_without_a_scope_or_in_a_wrong_one_it_is_refused() -> None:
    hyper, x = made(), torch.randn(3, 4)
    with pytest.raises(InputError, match="no task scope is open"):
        hyper(x)
    with pt.task_scope("lefd"), pytest.raises(InputError, match="did you mean 'left'"):
        hyper(x)
    with pt.task_scope(["left", "right"]), pytest.raises(InputError, match="without saying which example belongs to which"):
        hyper(x)
    with pytest.raises(InputError, match="unknown task 'rigth': did you mean 'right'"):
        hyper.weights("rigth")
    for wrong in ([], ["a", "a"], "ab"):
        with pytest.raises(InputError, match="expected a list of at least one name"):
            HyperNetwork(nn.Linear(2, 2), Tasks(wrong))


def test_an_embedding_is_its_tasks_own_and_the_generator_is_shared() -> None:
    hyper = made()
    (source,) = task_dependent(hyper)
    with pt.task_scope("right"):
        hyper(torch.randn(3, 4)).square().sum().backward()
    assert [p.grad is not None for task in TASKS for p in source.parameters_of(task)] == [False, True, False]
    assert list(source.parameters_of("other")) == []
    model = pt.Model(hyper, [pt.Task.regression(task) for task in TASKS], width=3)
    parts = [list(model.shared_parameters()), *(list(model.parameters_of(task)) for task in TASKS)]
    assert sorted(id(p) for part in parts for p in part) == sorted(id(p) for p in model.parameters())
    assert sum(p.numel() for p in model.parameters_of("left")) == 16 + 4  # the embedding and the head


def test_all_tasks_at_once_and_some_by_name() -> None:
    hyper, x = made(), torch.randn(5, 4)
    every = hyper.each(x)
    assert every.shape == (3, 5, 3)
    for i, task in enumerate(TASKS):
        torch.testing.assert_close(every[i], hyper.network(task)(x))
    torch.testing.assert_close(hyper.each(x, ["type", "left"]), every[[2, 0]])


def test_as_the_encoder_of_a_model_that_is_trained() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    data = pt.Examples(x, {"left": x[:, 0], "right": x[:, 1] * x[:, 2], "type": x[:, 3].abs()})
    tasks = [pt.Task.regression(task) for task in TASKS]
    for balance in ("equal", "pcgrad"):
        model = pt.Model(made(Chunks(4)), tasks, width=3)
        before = pt.evaluate(model, data)
        after = pt.fit(model, data, data, steps=40, lr=1e-2, balance=balance, evaluate_every=40).metrics
        assert all(after[task]["rmse"] < 0.8 * before[task]["rmse"] for task in TASKS)
    x = x[:7]
    outputs = model(x)
    assert list(model(x, ["type"])) == ["type"]
    with pt.task_scope(TASKS, torch.tensor([0, 1, 2, 0, 1, 2, 0])):
        mixed = model(x)
    for i, task in enumerate(TASKS):
        torch.testing.assert_close(mixed[task][i::3], outputs[task][i::3], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(mixed[task][(i + 1) % 3 :: 3], outputs[task][(i + 1) % 3 :: 3], atol=1e-3)
