"""Rates by hand, of what a target had right; and noise of the length that is asked for."""

import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.measure.attacks import noise, transfer_rates


def above(edge: float) -> object:
    def model(x: Tensor) -> Tensor:
        return torch.stack([edge - x[:, 0], x[:, 0] - edge], 1)

    return model


@pytest.mark.parametrize("batch_size", [2, 100])
def test_rates_are_of_what_the_target_had_right(batch_size: int) -> None:
    images, labels = torch.tensor([[0.1], [0.3], [0.45], [0.6], [0.9]]), torch.tensor([0, 0, 0, 1, 0])
    targets = {"half": above(0.5), "low": above(0.4)}  # the fifth is wrong for both, the third for the second
    rates = transfer_rates(
        {"none": images, "up": images + 0.25, "all": torch.full_like(images, 1.0)},
        targets,  # type: ignore[arg-type]
        images,
        labels,
        batch_size,
    )
    assert rates["none"] == {"half": 0.0, "low": 0.0}
    assert rates["up"] == {"half": 2 / 4, "low": 1 / 3}
    assert rates["all"] == {"half": 3 / 4, "low": 2 / 3}
    with pytest.raises(InputError, match="target 'never' gets none of the 5 images right"):
        transfer_rates({"none": images}, {"never": above(9.0)}, images[3:4].expand(5, 1), labels[3:4].expand(5))  # type: ignore[dict-item]


def test_noise_has_its_length_inside_the_box() -> None:
    images = torch.rand(8, 1, 6, 6).round(decimals=1)
    norms = torch.linspace(0, 2, 8)
    made = noise(images, norms, torch.Generator().manual_seed(0))
    assert made.min() >= 0 and made.max() <= 1
    torch.testing.assert_close((made - images).flatten(1).norm(dim=1), norms, atol=1e-3, rtol=0)
    assert torch.equal(made, noise(images, norms, torch.Generator().manual_seed(0)))
    assert (noise(images, torch.full((8,), 100.0)) - images).flatten(1).norm(dim=1).max() < 6
