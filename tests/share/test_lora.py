"""LoRA: closed forms, the two ways of multiplying a mixed batch, and equality with PEFT."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import LoRA, _low_rank, insert

TASKS = ("one", "two", "three")


def test_what_it_adds() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    inserted = insert(layer, LoRA(rank=2, alpha=6), TASKS, where="")
    a, b = (p.detach().normal_() for p in inserted.parameters_of("two"))
    x = torch.randn(5, 7, 4)
    with task_scope("two"):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight + 3 * b @ a, layer.bias))
    plain = inserted.fold("two")
    assert type(plain) is nn.Linear and len(list(plain.parameters())) == 2
    assert LoRA(rank=16, alpha=8, rslora=True).scaling == 2


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 2, 3, 4)])
def test_both_ways_of_a_mixed_batch_agree(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    for parameter in insert(layer, LoRA(rank=2), TASKS, where="").parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape)
    outputs = []
    for widest in (0, 256):
        monkeypatch.setattr(_low_rank, "WIDEST", widest)
        with task_scope(TASKS, torch.tensor([0, 1, 2, 0, 1, 2])):
            outputs.append(layer(x))
    torch.testing.assert_close(*outputs)


def test_dropout_is_of_the_adapter_alone_and_while_training() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    inserted = insert(layer, LoRA(rank=2, dropout=0.5), TASKS, where="")
    x = torch.randn(5, 4)
    with task_scope("one"):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))  # B is 0
        for parameter in inserted.parameters():
            nn.init.normal_(parameter)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"dropout": 1.0}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="lora: "):
        LoRA(**settings)


@pytest.mark.parametrize("rslora", [False, True])
def test_equal_to_peft(rslora: bool) -> None:
    """The same factors in both, on a BERT: outputs and gradients, to 1e-6."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    base = transformers.BertModel(config).eval()
    ours = transformers.BertModel(config).eval()
    ours.load_state_dict(base.state_dict())
    inserted = insert(ours, LoRA(rank=4, alpha=8, rslora=rslora), TASKS, where=["*.query", "*.value"]).freeze()
    lora = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, target_modules=["query", "value"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, lora).eval()
    for place, part in inserted.parts.items():
        layer = theirs.base_model.model.get_submodule(place)
        with torch.no_grad():
            part.factors["two"].a.copy_(layer.lora_A["default"].weight)
            part.factors["two"].b.copy_(layer.lora_B["default"].weight)
    x = torch.randint(0, 50, (3, 9))
    with task_scope("two"):
        mine = ours(x).last_hidden_state
    other = theirs(x).last_hidden_state
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
    mine.square().sum().backward()
    other.square().sum().backward()
    for place, part in inserted.parts.items():
        layer = theirs.base_model.model.get_submodule(place)
        torch.testing.assert_close(part.factors["two"].a.grad, layer.lora_A["default"].weight.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(part.factors["two"].b.grad, layer.lora_B["default"].weight.grad, atol=1e-5, rtol=1e-4)
    assert math.isclose(inserted.method.scaling, 4.0 if rslora else 2.0)
