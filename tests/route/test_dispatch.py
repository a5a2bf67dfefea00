"""Dispatch: equal to masks, computing only what was chosen; compiled, and in two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from polytask.errors import InputError
from polytask.route import dispatch


@pytest.mark.parametrize("rows", [(7,), (2, 5), (2, 3, 2)])
def test_it_is_what_masks_give_forward_and_backward(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(4, 6), nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 6)), None]
    x, choice = torch.randn(*rows, 4, requires_grad=True), torch.randint(3, rows)
    output = dispatch(x, choice, modules)
    masked = sum((choice == k)[..., None] * module(x) for k, module in enumerate(modules) if module is not None)
    torch.testing.assert_close(output, masked)
    parameters = [x, *modules[0].parameters(), *modules[1].parameters()]
    weight = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), parameters) for y in (output, masked))
    torch.testing.assert_close(ours, theirs)


def test_images_are_rows_too_and_half_precision_is_kept() -> None:
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    convolution = nn.Conv2d(3, 3, 3, padding=1).bfloat16()
    output = dispatch(x, torch.tensor([0, 1, 0, 1]), [convolution, None])
    assert output.dtype == torch.bfloat16 and not output[1].any()
    torch.testing.assert_close(output[::2], convolution(x[::2]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dispatch(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), [nn.Linear(3, 3), nn.Linear(3, 3)])
    assert mixed.dtype == torch.bfloat16


def test_a_module_sees_its_rows_alone_and_one_without_rows_has_a_gradient_of_0() -> None:
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(len(rows))
            return super().forward(rows)

    modules = [Counting(2, 2), Counting(2, 2)]
    x = torch.randn(10, 2)
    dispatch(x, torch.tensor([0] * 3 + [1] * 7), modules)
    assert seen == [3, 7]
    dispatch(x, torch.zeros(10, dtype=torch.int64), modules).sum().backward()
    assert modules[1].weight.grad is not None and not modules[1].weight.grad.any()
    seen.clear()
    with torch.no_grad():
        dispatch(x, torch.zeros(10, dtype=torch.int64), modules)
        assert seen == [10]
        assert dispatch(x[:0], torch.zeros(0, dtype=torch.int64), [None, None]).shape == (0, 2)
        assert not dispatch(x, torch.zeros(10, dtype=torch.int64), [None, modules[0]]).any()


class Routed(nn.Module):
    """Rows of positive sum through one layer, the others through another, then a layer for all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.choices = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
        self.after = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(dispatch(x, (x.sum(-1) > 0).long(), list(self.choices)).relu())


@pytest.mark.soak
def test_compiled_code_goes_on_behind_it() -> None:
    torch.compiler.reset()
    network, twin = Routed(), Routed()
    compiled = torch.compile(twin, backend="aot_eager")
    for rows in (8, 8, 5):
        x = torch.randn(rows, 3, 4)
        output = compiled(x)
        torch.testing.assert_close(output, network(x))
        network(x).square().sum().backward()
        output.square().sum().backward()
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    network = Routed()
    wrapped = nn.parallel.DistributedDataParallel(network)  # it would wait for ever for a parameter without a gradient
    for batch in batches():
        wrapped(batch[rank]).square().mean().backward()
    torch.save([parameter.grad for parameter in network.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def batches() -> list[Tensor]:
    """For two processes: in the first batch each has rows for one module alone, and not for the same."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(2, 6, 4, generator=generator) * torch.tensor([1.0, -1.0])[:, None, None]
    return [first, torch.randn(2, 6, 4, generator=generator)]


@pytest.mark.soak
def test_two_processes_that_choose_differently_have_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    network = Routed()
    for batch in batches():
        network(batch.flatten(0, 1)).square().mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, [parameter.grad for parameter in network.parameters()])


def test_what_does_not_fit_is_refused() -> None:
    for choice in (torch.zeros(3, dtype=torch.int64), torch.tensor(0), torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(InputError, match="expected"):
            dispatch(torch.randn(2, 4), choice, [None, nn.Identity()])
