"""Temperatures: the least cross-entropy of all, the truth recovered, answers unchanged."""

import pytest
import torch
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.route import EarlyExit, fit_temperatures


def test_the_truth_is_recovered_and_nothing_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperatures([true, 3 * true, 0.5 * true], labels)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 0.5]), rtol=0.05, atol=0)
    torch.testing.assert_close(found / found[0], torch.tensor([1.0, 3.0, 0.5]), rtol=1e-4, atol=0)
    least = F.cross_entropy(true / found[0], labels)
    assert all(F.cross_entropy(true / (found[0] * factor), labels) > least for factor in (0.9, 1.1))


def test_an_exit_that_is_always_right_ends_at_the_bound() -> None:
    logits = torch.eye(3)
    assert float(fit_temperatures([logits], torch.arange(3), least=0.1)) == pytest.approx(0.1)
    assert float(fit_temperatures([logits], torch.tensor([1, 2, 0]), most=9.0)) == pytest.approx(9.0)


def test_it_changes_when_examples_leave_and_not_what_exits_say() -> None:
    torch.manual_seed(0)
    network = EarlyExit([torch.nn.Identity()] * 2, {1: torch.nn.Linear(4, 3), 2: torch.nn.Linear(4, 3)}).eval()
    network.thresholds.fill_(0.6)
    x = torch.randn(100, 4)
    before, every = network.run(x).exits, network(x)
    network.temperatures.copy_(torch.tensor([0.2, 1.0]))
    found = network.run(x)
    assert found.exits.sum() < before.sum()
    torch.testing.assert_close(found.outputs, torch.stack(every)[found.exits, torch.arange(100)])
    with pytest.raises(InputError, match="expected as many"):
        fit_temperatures([x], torch.zeros(3, dtype=torch.int64))
