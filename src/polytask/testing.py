"""The shared suites: they hold a method, a way of sharing or a kind of task of your own to what polytask's code relies on.

Each takes what makes the object, and raises `AssertionError` in words at the first promise that is not kept::

    from polytask.testing import check_balancer

    def test_my_balancer():
        check_balancer(MyBalancer)

polytask's own methods go through the same suites, one by one, from their registers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balance import Backward, Balancer, LossWeighting
from polytask.share import Sharing
from polytask.task import Task

TASKS = ("left", "right", "type", "ink")
"""Task names for the suites; ``type`` is the name of an attribute of every module, as a column of a table may be."""


def check_balancer(make: Callable[[], Balancer]) -> None:
    """Hold a balancer to its contract.

    Args:
        make: a new balancer at each call, as ``MyBalancer`` or ``lambda: MyBalancer(rate=0.1)``.

    Checked: gradients are finite, are added to what ``.grad`` holds, and reach the head of every task in the step and of no
    other; the model's own state is left alone; one task alone is trained as without a balancer; a task may be absent from a
    step; the order of the losses means nothing; frozen shared parameters stay frozen; `prepare` starts afresh; the state
    survives ``state_dict``; the first step has the declared `Balancer.scale`.
    """
    problem = _Problem(len(TASKS))
    _check_gradients(make, problem)
    _check_alone(make, problem)
    _check_absent(make, problem)
    _check_order(make, problem)
    _check_state(make, problem)
    _check_scale(make)


def check_sharing(make: Callable[[], Sharing]) -> None:
    """Hold a way of sharing to its contract.

    Args:
        make: its settings, as ``MySharing`` or ``lambda: MySharing(experts=4)``.

    Checked: features keep their shape, with any dimensions in the middle; a task asked alone gives what it gives among
    others, and runs no module that belongs to another task alone; gradients of a task reach no other task's parameters;
    shared parameters and those of each task are, together and without overlap, all; settings and weights survive a round
    trip; any number of tasks will do, and any names; mixed precision will do.
    """
    sharing = make()
    settings = json.loads(json.dumps(sharing.settings()))
    assert type(sharing)(**settings) == sharing, f"settings {settings} do not build the sharing {sharing} again"
    for tasks in (TASKS, TASKS[:1]):
        torch.manual_seed(0)
        pathway = make().build(6, tasks)
        _check_partition(pathway, tasks)
        _check_pathway(pathway, tasks)
        again = make().build(6, tasks)
        again.load_state_dict(pathway.state_dict())
        features = torch.randn(5, 6)
        pathway.eval()
        again.eval()
        for task, value in pathway(features, tasks).items():
            torch.testing.assert_close(again(features, tasks)[task], value, msg="the weights do not survive a round trip")
    torch.manual_seed(1)
    first = make().build(6, TASKS).state_dict()
    torch.manual_seed(1)
    second = make().build(6, TASKS).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first), "one seed builds two different pathways"


def check_task(task: Task, target: Tensor, features: Tensor | None = None) -> None:
    """Hold a kind of task to its contract.

    Args:
        task: the task, with its scale and weights filled in (see `Task.fitted`).
        target: labels of at least 8 rows, none missing.
        features: what its head takes: ``(N, 5)`` random numbers by default; pass ``(N, width, H, W)`` for dense kinds.

    Checked: the loss is a finite scalar; missing labels are left out of loss, gradient, count and metrics, even when all are
    missing; losses of parts, weighed by `Task.count`, make the loss of the whole; predictions have the columns that `names`
    says; `constant` is a prediction; the task survives JSON; half precision will do.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(target), 5, generator=generator) if features is None else features
    torch.manual_seed(0)
    head = task.head(features.shape[1])
    output = head(features)
    _check_loss(task, head, output, target)
    _check_missing(task, output.detach(), target)
    _check_metrics(task, output.detach(), target)
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task and type(again) is type(task), f"{task} comes back from JSON as {again}"
    assert torch.equal(again.loss(output, target), task.loss(output, target)), "the loss is another after a round trip"


# Balancers


