"""Piggyback: what a mask takes away, in every layer, and where the gradient goes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import LoRA, Piggyback, insert, masks_of, set_masks

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 3), (5, 7, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1, groups=2), (5, 4, 8)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding_mode="circular", padding=1), (5, 4, 8, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2, bias=False), (2, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_task_keeps_what_its_mask_says(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    x, weight = torch.randn(shape), layer.weight
    assert isinstance(weight, Tensor)
    mask = torch.rand_like(weight) < 0.5
    kept = weight.detach() * mask
    inserted = insert(layer, Piggyback(), ["one", "two"], where="")
    set_masks(inserted, "two", {"": mask})
    assert torch.equal(masks_of(inserted, "two")[""], mask) and masks_of(inserted, "one")[""].all()
    with task_scope("two"):
        masked = layer(x)
    with task_scope("one"):
        plain = layer(x)
    inserted.fold("two")
    torch.testing.assert_close(layer(x), masked)
    assert torch.equal(layer.weight, kept)  # type: ignore[arg-type]
    assert not torch.allclose(masked, plain)


def test_the_gradient_passes_the_threshold() -> None:
    """``dL/ds = dL/dy * W x``, whether the weight is kept or not (straight through)."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    inserted = insert(layer, Piggyback(), ["one", "two"], where="").freeze()
    set_masks(inserted, "one", {"": torch.tensor([[True, False, True], [False, True, True]])})
    with task_scope("one"):
        layer(x).sum().backward()
    (scores,) = inserted.parameters_of("one")
    torch.testing.assert_close(scores.grad, layer.weight.detach() * x.sum(0))
    (others,) = inserted.parameters_of("two")
    assert others.grad is None and layer.weight.grad is None


def test_together_with_another_insertion() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    lora = insert(layer, LoRA(rank=1), ["one"], where="")
    for parameter in lora.parameters():
        nn.init.normal_(parameter)
    with task_scope("one"):
        change = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
        set_masks(insert(layer, Piggyback(), ["one"], where=""), "one", {"": torch.zeros(2, 3, dtype=torch.bool)})
        torch.testing.assert_close(layer(x), change + layer.bias)


def test_what_cannot_be() -> None:
    inserted = insert(nn.Linear(3, 2), Piggyback(), ["one"], where="")
    wrong: Any
    for wrong in ({"0": torch.ones(2, 3, dtype=torch.bool)}, {"": torch.ones(3, 2, dtype=torch.bool)}):
        with pytest.raises(InputError, match="in the weight's shape"):
            set_masks(inserted, "one", wrong)
    with pytest.raises(InputError, match="expected piggyback"):
        masks_of(insert(nn.Linear(3, 2), LoRA(), ["one"]), "one")
    with pytest.raises(InputError, match="piggyback: start"):
        Piggyback(start=0.0)
