"""The hypernetwork: exact special cases, and what it leaves alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.errors import InputError
from polytask.share.hypernetwork import (
    LSTM,
    MLP,
    Attention,
    Chunks,
    FanOut,
    Heads,
    Hyperfan,
    HyperNetwork,
    LowRank,
    Once,
    PerLayer,
    Tasks,
    Values,
    Zero,
)

STRATEGIES = [Once(), Heads(2), PerLayer(), Chunks(5), Chunks(5, heads=2), LowRank(2)]


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 5)), torch.randn(4, 6)


def cnn() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    return net, torch.randn(4, 3, 8, 8)


def tokens() -> tuple[nn.Module, Tensor]:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), torch.randn(4, 7, 8)


def recurrent() -> tuple[nn.Module, Tensor]:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rnn(x)[0][:, -1]
            return out

    return Last(), torch.randn(4, 6, 3)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"mlp": mlp, "cnn": cnn, "tokens": tokens, "rnn": recurrent}
every_network = pytest.mark.parametrize("network", NETWORKS)


# Special cases


@every_network
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_with_nothing_to_add_it_is_the_plain_network_and_trains_as_that_does(network: str, strategy: Any) -> None:
    """Output weights 0: ``theta(gamma) = theta_0`` for all gamma, with the gradients of the plain network on ``theta_0``."""
    torch.manual_seed(0)
    target, x = NETWORKS[network]()
    plain = copy.deepcopy(target)
    hyper = HyperNetwork(target, Values(1), strategy=strategy, start=Zero())
    for gamma in (0.0, 0.4, 1.0):
        torch.testing.assert_close(hyper(x, gamma), plain(x))
    hyper.generator.requires_grad_(False)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (plain, hyper.target)]
    for gamma in (0.1, 0.9, 0.5):
        for run, optimizer in zip((plain, lambda x, g=gamma: hyper(x, g)), optimizers, strict=True):
            optimizer.zero_grad()
            run(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), hyper.target.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("residual", [False, True])
def test_a_linear_generator_of_one_hot_contexts_is_that_many_separate_networks(residual: bool) -> None:
    """Column C of the matrix is the weights of task C, and an absent task's column has the gradient 0."""
    torch.manual_seed(0)
    hyper = HyperNetwork(mlp()[0], Values(3), MLP(()), residual=residual, start=Hyperfan())
    base = {name: p.detach() for name, p in hyper.target.named_parameters()}
    matrix, x = hyper.generator.last[0].weight, torch.randn(4, 6)
    for task, one_hot in enumerate(torch.eye(3)):
        own = hyper.layout.unflatten(matrix[:, task])
        gains = {entry.names[0] for entry in hyper.layout.entries if entry.gain}
        weights = {name: value + base.get(name, 1.0 if name in gains else 0.0) for name, value in own.items()}
        found = hyper.weights(one_hot)
        for name, value in weights.items():
            torch.testing.assert_close(found[name][0], value)
    hyper(x, torch.eye(3)[1]).square().sum().backward()
    assert [bool(column.any()) for column in matrix.grad.T] == [False, True, False]


def test_a_constant_context_is_an_ordinary_network_in_other_parameters() -> None:
    """A step on the last layer's weights is a step of ``|features|^2`` times its size on the weights themselves."""
    torch.manual_seed(0)
    hyper = HyperNetwork(mlp()[0], Values(2), MLP((8,)), residual=False, start=Hyperfan()).double()
    x, gamma = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64)
    features = hyper.generator.body(gamma[None, None])[0, 0].detach()
    plain = hyper.network(gamma)
    plain(x).square().sum().backward()
    hyper(x, gamma).square().sum().backward()
    last = hyper.generator.last[0]
    with torch.no_grad():
        last.weight -= 0.01 * last.weight.grad
        for parameter in plain.parameters():
            parameter -= 0.01 * features.square().sum() * parameter.grad
    for name, value in hyper.weights(gamma).items():
        torch.testing.assert_close(value[0], plain.get_parameter(name).data)


def test_the_gradient_of_a_generator_of_three_parameters() -> None:
    """``dL/dPhi = (dL/dTheta)(dTheta/dPhi)`` by finite differences: one hidden unit without bias, two weights."""
    torch.manual_seed(0)
    hyper = HyperNetwork(nn.Linear(1, 1), Values(1), MLP((1,), "tanh"), start=FanOut()).double()
    hyper.generator.body.layers[0].bias = None
    parameters = [hyper.generator.body.layers[0].weight, hyper.generator.last[0].weight]
    assert sum(p.numel() for p in hyper.generator.parameters()) == 3
    x = torch.randn(5, 1, dtype=torch.float64)

    def loss(*values: Tensor) -> Tensor:
        names = ["generator.body.layers.0.weight", "generator.last.0.weight"]
        out = torch.func.functional_call(hyper, dict(zip(names, values, strict=True)), (x, 0.7))
        return F.mse_loss(out, x.square())  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in parameters))