class _Problem:
    """A linear layer that all tasks share, and a head for each."""

    def __init__(self, tasks: int) -> None:
        torch.manual_seed(0)
        self.names = TASKS[:tasks]
        self.shared = nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1) for _ in self.names])
        self.x = torch.randn(16, 5)
        self.y = torch.randn(16, tasks) * torch.arange(1, tasks + 1)

    def losses(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        features = self.shared(self.x).tanh()
        each = zip(self.names, self.heads, self.y.T, strict=True)
        losses = {name: (head(features).squeeze(1) - y).square().mean() for name, head, y in each}
        return {name: losses[name] for name in (self.names if names is None else names)}

    def parameters(self) -> list[nn.Parameter]:
        return [*self.shared.parameters(), *self.heads.parameters()]

    def head(self, name: str) -> nn.Module:
        return self.heads[self.names.index(name)]

    def gradients(self, balancer: Balancer, names: Sequence[str] | None = None, seed: int = 0) -> list[Tensor | None]:
        """The gradients that a step leaves on all parameters; the balancer's own learned parameters move a little."""
        for parameter in (*self.parameters(), *balancer.parameters()):
            parameter.grad = None
        torch.manual_seed(seed)
        self.step(balancer, names)
        with torch.no_grad():
            for parameter in balancer.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
        return [None if p.grad is None else p.grad.clone() for p in self.parameters()]

    def step(
        self, balancer: Balancer, names: Sequence[str] | None = None, backward: Backward = torch.Tensor.backward
    ) -> int:
        """A step of one batch; how many times its losses were computed."""
        looks = 0

        def evaluate() -> dict[str, Tensor]:
            nonlocal looks
            looks += 1
            return self.losses(names)

        balancer.step([evaluate], list(self.shared.parameters()), backward)
        return looks


def _prepared(make: Callable[[], Balancer], tasks: Sequence[str]) -> Balancer:
    balancer = make()
    assert isinstance(balancer, Balancer), f"{balancer!r} is no polytask.balance.Balancer"
    balancer.prepare(tasks)
    return balancer


def _check_gradients(make: Callable[[], Balancer], problem: _Problem) -> None:
    balancer = _prepared(make, problem.names)
    before = [p.detach().clone() for p in problem.parameters()]
    first: list[Tensor | None] = []
    for step in range(4):
        gradients = problem.gradients(balancer, seed=step)
        first = first or gradients
        assert all(g is not None for g in gradients), f"step {step}: a parameter of a task in the step has no gradient"
        assert all(g is not None and bool(g.isfinite().all()) for g in gradients), f"step {step}: a gradient is not finite"
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters(), strict=True)), "backward moved the model"
    assert all(p.requires_grad for p in problem.parameters()), "backward froze a parameter of the model"

    fresh, calls = _prepared(make, problem.names), 0

    def backward(loss: Tensor) -> None:
        nonlocal calls
        calls += 1
        loss.backward()  # type: ignore[no-untyped-call]

    for parameter in problem.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.manual_seed(0)
    problem.step(fresh, backward=backward)
    for parameter, gradient in zip(problem.parameters(), first, strict=True):
        assert parameter.grad is not None and gradient is not None
        torch.testing.assert_close(
            parameter.grad, gradient + 1, msg="gradients replace what .grad holds, expected them to be added to it"
        )
    if isinstance(fresh, LossWeighting):
        assert calls == 1, f"a loss weighting ran {calls} backward passes, expected 1"


def _check_alone(make: Callable[[], Balancer], problem: _Problem) -> None:
    name = problem.names[1]
    alone = problem.gradients(_prepared(make, [name]), [name])
    looks = problem.step(_prepared(make, [name]), [name])
    for parameter in problem.parameters():
        parameter.grad = None
    problem.losses([name])[name].backward()  # type: ignore[no-untyped-call]
    pairs = [(a, p.grad) for a, p in zip(alone, problem.parameters(), strict=True) if p.grad is not None]
    got = torch.cat([(torch.zeros_like(plain) if g is None else g).flatten() for g, plain in pairs])
    expected = torch.cat([plain.flatten() for _, plain in pairs])
    cosine = float(torch.nn.functional.cosine_similarity(got, expected, dim=0))
    # Where losses are computed again it is from weights nearby, and the gradient there is a little different.
    least = 0.9999 if looks == 1 else 0.9
    assert cosine > least, f"one task alone: the step has cosine {cosine:.5f} with the plain gradient, expected 1"
    ratio = float(got.norm() / expected.norm())
    if make().scale in ("sum", "mean"):
        assert 0.5 <= ratio <= 2, f"one task alone: the step is {ratio:.3g} times the plain gradient, expected about 1"


def _check_absent(make: Callable[[], Balancer], problem: _Problem) -> None:
    balancer = _prepared(make, problem.names)
    for step, names in enumerate((problem.names, problem.names[:1], problem.names[1:], problem.names[2:3], problem.names)):
        gradients = dict(zip(map(id, problem.parameters()), problem.gradients(balancer, names, step), strict=True))
        for name in problem.names:
            own = [gradients[id(p)] for p in problem.head(name).parameters()]
            if name in names:
                assert all(g is not None and bool(g.isfinite().all()) for g in own), f"step of {names}: {name!r} gets none"
            else:
                absent = all(g is None or not bool(g.any()) for g in own)
                assert absent, f"step of {names}: the head of the absent task {name!r} gets a gradient"


