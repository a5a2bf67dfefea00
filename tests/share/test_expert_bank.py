"""Expert banks: every way of evaluation is the loop over tokens and their experts."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share import ExpertBank, Gate, Gates, top_gates
from polytask.share.expert_bank import Execution

WAYS = get_args(Execution)
SIZES = {"width": 6, "hidden": 9, "experts": 5}

every_way = pytest.mark.parametrize("way", WAYS)


def bank(way: Execution = "auto", **sizes: int) -> ExpertBank:
    torch.manual_seed(0)
    return ExpertBank(**(SIZES | sizes), execution=way).double()


def some(k: int = 2, rows: int = 7, experts: int = 5) -> tuple[Tensor, Gates]:
    torch.manual_seed(1)
    logits = torch.randn(rows, experts, dtype=torch.float64, requires_grad=True)
    return torch.randn(rows, 6, dtype=torch.float64, requires_grad=True), top_gates(logits, k)


def loop(bank: ExpertBank, x: Tensor, gates: Gates) -> Tensor:
    rows = []
    for token, values, experts in zip(x, *gates, strict=True):
        row = torch.zeros_like(token)
        for value, e in zip(values, experts.tolist(), strict=True):
            inner = F.gelu(bank.hidden[e] @ token + bank.hidden_bias[e])
            row = row + value * (inner @ bank.output[e] + bank.output_bias[e])
        rows.append(row)
    return torch.stack(rows)


@every_way
@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_is_the_loop_over_tokens_with_its_gradients(way: Execution, k: int) -> None:
    made, (x, gates) = bank(way), some(k)
    inputs = [x, gates.values, *made.parameters()]
    results = []
    for run in (made, lambda *given: loop(made, *given)):
        y = run(x, gates)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@every_way
def test_one_expert_is_its_network(way: Execution) -> None:
    made, gate = bank(way, experts=1), Gate(nn.Linear(6, 1), 1)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = F.gelu(x @ made.hidden[0].mT + made.hidden_bias[0]) @ made.output[0] + made.output_bias[0]
    torch.testing.assert_close(made(x, gate(x)), expected)


@every_way
def test_an_expert_that_nobody_chose_has_a_gradient_of_zero(way: Execution) -> None:
    made, (x, gates) = bank(way), some()
    only = Gates(gates.values, torch.tensor([1, 3]).expand(7, 2))
    made(x, only).sum().backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert [bool(g.any()) for g in parameter.grad] == [False, True, False, True, False]


@every_way
def test_any_leading_shape_and_no_tokens_at_all(way: Execution) -> None:
    made, (x, gates) = bank(way), some(rows=6)
    folded = made(x.view(2, 3, 6), Gates(*(part.view(2, 3, 2) for part in gates)))
    torch.testing.assert_close(folded.view(6, 6), made(x, gates))
    none = made(x[:0], Gates(*(part[:0] for part in gates)))
    none.sum().backward()
    assert none.shape == (0, 6) and all(p.grad is not None and not p.grad.any() for p in made.parameters())


@every_way
def test_half_precision_by_autocast_and_by_weights(way: Execution) -> None:
    made, (x, gates) = bank(way).float(), some(rows=40)
    x, gates = x.detach().float(), Gates(gates.values.detach().float(), gates.experts)
    plain = made(x, gates)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = made(x, gates)
    automatic.float().sum().backward()
    half = made(x.bfloat16(), gates)
    assert automatic.dtype == half.dtype == torch.bfloat16
    for low in (automatic, half):
        torch.testing.assert_close(low.float(), plain, atol=0.02, rtol=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())


def test_the_way_follows_the_shapes() -> None:
    many, few = bank(width=64, hidden=128, experts=8), bank()
    x, gates = some()
    assert few._execution(x, gates) == "dense"
    rows = torch.empty(4096, 64)
    chosen = Gates(torch.empty(4096, 2), torch.empty(4096, 2))
    assert many._execution(rows, chosen) == "sorted"
    assert many._execution(rows, Gates(torch.empty(4096, 8), torch.empty(4096, 8))) == "dense"
    assert bank("expert-major")._execution(x, gates) == "expert-major"


def test_each_expert_begins_as_a_pair_of_linear_layers() -> None:
    made = bank(width=64, hidden=256, experts=4)
    bounds = {"hidden": 64, "hidden_bias": 64, "output": 256, "output_bias": 256}
    for name, inputs in bounds.items():
        values = made.get_parameter(name)
        assert float(values.abs().max()) == pytest.approx(inputs**-0.5, rel=0.05)
    assert {name: tuple(p.shape) for name, p in made.state_dict().items()} == {
        "hidden": (4, 256, 64),
        "hidden_bias": (4, 256),
        "output": (4, 256, 64),
        "output_bias": (4, 64),
    }


def test_dense_compiles_whole_and_the_others_where_they_can() -> None:
    made, (x, gates) = bank("dense"), some()
    expected = made(x, gates)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(made, backend="eager", fullgraph=True)(x, gates), expected)
    for way in ("sorted", "expert-major"):
        torch.compiler.reset()
        made.execution = way
        whole = torch.compile(made, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            whole(x, gates)
        torch.compiler.reset()
        parts = torch.compile(made, backend="eager")
        torch.testing.assert_close(parts(x, gates), expected)


def test_exported_code_evaluates_all_experts() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate(nn.Linear(64, 8, bias=False), 8, 2)
            self.bank = ExpertBank(64, 128, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.bank(x, self.gate(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    whole, x = Whole().eval(), torch.randn(4096, 64)
    assert whole.bank._execution(x, whole.gate(x)) == "sorted"
    exported = torch.export.export(whole, (x,)).module()
    torch.testing.assert_close(exported(x), whole(x), atol=1e-5, rtol=1e-4)


def test_copies_and_checkpoints() -> None:
    made, (x, gates) = bank(), some()
    again = bank(experts=5)
    nn.init.zeros_(again.hidden)
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(copy.deepcopy(again)(x, gates), made(x, gates))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="unknown execution 'sort': did you mean 'sorted'"):
        bank("sort")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 experts"):
        bank(experts=0)
    x, gates = some()
    with pytest.raises(InputError, match=r"gates of shape \(7, 2\) for inputs of shape \(6, 6\)"):
        bank()(x[:6], gates)
