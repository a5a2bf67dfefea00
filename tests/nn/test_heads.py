"""Heads of many tasks: the same as a loop over tasks, forward and backward."""

import pytest
import torch

from polytask.errors import InputError
from polytask.nn.heads import HeadBank


@pytest.mark.parametrize("action", [[0, 2, 2, 1, 0], [2, 2, 2, 2, 2]])
def test_taken_and_mean_are_parts_of_all(action: list[int]) -> None:
    bank, features, taken = HeadBank(4, 6, 3), torch.randn(5, 4), torch.tensor(action)
    torch.nn.init.normal_(bank.linear.bias)
    whole = bank(features)
    loop = torch.stack([features @ bank.weight[:, i].T + bank.bias[:, i] for i in range(6)], 1)
    torch.testing.assert_close(whole, loop)
    torch.testing.assert_close(bank.taken(features, taken), whole[torch.arange(5), :, taken])
    torch.testing.assert_close(bank.mean(features), whole.mean(2))


def test_gradients_are_those_of_gathering() -> None:
    bank, action = HeadBank(4, 6, 3), torch.tensor([1, 0, 1, 1])
    features = torch.randn(4, 4, requires_grad=True)
    weights = torch.randn(4, 6)
    wanted = torch.autograd.grad(
        (bank(features)[torch.arange(4), :, action] * weights).sum(), [features, *bank.parameters()]
    )
    found = torch.autograd.grad((bank.taken(features, action) * weights).sum(), [features, *bank.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_batch_and_half_precision() -> None:
    bank = HeadBank(4, 6, 3)
    assert bank.taken(torch.randn(0, 4), torch.empty(0, dtype=torch.int64)).shape == (0, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert bank.taken(torch.randn(3, 4), torch.tensor([0, 1, 2])).dtype == torch.bfloat16


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="actions 0 to 3, expected 0 to 2"):
        HeadBank(4, 6, 3).taken(torch.randn(2, 4), torch.tensor([0, 3]))
    with pytest.raises(InputError, match="0 tasks"):
        HeadBank(4, 0, 3)
