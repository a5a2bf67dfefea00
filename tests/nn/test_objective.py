"""Losses of labels: by torch, in closed form, and with a gradient where the softmax has none."""

import pytest
import torch
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.nn.objective import label_loss


def test_margins_are_above_0_where_the_label_is_missed() -> None:
    logits, labels = torch.randn(200, 5), torch.randint(5, (200,))
    margins = label_loss(logits, labels)
    assert torch.equal(margins > 0, logits.argmax(1) != labels)
    for row in range(20):
        others = [logits[row, j] for j in range(5) if j != labels[row]]
        assert margins[row] == max(others) - logits[row, labels[row]]
    torch.testing.assert_close(
        label_loss(logits, labels, "cross_entropy"), F.cross_entropy(logits, labels, reduction="none")
    )


def test_the_margin_has_a_gradient_where_the_softmax_is_saturated() -> None:
    logits, labels = torch.tensor([[500.0, 0.0, -1.0]], requires_grad=True), torch.tensor([0])
    (masked,) = torch.autograd.grad(label_loss(logits, labels, "cross_entropy").sum(), [logits])
    (margin,) = torch.autograd.grad(label_loss(logits, labels).sum(), [logits])
    assert not masked.any() and margin.tolist() == [[-1.0, 1.0, 0.0]]


def test_precision_and_what_is_refused() -> None:
    labels = torch.tensor([1])
    assert label_loss(torch.ones(1, 2, dtype=torch.bfloat16), labels).dtype == torch.float32
    assert label_loss(torch.ones(1, 2, dtype=torch.float64), labels).dtype == torch.float64
    with pytest.raises(InputError, match="did you mean 'margin'"):
        label_loss(torch.ones(1, 2), labels, "margins")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected \(n, classes\) and \(n,\)"):
        label_loss(torch.ones(1, 2), torch.tensor([1, 0]))
