"""Mixtures of LoRAs: each token's own experts, written out token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import LoRA, MoELoRA, insert


def test_each_token_by_itself() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    inserted = insert(layer, MoELoRA(experts=4, rank=3, top_k=2, alpha=6), ["all"], where="")
    part: Any = inserted.parts[""]
    nn.init.normal_(part.b)
    x = torch.randn(2, 3, 6)
    output = layer(x)
    for i, token in enumerate(x.view(6, 6)):
        chances = (part.router.weight @ token).softmax(0)
        first, second = chances.argsort(descending=True)[:2].tolist()
        wanted = layer.weight @ token + layer.bias
        for expert in (first, second):
            gate = chances[expert] / (chances[first] + chances[second])
            wanted = wanted + 2 * gate * (part.b[expert].T @ part.a[expert] @ token)
        torch.testing.assert_close(output.view(6, 5)[i], wanted)


@pytest.mark.parametrize("settings", [{"experts": 1, "top_k": 1}, {"experts": 1, "top_k": None}])
def test_one_expert_is_lora(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(6, 5), nn.Linear(6, 5)
    other.load_state_dict(layer.state_dict())
    part: Any = insert(layer, MoELoRA(rank=3, alpha=6, **settings), ["all"], where="").parts[""]
    lora: Any = insert(other, LoRA(rank=3, alpha=6), ["all"], where="").parts[""]
    nn.init.normal_(part.b)
    with torch.no_grad():
        lora.of("all").a.copy_(part.a[0])
        lora.of("all").b.copy_(part.b[0].T)
    x = torch.randn(4, 6)
    with task_scope("all"):
        torch.testing.assert_close(layer.eval()(x), other(x))


def test_all_experts_or_some() -> None:
    """Taking all is what `None` means; scores alone decide which, and equal experts are one."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    outputs = []
    for top_k in (3, None):
        torch.manual_seed(1)
        layer = nn.Linear(6, 5)
        part: Any = insert(layer, MoELoRA(experts=3, rank=2, top_k=top_k), ["all"], where="").parts[""]
        nn.init.normal_(part.b)
        outputs.append(layer(x))
    assert torch.equal(*outputs)
    alike = []
    for top_k in (1, 2, 3):
        layer = nn.Linear(6, 5, bias=False)
        part = insert(layer, MoELoRA(experts=3, rank=2, top_k=top_k), ["all"], where="").parts[""]
        with torch.no_grad():
            layer.weight.fill_(1)
            part.a.copy_(torch.arange(12.0).view(1, 2, 6))
            part.b.copy_(torch.ones(1, 2, 5))
        alike.append(layer.eval()(x))
    torch.testing.assert_close(alike[0], alike[1])
    torch.testing.assert_close(alike[0], alike[2])


def test_counts_at_the_size_of_a_language_model() -> None:
    with torch.device("meta"):
        inserted = insert(nn.Linear(4096, 11008), MoELoRA(experts=8, rank=8), ["all"], where="")
    assert inserted.count()["inserted"] == 8 * 8 * (4096 + 11008) + 8 * 4096


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 0}, "moe_lora: 0 experts of rank 8, expected at least 1 each"),
        ({"top_k": 9}, "moe_lora: top_k 9, expected from 1 to 8"),
        ({"top_k": 0}, "moe_lora: top_k 0, expected from 1 to 8"),
        ({"dropout": 1.0}, "moe_lora: dropout 1.0, expected from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MoELoRA(**settings)