@every_network
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_a_network_for_a_condition_is_plain_and_gives_the_same(network: str, strategy: Any, residual: bool) -> None:
    torch.manual_seed(0)
    target, x = NETWORKS[network]()
    names = [name for name, _ in target.named_parameters()]
    hyper = HyperNetwork(target, Values(2), strategy=strategy, residual=residual, start=Hyperfan()).eval()
    plain = hyper.network([0.2, 0.7])
    torch.testing.assert_close(plain(x), hyper(x, [0.2, 0.7]))
    assert [name for name, _ in plain.named_parameters()] == names and type(plain) is type(target)
    before = plain(x)
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter += 1
    assert torch.equal(plain(x), before)
    with pytest.raises(InputError, match="2 conditions, expected one"):
        hyper.network(torch.rand(2, 2))


# What is predicted, and what is left alone


@every_network
@pytest.mark.parametrize("architecture", [MLP((9,)), LSTM(8), Attention(8, heads=2)], ids=str)
def test_every_parameter_is_trained_and_none_twice(network: str, architecture: Any) -> None:
    torch.manual_seed(0)
    target, x = NETWORKS[network]()
    hyper = HyperNetwork(target, Values(2), architecture, PerLayer(4), residual=False, start=Hyperfan(biases=True))
    assert list(target.parameters()) == []  # an optimizer of the target would train nothing
    hyper(x, [0.1, 0.6]).square().sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())
    with torch.no_grad():
        assert all(float(p.grad.abs().sum()) > 0 for p in hyper.generator.last.parameters())


def test_only_what_the_pattern_says_is_predicted() -> None:
    torch.manual_seed(0)
    target, x = mlp()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    hyper = HyperNetwork(target, Values(1), predict=["1.*", "*.bias"], residual=False, start=Hyperfan())
    assert [name for name, _ in hyper.target.named_parameters()] == ["0.weight", "3.weight"]
    assert list(hyper.weights(0.5)) == ["0.bias", "1.weight", "1.bias", "3.bias"]
    torch.testing.assert_close(hyper.weights(0.1)["1.weight"], torch.ones(1, 10))  # a gain begins as 1
    plain = hyper.network(0.5)
    assert all(torch.equal(plain.state_dict()[name], before[name]) for name in ("0.weight", "3.weight"))
    hyper(x, 0.5).sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())


def test_from_a_trained_network_its_names_and_buffers_stay() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.layer(x)
            return out

    target = Counted()
    hyper = HyperNetwork(target, Values(1))
    assert hyper.target is target and {"target.layer.weight", "target.calls"} <= set(hyper.state_dict())
    for _ in range(3):
        hyper(torch.randn(2, 3), 0.5)
    assert float(target.calls) == 3


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.write.weight = self.read.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.write(self.read(x))
            return out

    torch.manual_seed(0)
    x = torch.tensor([0, 3])
    for residual in (True, False):
        hyper = HyperNetwork(Tied(), Values(1), residual=residual, start=Hyperfan())
        assert hyper.layout.numel == 15
        table = hyper.weights(0.5)["read.weight"][0]
        torch.testing.assert_close(hyper(x, 0.5), table[x] @ table.T)
        plain = hyper.network(0.5)
        assert plain.read.weight is plain.write.weight


def test_saved_copied_and_loaded() -> None:
    torch.manual_seed(0)
    target, x = mlp()
    for residual in (True, False):
        hyper = HyperNetwork(copy.deepcopy(target), Values(1), strategy=Chunks(3), residual=residual, start=Hyperfan())
        twin = copy.deepcopy(hyper)
        again = HyperNetwork(copy.deepcopy(target), Values(1), strategy=Chunks(3), residual=residual, start=Hyperfan())
        assert not torch.allclose(again(x, 0.5), hyper(x, 0.5))
        again.load_state_dict(hyper.state_dict())
        for other in (twin, again):
            assert torch.equal(other(x, 0.5), hyper(x, 0.5))


