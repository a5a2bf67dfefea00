"""SMoRA: closed forms, what it reduces to, and a bias that moves once a pass, the same in all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.checkpoint import checkpoint

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import LoRA, SMoRA, insert
from polytask.share.smora import SigmoidRouter


def made(method: SMoRA, inputs: int = 6, outputs: int = 5) -> tuple[nn.Linear, Any]:
    """A layer with factors away from their start, and its part."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    part: Any = insert(layer, method, ["all"], where="").parts[""]
    nn.init.normal_(part.b)
    return layer, part


def as_dense_lora(layer: nn.Linear, part: Any, alpha: float) -> nn.Linear:
    """The same layer with a LoRA of all the ranks."""
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "." not in name})
    rank = part.a.shape[0] * part.a.shape[1]
    lora: Any = insert(plain, LoRA(rank, alpha), ["all"], where="").parts[""]
    with torch.no_grad():
        lora.of("all").a.copy_(part.a.flatten(0, 1))
        lora.of("all").b.copy_(part.b.flatten(0, 1).T)
    return plain


@pytest.mark.parametrize("bias_in_gates", [True, False])
def test_each_token_by_itself(bias_in_gates: bool) -> None:
    """The definition, with the ranks that are not chosen left out."""
    layer, part = made(SMoRA(rank=8, active=3, alpha=6, balance=0.1, bias_in_gates=bias_in_gates))
    part.router.steps.copy_(torch.tensor([3, 0, -2, 1, 0, 5, 0, -1]))
    bias = 0.1 * part.router.steps
    x = torch.randn(2, 4, 6)
    output = layer.eval()(x).view(8, 5)
    for i, token in enumerate(x.view(8, 6)):
        scores = (part.router.weight @ token).sigmoid()
        chosen = (scores + bias).argsort(descending=True)[:3]
        values = (scores + bias if bias_in_gates else scores)[chosen]
        wanted = layer.weight @ token + layer.bias
        for value, rank in zip(values, chosen.tolist(), strict=True):
            gate = 3 * value / values.sum()
            wanted = wanted + 6 / 3 * gate * part.b[rank, 0] * (part.a[rank, 0] @ token)
        torch.testing.assert_close(output[i], wanted)


def test_all_ranks_with_equal_scores_are_lora() -> None:
    layer, part = made(SMoRA(rank=8, active=8, alpha=4))
    nn.init.zeros_(part.router.weight)
    plain, x = as_dense_lora(layer, part, 4), torch.randn(7, 6)
    assert torch.equal(part.router(x), torch.ones(7, 8))
    with task_scope("all"):
        torch.testing.assert_close(layer(x), plain(x))


def test_one_expert_of_all_ranks_is_lora_whatever_the_router() -> None:
    layer, part = made(SMoRA(rank=8, active=8, partition=8, alpha=4))
    plain, x = as_dense_lora(layer, part, 4), torch.randn(7, 6)
    with task_scope("all"):
        torch.testing.assert_close(layer(x), plain(x))
    assert part.router.weight.shape == (1, 6)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 3), st.booleans())
def test_gates_are_positive_and_add_up_to_k(experts: int, k: int, spread: float, bias_in_gates: bool) -> None:
    k = min(k, experts)
    torch.manual_seed(experts)
    router = SigmoidRouter(4, experts, k, 0.01, bias_in_gates).eval()
    router.steps.copy_((100 * spread * torch.randn(experts)).long())  # far enough below -1 too
    gates = router(10 * torch.randn(9, 4))
    assert gates.shape == (9, experts) and bool((gates >= 0).all())
    assert ((gates > 0).sum(1) == k).all()
    torch.testing.assert_close(gates.sum(1), torch.full((9,), float(k)))


def test_experts_of_several_ranks_stay_whole() -> None:
    """With unequal biases too a block's ranks have one gate."""
    layer, part = made(SMoRA(rank=12, active=6, partition=3, alpha=6, balance=0.1))
    part.router.steps.copy_(torch.tensor([4, -3, 1, 0]))
    x = torch.randn(5, 6)
    gates = part.router.eval()(x)
    assert gates.shape == (5, 4) and ((gates > 0).sum(1) == 2).all()
    torch.testing.assert_close(3 * gates.sum(1), torch.full((5,), 6.0))  # over ranks it is k again
    wanted = nn.functional.linear(x, layer.weight, layer.bias)
    for expert in range(4):
        wanted = wanted + 6 / 6 * gates[:, [expert]] * (x @ part.a[expert].T @ part.b[expert])
    torch.testing.assert_close(layer.eval()(x), wanted)


def test_what_it_begins_with() -> None:
    """``G`` and ``A`` uniform within ``1 / sqrt(in)``, as of `nn.Linear`, ``B`` and the bias 0."""
    torch.manual_seed(0)
    part: Any = insert(nn.Linear(400, 300), SMoRA(), ["all"], where="").parts[""]
    for tensor in (part.a, part.router.weight):
        assert 0.99 / 20 < tensor.abs().max() <= 1 / 20
        assert float(tensor.detach().std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.03)
    assert part.a.shape == (64, 1, 400) and part.router.weight.shape == (64, 400)
    assert not part.b.any() and not part.router.bias.any()


# Gradients


def test_what_a_token_does_not_choose_it_does_not_train() -> None:
    layer, part = made(SMoRA(rank=8, active=2))
    token = torch.randn(1, 6)
    chosen = part.router.eval()(token)[0] > 0
    layer(token).square().sum().backward()
    for tensor in (part.a, part.b, part.router.weight):
        moved = tensor.grad.flatten(1).abs().amax(1) > 0
        assert torch.equal(moved, chosen)


