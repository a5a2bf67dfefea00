import pytest
import torch

from polytask.errors import InputError
from polytask.measure import cluster_nmi, linear_probe


def test_what_is_apart_is_found_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    apart = torch.nn.functional.one_hot(labels, 3) * 8 + torch.randn(150, 3, generator=generator)
    noise = torch.randn(150, 3, generator=generator)
    assert cluster_nmi(apart, labels, seeds=2) > 0.95 and cluster_nmi(noise, labels, seeds=2) < 0.1
    train, test = torch.arange(60), torch.arange(60, 150)
    assert linear_probe(apart, labels, train, test, [0.1, 1.0]) > 0.95
    assert linear_probe(noise, labels, train, test, [0.1, 1.0]) < 0.6


def test_rows_without_a_label_do_not_count() -> None:
    labels = torch.tensor([0, 1, -1] * 20)
    x = labels[:, None].float() * torch.tensor([[5.0, 1.0]])
    assert cluster_nmi(x, labels, seeds=1) == pytest.approx(1.0)
    assert linear_probe(x, labels, torch.arange(30), torch.arange(30, 60), [1.0]) == 1.0
    with pytest.raises(InputError, match="fewer than two classes"):
        cluster_nmi(x, labels.clamp(max=0), seeds=1)
