"""Inner products and weighted sums of task gradients against explicit Jacobians, on every kind of network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.balance import TaskGradients

Losses = Callable[[], dict[str, Tensor]]
Problem = tuple[nn.Module, Losses]


def _heads(width: int, count: int = 3) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, 2) for _ in range(count))


def _of(shared: nn.Module, features: Callable[[], Tensor], heads: nn.ModuleList) -> Losses:
    def losses() -> dict[str, Tensor]:
        z = features()
        return {f"t{i}": head(z).square().mean() + head(z).mean() * i for i, head in enumerate(heads)}

    return losses


def mlp() -> Problem:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(9, 5)
    return net, _of(net, lambda: net(x), _heads(4))


def wide_mlp() -> Problem:
    net = nn.Sequential(nn.Linear(20, 70), nn.ReLU(), nn.Linear(70, 60), nn.ReLU())
    x = torch.randn(3, 20)  # few rows: inner products by rows
    return net, _of(net, lambda: net(x), _heads(60))


def cnn() -> Problem:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2),
        nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    x = torch.randn(3, 2, 8, 8)
    return net, _of(net, lambda: net(x), _heads(4))


def one_dimension() -> Problem:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 5)
    )
    x = torch.randn(4, 2, 8)
    return net, _of(net, lambda: net(x), _heads(5))


def transformer() -> Problem:
    embed = nn.Embedding(11, 8, padding_idx=0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    net = nn.ModuleList([embed, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)])
    ids = torch.randint(0, 11, (4, 6))
    return net, _of(net, lambda: net[1](embed(ids)).mean(1), _heads(8))


def tied() -> Problem:
    """An embedding that is the output layer, too, and a layer that is used three times."""
    embed, again = nn.Embedding(7, 6), nn.Linear(6, 6)
    net = nn.ModuleList([embed, again])
    ids = torch.randint(0, 7, (5, 3))

    def features() -> Tensor:
        x = embed(ids).mean(1)
        for _ in range(3):
            x = torch.tanh(again(x))
        return F.linear(x, embed.weight)

    return net, _of(net, features, _heads(7))


def lstm() -> Problem:
    net = nn.LSTM(4, 5, batch_first=True)
    x = torch.randn(3, 6, 4)
    return net, _of(net, lambda: net(x)[0][:, -1], _heads(5))


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(4, 6), nn.Parameter(torch.randn(6))
        self.matrix, self.normed = nn.Parameter(torch.randn(6, 5)), nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale
        x = torch.relu(x @ self.matrix) + self.scale.sum()
        return self.normed(x) + F.linear(x, self.first.weight[:5, :3].repeat(1, 2)[:, :5])


def raw() -> Problem:
    net = Raw()
    x = torch.randn(7, 4)
    return net, _of(net, lambda: net(x), _heads(5))


def two_scales() -> Problem:
    """Tasks branch off at two depths."""
    net = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 5)])
    heads, early, x = _heads(5), nn.Linear(6, 1), torch.randn(6, 4)

    def losses() -> dict[str, Tensor]:
        a = torch.relu(net[0](x))
        b = torch.relu(net[1](a))
        c = torch.relu(net[2](b))
        mixed = {f"t{i}": (head(c).mean() + early(a).mean()).square() for i, head in enumerate(heads)}
        return mixed | {"early": early(a).square().mean(), "both": (early(a).mean() * b.mean()).exp()}

    return net, losses


def separate_batches() -> Problem:
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
    heads, inputs = _heads(40), [torch.randn(2 + i, 30) for i in range(3)]

    def losses() -> dict[str, Tensor]:
        return {f"t{i}": head(net(x)).square().mean() for i, (head, x) in enumerate(zip(heads, inputs, strict=True))}

    return net, losses


def partly_used() -> Problem:
    """Experts of which each task uses some, and a task that uses none."""
    net = nn.ModuleList([nn.Linear(4, 5) for _ in range(3)])
    head, x = nn.Linear(4, 1), torch.randn(6, 4)

    def losses() -> dict[str, Tensor]:
        a, b, c = (torch.tanh(layer(x)) for layer in net)
        return {"ab": (a * b).mean(), "bc": (b + c).square().mean(), "c": c.mean(), "none": head(x).square().mean()}

    return net, losses


def frozen() -> Problem:
    net, losses = mlp()
    net[2].weight.requires_grad_(False)
    net[0].bias.requires_grad_(False)
    return net, losses


def checkpointed() -> Problem:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 4))
    x = torch.randn(9, 5, requires_grad=True)
    return net, _of(net, lambda: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False), _heads(4))


def forty_tasks() -> Problem:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    x = torch.randn(9, 5)
    return net, _of(net, lambda: net(x), _heads(4, 40))


def one_task() -> Problem:
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    x = torch.randn(9, 5)
    return net, _of(net, lambda: net(x), _heads(4, 1))


PROBLEMS = [
    mlp, wide_mlp, cnn, one_dimension, transformer, tied, lstm, raw, two_scales, separate_batches, partly_used, frozen,
    checkpointed, forty_tasks, one_task,
]  # fmt: skip


@pytest.fixture(autouse=True)
def double():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def explicit(losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
    rows = []
    for loss in losses.values():
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(shared, grads, strict=True)]
            )
        )
    return torch.stack(rows)


def written(shared: list[nn.Parameter]) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in shared])


@pytest.mark.parametrize("hold", [False, True], ids=["let go", "held"])
@pytest.mark.parametrize("small", [True, False], ids=["at once", "in pieces"])
@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_they_are_those_of_the_explicit_jacobian(make, hold: bool, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:  # the path of large networks
        monkeypatch.setattr("polytask.balance.engine.passes.SMALL", 0)
        monkeypatch.setattr("polytask.balance.engine.passes.SEGMENT", 0)
    net, compute = make()
    shared = [p for p in net.parameters() if p.requires_grad]
    losses = compute()
    jacobian = explicit(losses, shared)
    own = {}
    for loss in losses.values():
        loss.backward(retain_graph=True)
    everything = [p for p in _leaves(losses) if all(p is not q for q in shared)]
    own = {id(p): p.grad.clone() for p in everything if p.grad is not None}
    for p in (*shared, *everything):
        p.grad = None

    gradients = TaskGradients(list(net.parameters()), hold=hold)
    gradients.add(losses)
    torch.testing.assert_close(gradients.gramian(), jacobian @ jacobian.T, rtol=1e-9, atol=1e-12)
    assert gradients.losses == {name: pytest.approx(loss.item()) for name, loss in losses.items()}
    if hold:
        torch.testing.assert_close(gradients.jacobian(), jacobian)
    weights = torch.randn(len(losses))
    gradients.write(weights)
    torch.testing.assert_close(written(shared), weights @ jacobian)
    for p in everything:
        torch.testing.assert_close(p.grad, own.get(id(p)))


def _leaves(losses: dict[str, Tensor]) -> list[Tensor]:
    found, stack, seen = {}, [loss.grad_fn for loss in losses.values()], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        stack += [child for child, _ in node.next_functions]
    return list(found.values())


@pytest.mark.parametrize("make", [mlp, wide_mlp, tied, separate_batches, lstm], ids=lambda make: make.__name__)
def test_several_batches_give_what_one_large_batch_gives(make) -> None:
    net, compute = make()
    shared = list(net.parameters())
    first = compute()
    second = {name: loss.tanh() for name, loss in compute().items() if name != "t0"}  # a task may be missing in a batch
    jacobian = explicit({name: (loss + second.get(name, 0)) / 2 for name, loss in first.items()}, shared)
    for p in shared:
        p.grad = None
    gradients = TaskGradients(shared, batches=2)
    for losses in (first, second):
        gradients.add(losses, lambda loss: (loss * 1024 / 2).backward())
    torch.testing.assert_close(gradients.gramian(), jacobian @ jacobian.T)
    weights = torch.randn(len(first))
    gradients.write(weights)
    torch.testing.assert_close(written(shared), 1024 * (weights @ jacobian))  # a loss scale is the optimizer's to undo
    with pytest.raises(ValueError, match="2 batches are expected"):
        gradients.add(first)


def test_a_network_that_was_compiled() -> None:
    net, compute = mlp()
    jacobian = explicit(compute(), list(net.parameters()))
    x, heads = torch.randn(9, 5), _heads(4)
    compiled = torch.compile(net, backend="aot_eager")
    with torch._functorch.config.patch(donated_buffer=False):
        losses = _of(net, lambda: compiled(x), heads)()
        gradients = TaskGradients(list(net.parameters()))
        gradients.add(losses)
        jacobian = explicit(losses, list(net.parameters()))
        torch.testing.assert_close(gradients.gramian(), jacobian @ jacobian.T)
        gradients.write(torch.ones(3))
    torch.testing.assert_close(written(list(net.parameters())), jacobian.sum(0))


@pytest.mark.parametrize("make", [mlp, cnn, transformer, tied], ids=lambda make: make.__name__)
def test_in_mixed_precision_they_are_right_to_that_precision(make) -> None:
    torch.set_default_dtype(torch.float32)
    net, compute = make()
    shared = list(net.parameters())
    jacobian = explicit(compute(), shared)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = compute()
    gradients = TaskGradients(shared)
    gradients.add(losses)
    gramian = jacobian @ jacobian.T
    size = gramian.diagonal().sqrt()
    error = (gradients.gramian() - gramian) / size[:, None] / size
    assert float(error.abs().max()) < 0.03
    gradients.write(torch.ones(len(losses)))
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in shared)


def test_what_torch_cannot_batch_is_taken_one_task_after_the_other() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            assert float(grad.sum()) is not None  # reads a number, which no batch of tasks has
            return 2 * ctx.saved_tensors[0] * grad

    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    x, heads = torch.randn(5, 3), _heads(4)
    losses = _of(net, lambda: net[1](Square.apply(net[0](x))), heads)()
    shared = list(net.parameters())
    gradients = TaskGradients(shared)
    gradients.add(losses)
    jacobian = explicit(losses, shared)
    torch.testing.assert_close(gradients.gramian(), jacobian @ jacobian.T)


def test_no_shared_parameter_at_all() -> None:
    head = nn.Linear(3, 1)
    gradients = TaskGradients([])
    gradients.add({"a": head(torch.randn(4, 3)).mean(), "b": torch.tensor(1.0)})
    assert torch.equal(gradients.gramian(), torch.zeros(2, 2))
    gradients.write(torch.ones(2))
    assert head.weight.grad is not None
