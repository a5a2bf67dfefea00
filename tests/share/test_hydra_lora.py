"""HydraLoRA: one factor and several heads, written out; and what it is with heads that are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import HydraLoRA, LoRA, insert


def made(**settings: Any) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    part: Any = insert(layer, HydraLoRA(**settings), ["all"], where="").parts[""]
    nn.init.normal_(part.b)
    return layer, part


def test_what_it_adds() -> None:
    layer, part = made(heads=3, rank=2, alpha=6)
    x = torch.randn(4, 6)
    chances = (x @ part.router.weight.T).softmax(1)
    hidden = x @ part.a[0].T
    added = sum(chances[:, [head]] * (hidden @ part.b[head]) for head in range(3))
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias) + 3 * added)
    assert part.a.shape == (1, 2, 6) and part.b.shape == (3, 2, 5)


def test_heads_that_are_alike_are_lora() -> None:
    layer, part = made(heads=3, rank=2, alpha=6)
    plain = nn.Linear(6, 5)
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "." not in name})
    lora: Any = insert(plain, LoRA(rank=2, alpha=6), ["all"], where="").parts[""]
    with torch.no_grad():
        part.b.copy_(part.b[:1].clone())
        lora.of("all").a.copy_(part.a[0])
        lora.of("all").b.copy_(part.b[0].T)
    x = torch.randn(4, 6)
    with task_scope("all"):
        torch.testing.assert_close(layer(x), plain(x))


def test_counts_at_the_size_of_a_language_model() -> None:
    with torch.device("meta"):
        inserted = insert(nn.Linear(4096, 11008), HydraLoRA(heads=3, rank=8), ["all"], where="")
    assert inserted.count()["inserted"] == 8 * (4096 + 3 * 11008) + 3 * 4096


@pytest.mark.parametrize("settings", [{"heads": 0}, {"rank": 0}, {"dropout": -0.1}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="hydra_lora: "):
        HydraLoRA(**settings)