def _check_order(make: Callable[[], Balancer], problem: _Problem) -> None:
    def run(seed: int, order: Sequence[str]) -> list[Tensor | None]:
        balancer = _prepared(make, problem.names)
        for step in range(3):
            problem.gradients(balancer, seed=seed + step)
        return problem.gradients(balancer, order, seed)

    if not _alike(run(0, problem.names), run(1, problem.names)):
        return  # a random method draws in the order of the losses
    assert _alike(run(0, problem.names), run(0, problem.names[::-1])), "another order of the losses gives other gradients"


def _check_state(make: Callable[[], Balancer], problem: _Problem) -> None:
    balancer = _prepared(make, problem.names)
    first = problem.gradients(balancer)
    for step in range(3):
        problem.gradients(balancer, seed=step)
    again = _prepared(make, problem.names)
    again.load_state_dict(copy.deepcopy(balancer.state_dict()))
    same = _alike(problem.gradients(balancer), problem.gradients(again))
    assert same, "state_dict does not hold all that the next step depends on"
    balancer.prepare(problem.names)
    assert _alike(problem.gradients(balancer), first), "prepare does not start afresh"
    balancer.prepare(problem.names[:2])
    problem.gradients(balancer, problem.names[:2])
    # What the user froze stays frozen.
    problem.shared.bias.requires_grad_(False)
    try:
        frozen = problem.gradients(_prepared(make, problem.names))
        assert frozen[1] is None, "a frozen shared parameter gets a gradient"
    finally:
        problem.shared.bias.requires_grad_(True)


def _check_scale(make: Callable[[], Balancer]) -> None:
    scale, count = make().scale, 6
    if scale not in ("sum", "mean"):
        assert scale == "own", f"scale {scale!r}, expected 'sum', 'mean' or 'own'"
        return
    # All tasks have one and the same loss: its sum is `count` times as steep as its mean.
    torch.manual_seed(0)
    shared = nn.Linear(5, 1)
    x = torch.randn(16, 5)

    def losses() -> dict[str, Tensor]:
        return dict.fromkeys(names, shared(x).square().mean())

    names = [f"task{i}" for i in range(count)]
    (plain,) = torch.autograd.grad(losses()[names[0]], [shared.weight])
    balancer = _prepared(make, names)
    balancer.step([losses], list(shared.parameters()), torch.Tensor.backward)
    assert shared.weight.grad is not None
    ratio = float(shared.weight.grad.norm() / plain.norm())
    expected = count if scale == "sum" else 1
    within = expected / 2 <= ratio <= expected * 2
    assert within, (
        f"{count} equal tasks: the step is {ratio:.3g} of one task's, expected about {expected} for scale {scale!r}"
    )


def _alike(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> bool:
    pairs = list(zip(one, other, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs if a is not None and b is not None)


# Sharing


def _check_partition(pathway: Any, tasks: Sequence[str]) -> None:
    names = {id(parameter): name for name, parameter in pathway.named_parameters()}
    parts = {"shared": pathway.shared_parameters(), **{task: pathway.parameters_of(task) for task in tasks}}
    owner: dict[int, str] = {}
    for part, parameters in parts.items():
        for parameter in parameters:
            assert id(parameter) in names, f"{part}: lists a parameter that is none of the pathway's"
            name = names[id(parameter)]
            assert id(parameter) not in owner, f"parameter {name} belongs to {owner.get(id(parameter))} and to {part}"
            owner[id(parameter)] = part
    left = [name for key, name in names.items() if key not in owner]
    assert not left, f"parameters {left} are neither shared nor any task's"


def _check_pathway(pathway: Any, tasks: Sequence[str]) -> None:
    for shape in ((7, 6), (1, 6), (3, 4, 6), (2, 3, 4, 6)):
        features = torch.randn(shape)
        outputs = pathway(features, tasks)
        assert tuple(outputs) == tuple(tasks), f"asked for {tuple(tasks)}, got {tuple(outputs)}"
        for task, output in outputs.items():
            assert output.shape == shape, f"features {shape} come out as {tuple(output.shape)} for task {task!r}"
    pathway.eval()
    features = torch.randn(6, 6)
    together = pathway(features, tasks)
    middle = pathway(features.reshape(2, 3, 6), tasks)
    fewer = pathway(features[:2], tasks)
    others_of = {
        task: [list(pathway.parameters_of(other)) for other in tasks if other != task and list(pathway.parameters_of(other))]
        for task in tasks
    }
    for task in tasks:
        torch.testing.assert_close(
            middle[task].reshape(6, 6), together[task], msg="a dimension in the middle changes values"
        )
        torch.testing.assert_close(fewer[task], together[task][:2], msg="a row depends on the rows beside it in evaluation")
        alone, ran = _ran(pathway, features, task)
        assert tuple(alone) == (task,), f"asked for {task!r}, got {tuple(alone)}"
        torch.testing.assert_close(alone[task], together[task], msg=f"task {task!r} alone is not what it is among others")
        foreign = {id(p) for parameters in others_of[task] for p in parameters}
        for module in ran:
            own = list(module.parameters())
            wasted = bool(own) and all(id(p) in foreign for p in own)
            assert not wasted, f"asked for {task!r} alone, the pathway runs {module}, which only another task uses"
        if not any(p.requires_grad for p in pathway.parameters()):
            continue
        pathway.zero_grad()
        loss = (together[task] * torch.randn(6, 6)).sum()
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for p in (p for parameters in others_of[task] for p in parameters):
            assert p.grad is None or not bool(p.grad.any()), (
                f"the gradient of task {task!r} reaches another task's parameters"
            )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for output in pathway(features, tasks).values():
            assert bool(output.isfinite().all()), "not finite in mixed precision"
    pathway.train()


def _ran(pathway: Any, features: Tensor, task: str) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """What a pathway gives for one task, and the modules that it ran for that."""
    ran: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in pathway.modules()]
    outputs = pathway(features, (task,))
    for handle in handles:
        handle.remove()
    return outputs, ran


# Tasks


def _check_loss(task: Task, head: nn.Module, output: Tensor, target: Tensor) -> None:
    loss = task.loss(output, target)
    assert loss.ndim == 0 and bool(loss.isfinite()), f"the loss is {loss}, expected a finite scalar"
    gradients = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
    assert all(bool(g.isfinite().all()) for g in gradients), "a gradient is not finite"
    assert any(bool(g.any()) for g in gradients), "the loss has no gradient"
    half = task.loss(output.bfloat16(), target).float()
    torch.testing.assert_close(half, loss, rtol=0.1, atol=0.1, msg=f"in half precision the loss is {half}, not {loss}")
    # Losses of parts, weighed by their counts, make the loss of the whole: what accumulation and several processes rest on.
    cut = len(target) // 3
    parts = [(output[:cut], target[:cut]), (output[cut:], target[cut:])]
    total = sum(task.loss(o, t) * task.count(t) for o, t in parts) / task.count(target)
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total.float(), loss.float(), msg="losses of parts weighed by count do not make the whole's")


