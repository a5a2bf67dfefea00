"""Internal classifiers: their sizes by formula, their pooling at its ends, and the weights of their losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.route import MixedPool, exit_loss, exit_weights, internal_classifier

FRACTIONS = [0.15, 0.30, 0.45, 0.60, 0.75, 0.90]


@pytest.mark.parametrize(
    ("channels", "size", "inputs", "mixed"),
    [
        (64, 16, 1024, 1),
        (16, 32, 256, 1),
        (512, 4, 8192, 1),
        (512, 2, 2048, 0),
        (8, 5, 200, 1),
        (3, 3, 27, 0),
        (6, 14, 96, 1),
    ],
)
def test_sizes_by_formula(channels: int, size: int, inputs: int, mixed: int) -> None:
    head = internal_classifier(channels, size, 10)
    if size == 14:  # windows of 3: 4 x 4, and two rows are left over
        assert inputs == channels * 16
    assert sum(p.numel() for p in head.parameters()) == 10 * inputs + 10 + mixed
    assert head(torch.randn(2, channels, size, size)).shape == (2, 10)


def test_the_first_one_of_vgg_has_10_251_parameters() -> None:
    assert sum(p.numel() for p in internal_classifier(64, 16, 10).parameters()) == 10_251


def test_pooling_is_the_maximum_at_1_and_the_mean_at_0() -> None:
    pool, x = MixedPool(3), torch.randn(2, 4, 9, 9)
    assert 0 <= pool.share.item() <= 1
    for share, expected in ((1.0, F.max_pool2d(x, 3)), (0.0, F.avg_pool2d(x, 3))):
        pool.share.data.fill_(share)
        torch.testing.assert_close(pool(x), expected)
    assert pool(x.bfloat16()).dtype == torch.bfloat16
    pool(x).sum().backward()
    torch.testing.assert_close(pool.share.grad, (F.max_pool2d(x, 3) - F.avg_pool2d(x, 3)).sum()[None])


def test_weights_rise_to_their_end() -> None:
    assert exit_weights(1.0, FRACTIONS) == FRACTIONS
    assert exit_weights(0.0, FRACTIONS) == [0.01] * 6
    assert exit_weights(0.5, FRACTIONS) == pytest.approx([0.01 + c / 2 for c in FRACTIONS])
    with pytest.raises(InputError, match=r"progress 1\.5"):
        exit_weights(1.5, FRACTIONS)


def test_the_loss_is_the_weighted_sum() -> None:
    logits, labels = [torch.randn(5, 3) for _ in range(3)], torch.tensor([0, 1, 2, -100, 1])
    parts = [F.cross_entropy(one, labels) for one in logits]
    torch.testing.assert_close(exit_loss(logits, labels, [0.2, 0.5]), 0.2 * parts[0] + 0.5 * parts[1] + parts[2])
    torch.testing.assert_close(exit_loss(logits[:1], labels, []), parts[0])
    with pytest.raises(InputError, match="1 weights for 3 exits"):
        exit_loss(logits, labels, [0.2])
    with pytest.raises(InputError, match="size 0"):
        internal_classifier(3, 0, 10)
    assert isinstance(internal_classifier(3, 2, 10)[0], nn.Flatten)
