"""PEFT's format, both ways, with PEFT itself on the other side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import IA3, LoRA, insert, load_peft, save_peft

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model: nn.Module = transformers.BertModel(config).eval()
    return model


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.GPT2Model(transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()
    return model


IDS = torch.arange(12).view(2, 6)


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).last_hidden_state
    return found


@pytest.mark.parametrize(("build", "where"), [(bert, ["*.query", "*.dense"]), (gpt2, ["*.c_attn", "*.c_fc"])])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_what_is_saved(build: Any, where: list[str], rslora: bool, tmp_path: Path) -> None:
    model = build()
    inserted = insert(model, LoRA(rank=3, alpha=6, rslora=rslora), ["one", "two"], where)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    save_peft(inserted, tmp_path / "two", "two")
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path / "two").eval()
    with task_scope("two"):
        torch.testing.assert_close(output(theirs), output(model), atol=1e-5, rtol=1e-5)
        again = build()
        load_peft(again, {"two": tmp_path / "two"})
        torch.testing.assert_close(output(again), output(model), atol=1e-5, rtol=1e-5)


def test_adapters_that_differ_become_tasks_of_one_insertion(tmp_path: Path) -> None:
    configs = {
        "plain": peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False),
        "wide": peft.LoraConfig(
            r=5, lora_alpha=3, use_rslora=True, target_modules=["key", "value"], init_lora_weights=False,
            rank_pattern={"layer.0.attention.self.key": 3}, alpha_pattern={"value": 7},
        ),
    }  # fmt: skip
    expected = {}
    for task, config in configs.items():
        adapted = peft.get_peft_model(bert(), config).eval()
        expected[task] = output(adapted)
        adapted.save_pretrained(tmp_path / task)
    model = bert()
    plain = output(model)
    inserted = load_peft(model, {task: tmp_path / task for task in configs})
    assert inserted.tasks == ("plain", "wide") and len(inserted.parts) == 6
    for task in configs:
        with task_scope(task):
            torch.testing.assert_close(output(model), expected[task], atol=1e-5, rtol=1e-5)
    with task_scope(["wide", "plain"], torch.tensor([1, 0])):
        mixed = output(model)
    torch.testing.assert_close(mixed[0], expected["plain"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], expected["wide"][1], atol=1e-5, rtol=1e-5)
    assert torch.equal(output(inserted.remove()), plain)


def test_what_cannot_be_loaded_is_one_line_and_nothing_is_inserted(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    save_peft(insert(bert(), LoRA(rank=2), ["one"], ["*.query"]), folder, "one")
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    name = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    for changed_config, changed_tensors, message in [
        ({"r": 0}, {}, "adapter_config.json: r 0: "),
        ({"peft_type": "IA3"}, {}, "peft_type 'IA3', expected 'LORA'"),
        ({"use_dora": True}, {}, "use_dora True, expected plain LoRA"),
        ({"r": 3}, {}, r"of rank 3 do not fit the network's Linear"),
        ({}, {name: torch.zeros(2, 7)}, r"'A': \(2, 7\).* do not fit the network's Linear"),
        ({}, {"base_model.model.head.weight": torch.zeros(2)}, "expected factors A and B of linear layers alone"),
        ({}, {name.replace("query", "qeury"): torch.zeros(2, 16)}, "qeury' is not in the network: did you mean"),
        ({}, {name.replace("query", "key"): torch.zeros(2, 16)}, r"factors {'A': \(2, 16\)} of rank 2 do not fit"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps(config | changed_config))
        save_file(tensors | changed_tensors, folder / "adapter_model.safetensors")
        model = bert()
        with pytest.raises(InputError, match=message):
            load_peft(model, {"one": folder})
        assert not any("task_parts" in key for key in model.state_dict())
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_peft(bert(), {"one": folder})
    with pytest.raises(InputError, match="expected a folder for each task"):
        load_peft(bert(), {})
    with pytest.raises(InputError, match="an insertion of ia3, expected lora"):
        save_peft(insert(bert(), IA3(), ["one"], ["*.query"]), folder, "one")
    with pytest.raises(InputError, match="unknown task 'two'"):
        save_peft(insert(bert(), LoRA(), ["one"], ["*.query"]), folder, "two")