def test_no_gradient_and_no_optimizer_reaches_the_bias() -> None:
    _, part = made(SMoRA(rank=8, active=2))
    assert {name for name, _ in part.named_parameters()} == {"a", "b", "router.weight"}
    assert not part.router.bias.requires_grad and "router.steps" in part.state_dict()


# Balance


def choosing(counts: list[int], balance: float = 1e-5) -> tuple[SigmoidRouter, Tensor]:
    """A router of one expert each, and tokens that choose its experts so many times."""
    router = SigmoidRouter(len(counts), len(counts), 1, balance)
    with torch.no_grad():
        router.weight.copy_(torch.eye(len(counts)))
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return router, nn.functional.one_hot(rows, len(counts)).float()


def test_the_bias_goes_towards_what_is_chosen_less() -> None:
    router, x = choosing([3, 1, 0, 0])
    router(x)
    u = 1e-5
    torch.testing.assert_close(router.bias, torch.tensor([-u, 0, u, u]), rtol=0, atol=0)
    router.eval()(x)
    assert router.steps.tolist() == [-1, 0, 1, 1]
    router.train()(x)
    assert router.steps.tolist() == [-2, 0, 2, 2]
    fixed, _ = choosing([3, 1, 0, 0], balance=0.0)
    fixed(x)
    assert not fixed.steps.any() and not fixed.bias.any()


def test_balance_evens_out_an_uneven_load() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 6) + 1
    spreads = {}
    for balance in (0.0, 0.01):
        torch.manual_seed(1)
        router = SigmoidRouter(6, 16, 4, balance)
        for _ in range(150):
            gates = router(x)
        counts = (gates > 0).sum(0).float()
        assert counts.sum() == 4 * 200
        spreads[balance] = float(counts.max() / counts.mean())
    assert spreads[0.01] < 1.2 < 1.8 < spreads[0.0]


def test_half_precision_loses_no_step() -> None:
    """In bfloat16 0.5 + 1e-5 is 0.5; the module may be converted before, between and after."""
    router, x = choosing([3, 1, 0, 0])
    for _ in range(100):
        router(x)
    router.bfloat16()
    for _ in range(100):
        router(x.bfloat16())
    u = 1e-5
    torch.testing.assert_close(router.bias, 200 * torch.tensor([-u, 0, u, u]))
    assert router(x.bfloat16()).dtype == torch.float32


def stack() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return model, list(insert(model, SMoRA(rank=8, active=2, balance=0.01), ["all"]).parts.values())


@pytest.mark.parametrize("how", ["again", "reentrant", "compiled", "compiled within"])
def test_checkpointing_counts_once(how: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 6, requires_grad=True)
    model, parts = stack()
    model(x).sum().backward()
    wanted = [part.router.steps.clone() for part in parts]
    assert all(steps.abs().max() == 1 for steps in wanted)
    again, others = stack()
    torch.compiler.reset()
    if how == "compiled within":
        run = torch.compile(lambda x: checkpoint(again, x, use_reentrant=False), backend="aot_eager")
        run(x).sum().backward()
    else:
        block = torch.compile(again, backend="aot_eager") if how == "compiled" else again
        checkpoint(block, x, use_reentrant=how == "reentrant").sum().backward()
    for steps, part, first in zip(wanted, others, parts, strict=True):
        assert torch.equal(part.router.steps, steps)
        torch.testing.assert_close(part.a.grad, first.a.grad)


def test_compiled_without_a_break_it_takes_the_same_steps() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    (model, parts), (other, others) = stack(), stack()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = torch.randn(20, 6)
        torch.testing.assert_close(compiled(x), model(x))
    for part, twin in zip(parts, others, strict=True):
        assert torch.equal(part.router.steps, twin.router.steps) and part.router.steps.any()


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model, parts = stack()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for batch in batches():
        wrapped(batch[rank]).sum().backward()
    torch.save([part.router.steps for part in parts], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 10, 6, generator=generator) + shift for shift in range(4)]


@pytest.mark.soak
def test_two_processes_have_the_bias_of_one(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    model, parts = stack()
    for batch in batches():
        model(batch.flatten(0, 1))
    for rank in range(2):
        for part, found in zip(parts, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert torch.equal(part.router.steps, found) and found.any()


# Settings


def test_counts_at_the_size_of_a_language_model() -> None:
    with torch.device("meta"):
        inserted = insert(nn.Linear(4096, 11008), SMoRA(), ["all"], where="")
    part: Any = inserted.parts[""]
    assert inserted.count()["inserted"] == 64 * (4096 + 11008) + 64 * 4096
    assert part.router.steps.shape == (64,) and part.scaling == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"active": 65}, "smora: 65 active ranks, expected from 1 to 64"),
        ({"active": 0}, "smora: 0 active ranks, expected from 1 to 64"),
        ({"partition": 3}, "smora: partition 3, expected a divisor of 64, the rank, and of 8, the active ranks"),
        ({"partition": 16}, "smora: partition 16, expected a divisor"),
        ({"balance": -1.0}, "smora: balance -1.0, expected at least 0"),
        ({"dropout": 1.0}, "smora: dropout 1.0, expected from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SMoRA(**settings)


def test_what_a_token_chooses_cannot_be_written_into_weights() -> None:
    inserted = insert(nn.Sequential(nn.Linear(6, 6)), SMoRA(), ["all"])
    with pytest.raises(InputError, match="cannot be folded into the weights of Linear"):
        inserted.fold("all")
