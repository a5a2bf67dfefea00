"""Routed LoRA: the sum over experts, written out; whose gates; and what stays in which precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from polytask.share.gate import routing_logits
from polytask.share.routed_lora import RoutedLoRAPart, SoftmaxRouter
from polytask.share.smora import SigmoidRouter


class Constant(nn.Module):
    """A router that gives every token the same gates."""

    def __init__(self, gates: list[float]) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.tensor(gates))

    def forward(self, x: Tensor) -> Tensor:
        return self.gates.expand(*x.shape[:-1], -1)


def made(one_a: bool = False, gates: tuple[float, ...] = (0.5, 2.0, 0.0)) -> tuple[nn.Linear, RoutedLoRAPart]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    part = RoutedLoRAPart(layer, len(gates), 2, Constant(list(gates)), scaling=3.0, one_a=one_a)
    nn.init.normal_(part.b)
    return layer, part


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("one_a", [False, True])
def test_the_sum_over_experts(shape: tuple[int, ...], one_a: bool) -> None:
    layer, part = made(one_a)
    x = torch.randn(shape)
    wanted = layer(x)
    for expert, gate in enumerate((0.5, 2.0, 0.0)):
        a = part.a[0 if one_a else expert]
        wanted = wanted + 3.0 * gate * (x @ a.T @ part.b[expert])
    torch.testing.assert_close(part(layer, x), wanted)


def test_an_expert_with_a_gate_of_zero_learns_nothing() -> None:
    layer, part = made()
    part(layer, torch.randn(4, 6)).square().sum().backward()
    assert part.a.grad is not None and part.b.grad is not None
    assert not part.a.grad[2].any() and not part.b.grad[2].any()
    assert part.a.grad[:2].abs().amin() > 0 and part.b.grad[:2].abs().amin() > 0


def test_what_it_begins_with() -> None:
    """``A`` is uniform within ``1 / sqrt(in)``, as of `nn.Linear`, and ``B`` is 0."""
    part = RoutedLoRAPart(nn.Linear(400, 5), 8, 4, SoftmaxRouter(400, 8, 2), 1.0)
    assert 0.99 / 20 < part.a.abs().max() <= 1 / 20
    assert float(part.a.detach().std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.03)
    assert not part.b.any()
    weight = part.get_parameter("router.weight")
    assert weight.shape == (8, 400) and 0.98 / 20 < weight.abs().max() <= 1 / 20


def test_the_choice_is_made_in_single_precision() -> None:
    """In bfloat16 two logits that are a thousandth apart are the same."""
    x, weight = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.001], [1.0, 0.0]])
    expected = torch.tensor([[1.001, 1.0]])
    torch.testing.assert_close(routing_logits(x.bfloat16(), weight), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(routing_logits(x, weight), expected)
    half = routing_logits(x.bfloat16(), weight.bfloat16())
    assert half.dtype == torch.float32 and half[0, 0] > half[0, 1]
    assert routing_logits(x.double(), weight.double()).dtype == torch.float64


def test_a_layer_in_half_precision_has_factors_in_single() -> None:
    layer, part = made()
    low = copy.deepcopy(layer).bfloat16()
    lowered = RoutedLoRAPart(low, 3, 2, Constant([0.5, 2.0, 0.0]), scaling=3.0)
    assert {p.dtype for p in lowered.parameters()} == {torch.float32}
    lowered.load_state_dict(part.state_dict())
    x = torch.randn(4, 6)
    output = lowered(low, x.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), part(layer, x), atol=0.1, rtol=0.05)


def test_dropout_is_of_the_adapter_alone_and_while_training() -> None:
    layer, part = made()
    part.dropout = 0.5
    x = torch.randn(4, 6)
    assert not torch.equal(part(layer, x), part(layer, x))
    part.eval()
    torch.testing.assert_close(part(layer, x), made()[1].eval()(layer, x))


def test_router_and_factors_see_the_same_dropout() -> None:
    class Watching(Constant):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return super().forward(x)

    layer, _ = made()
    router = Watching([0.5, 2.0])
    part = RoutedLoRAPart(layer, 2, 2, router, scaling=3.0, dropout=0.5)
    nn.init.normal_(part.b)
    x = torch.randn(4, 6)
    output = part(layer, x)
    kept = router.seen != 0
    assert not kept.all() and torch.equal(router.seen[kept], 2 * x[kept])
    wanted = layer(x)  # the layer's own input is whole
    for expert, gate in enumerate((0.5, 2.0)):
        wanted = wanted + 3.0 * gate * (router.seen @ part.a[expert].T @ part.b[expert])
    torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_pass_without_data(k: int) -> None:
    """On the meta device, where what a pass costs is counted."""
    with torch.device("meta"):
        layer = nn.Linear(6, 5)
        for router in (SoftmaxRouter(6, 3, k), SigmoidRouter(6, 3, k)):
            assert RoutedLoRAPart(layer, 3, 2, router, scaling=1.0)(layer, torch.randn(2, 7, 6)).shape == (2, 7, 5)


# The router of a softmax


def test_gates_add_up_to_one() -> None:
    torch.manual_seed(0)
    router, x = SoftmaxRouter(6, 5, 2), torch.randn(3, 7, 6)
    gates = router(x)
    assert gates.shape == (3, 7, 5) and ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 7))
    chances = (x @ router.weight.T).softmax(-1)
    best = chances.topk(2, -1)
    torch.testing.assert_close(gates.gather(-1, best.indices), best.values / best.values.sum(-1, keepdim=True))
    every = SoftmaxRouter(6, 5, 5)
    torch.testing.assert_close(every(x), (x @ every.weight.T).softmax(-1))


def test_the_choice_of_one_is_hard_but_while_training() -> None:
    """A gate of 1 has no gradient; relaxed, the router learns which expert to take."""
    torch.manual_seed(0)
    router, x = SoftmaxRouter(6, 5, 1), torch.randn(200, 6)
    router.eval()
    gates = router(x)
    assert torch.equal(gates, nn.functional.one_hot((x @ router.weight.T).argmax(-1), 5).float())
    router.train()
    relaxed = router(x)
    torch.testing.assert_close(relaxed.sum(-1), torch.ones(200))
    assert relaxed.amax(-1).mean() > 0.9 and not torch.equal(relaxed, router(x))
    with torch.no_grad():
        router.weight.zero_()
    wanted = (x[:, 0] > 0).long()  # which of the first two experts each token needs
    optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (1 - router(x).gather(1, wanted[:, None])).mean().backward()
        optimizer.step()
    router.eval()
    assert (router(x).argmax(1) == wanted).float().mean() > 0.9
