"""What `transformers` writes: real model classes, tiny, in one file and in shards."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from polytask.merge.checkpoint import open_checkpoint

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def models() -> dict[str, Any]:
    heads = SMALL | {"num_key_value_heads": 1}
    t5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    vit = {name: size for name, size in SMALL.items() if name != "vocab_size"} | {"image_size": 8, "patch_size": 4}
    return {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**heads)).bfloat16(),
        "llama tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**heads, tie_word_embeddings=True)),
        "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)
        ).half(),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**t5)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**vit)),
    }


@pytest.mark.parametrize("shard", ["5GB", "10KB"])
@pytest.mark.parametrize("name", models())
def test_a_model_folder(name: str, shard: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models()[name]()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    whole = {}
    for path in tmp_path.glob("*.safetensors"):
        whole |= safetensors.torch.load_file(path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (len(checkpoint.files) > 1) == (shard == "10KB")
        assert checkpoint.metadata == {"format": "pt"}
        assert list(checkpoint.entries) == sorted(whole)
        for key, entry in checkpoint.entries.items():
            assert (entry.dtype, entry.shape) == (whole[key].dtype, tuple(whole[key].shape))
            assert torch.equal(checkpoint.read(key), whole[key].flatten())


@pytest.mark.parametrize("name", ["llama", "llama tied", "bert", "gpt2", "t5"])
def test_tied_weights_are_missing_names(name: str, tmp_path: Path) -> None:
    model = models()[name]()
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    checkpoint = open_checkpoint(tmp_path)
    there = {state[key].data_ptr() for key in checkpoint.entries}
    assert {key for key in state if state[key].data_ptr() not in there} == set()
    assert (set(checkpoint.entries) < set(state)) == (name in ("llama tied", "gpt2", "t5"))
    for key in checkpoint.entries:
        assert torch.equal(checkpoint.read(key), state[key].flatten())
