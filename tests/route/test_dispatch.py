"""Dispatch: equal to masks, computing only what was chosen."""

import pytest
import torch
from torch import nn

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


def test_what_does_not_fit_is_refused() -> None:
    for choice in (torch.zeros(3, dtype=torch.int64), torch.tensor(0), torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(InputError, match="expected"):
            dispatch(torch.randn(2, 4), choice, [None, nn.Identity()])