def test_the_same_seed_gives_the_same_hypernetwork() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(HyperNetwork(mlp()[0], Tasks(["a", "b"]), strategy=Chunks(4), start=FanOut()).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# Types, compilation, description, errors


def test_weights_are_made_in_float32_under_autocast_and_have_the_targets_type() -> None:
    torch.manual_seed(0)
    target, x = mlp()
    hyper = HyperNetwork(target, Values(1), start=Hyperfan())
    plain = hyper(x, 0.5)
    seen: list[torch.dtype] = []
    hyper.generator.last[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = hyper(x, 0.5)
    assert mixed.dtype == torch.bfloat16 and seen == [torch.float32]
    torch.testing.assert_close(mixed.float(), plain, atol=0.1, rtol=0.1)
    for residual in (True, False):
        half = HyperNetwork(mlp()[0].to(torch.bfloat16), Values(1), residual=residual, start=Hyperfan())
        assert {p.dtype for p in half.generator.parameters()} == {torch.float32}
        assert {w.dtype for w in half.weights(0.5).values()} == {torch.bfloat16}
        assert half(x.to(torch.bfloat16), 0.5).dtype == torch.bfloat16
        assert half.to(torch.float32)(x, 0.5).dtype == torch.float32
        assert half.double()(x.double(), 0.5).dtype == torch.float64


def test_one_compilation_for_all_values() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    target, x = mlp()
    hyper, graphs = HyperNetwork(target, Values(1), strategy=PerLayer(), encode="cos_sin", start=Hyperfan()), []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(hyper, backend=count, fullgraph=True)
    for gamma in torch.rand(4, 1):
        torch.testing.assert_close(compiled(x, gamma), hyper(x, gamma))
    assert len(graphs) == 1


@pytest.mark.soak
def test_compiled_with_tasks_and_exported_for_one() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    target, x = mlp()
    hyper = HyperNetwork(target, Tasks(["a", "b"]), start=Hyperfan())
    compiled = torch.compile(hyper, backend="eager")
    for scope in ("a", "b"):
        with pt.task_scope(scope):
            torch.testing.assert_close(compiled(x), hyper(x))
    with pt.task_scope(["a", "b"], torch.tensor([0, 1, 1, 0])):
        torch.testing.assert_close(compiled(x), hyper(x))
    with pt.task_scope("b"):
        program = torch.export.export(hyper, (x,))
        expected = hyper(x)
    torch.testing.assert_close(program.module()(x), expected)


def test_it_describes_its_five_choices() -> None:
    target = nn.Linear(4, 3)
    hyper = HyperNetwork(target, Tasks(["a", "b"]), MLP((7,)), Chunks(2))
    assert hyper.describe() == {
        "input": "task-conditioned",
        "output": "chunk-wise: 2 x 8 numbers for 15 weights",
        "variability of inputs": "static",
        "variability of outputs": "static",
        "architecture": "MLP(hidden=(7,), activation='relu', dropout=0.0, spectral=False)",
    }
    from polytask.share.hypernetwork import Example, Noise, Support

    for context, kind, variability in (
        (Noise(), "noise-conditioned", "static"),
        (Support(nn.Linear(4, 2), 2), "data-conditioned", "static"),
        (Example(nn.Linear(4, 2), 2), "data-conditioned", "dynamic"),
    ):
        said = HyperNetwork(nn.Linear(4, 3), context).describe()
        assert (said["input"], said["variability of inputs"]) == (kind, "dynamic")
        assert said["variability of outputs"] == variability


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match="module '1' is BatchNorm1d"):
        HyperNetwork(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), Values())
    with pytest.raises(InputError, match="unknown encoding 'cossin': did you mean 'cos_sin'"):
        HyperNetwork(nn.Linear(2, 2), Values(), encode="cossin")
    with pytest.raises(InputError, match="without residual makes all weights 0"):
        HyperNetwork(nn.Linear(2, 2), Values(), residual=False)
    with pytest.raises(InputError, match="spectral norm"):
        HyperNetwork(nn.Linear(2, 2), Values(), MLP(spectral=True))
    with pytest.raises(InputError, match="predict 'weights'"):
        HyperNetwork(nn.Linear(2, 2), Values(), predict="weights")


def test_it_fits_a_network_for_every_phase_end_to_end() -> None:
    """One target learns ``sin(x + phase)`` for all phases: far better than any one network could."""
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    hyper = HyperNetwork(target, Values(1), MLP((32,)), encode="cos_sin", start=FanOut())
    optimizer = torch.optim.Adam(hyper.parameters(), lr=5e-3)
    x = torch.linspace(-2, 2, 40)[:, None]
    for _, gamma in zip(range(400), itertools.cycle(torch.rand(50, 1))):
        optimizer.zero_grad()
        F.mse_loss(hyper(x, gamma), torch.sin(x + 3 * gamma)).backward()
        optimizer.step()
    errors = [float(F.mse_loss(hyper(x, g), torch.sin(x + 3 * g))) for g in (0.05, 0.5, 0.95)]
    assert max(errors) < 0.05