def _check_missing(task: Task, output: Tensor, target: Tensor) -> None:
    gone = torch.zeros(len(target), dtype=torch.bool)
    gone[::3] = True
    holed = target.clone()
    holed[gone] = task.missing(target[gone].shape).to(target.dtype)
    assert bool(task.present(target).all()) and not bool(task.present(holed)[gone].any()), "missing labels count as present"
    output = output.requires_grad_()
    loss = task.loss(output, holed)
    torch.testing.assert_close(loss, task.loss(output[~gone], target[~gone]), msg="the loss counts rows without a label")
    torch.testing.assert_close(task.count(holed), task.count(target[~gone]), msg="the count counts rows without a label")
    (gradient,) = torch.autograd.grad(loss, output)
    assert bool(gradient.isfinite().all()) and not bool(gradient[gone].any()), "rows without a label have a gradient"
    nothing = task.missing(target.shape)
    loss = task.loss(output, nothing)
    (gradient,) = torch.autograd.grad(loss, output)
    assert float(loss.detach()) == 0 and not bool(gradient.any()), "without any label loss and gradient are not 0"
    assert float(task.count(nothing)) == 0, "without any label the count is not 0"


def _check_metrics(task: Task, output: Tensor, target: Tensor) -> None:
    prediction = task.decode(output)
    assert len(prediction) == len(target), f"{len(target)} rows give {len(prediction)} predictions"
    gone = torch.zeros(len(target), dtype=torch.bool)
    gone[1::4] = True
    holed = target.clone()
    holed[gone] = task.missing(target[gone].shape).to(target.dtype)
    specs = task.metrics()
    assert task.metric in specs, f"the main metric {task.metric!r} is none of {list(specs)}"
    row = task.constant(holed)
    for name, spec in specs.items():
        values = []
        for rows, labels in ((prediction, holed), (prediction[~gone], target[~gone])):
            metric = spec.build()
            task.update(metric, rows, labels)
            values.append(float(metric.compute()))
        assert values[0] == values[1] or values[0] != values[0], f"metric {name}: {values}: it counts rows without a label"
        metric = spec.build()
        shape = (len(target), *row.shape[1:2], *target.shape[-2:]) if row.ndim == 4 else (len(target), *row.shape[1:])
        task.update(metric, row.expand(shape), holed)
        metric.compute()
    columns = task.table(prediction)
    assert list(columns) == task.names(), f"a table of predictions has columns {list(columns)}, names() says {task.names()}"
    lengths: Mapping[str, int] = {name: len(values) for name, values in columns.items()}
    assert set(lengths.values()) == {len(target)}, f"a table of predictions has columns of {lengths} rows"
