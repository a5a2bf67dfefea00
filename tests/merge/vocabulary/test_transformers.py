"""Different vocabularies as transformers and tokenizers write them, merged, and read by them again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.merge import Policy, TaskArithmetic, make_plan, merge_checkpoints, open_checkpoint

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS = ["the cat sat on the mat", "a dog ate the cat", "mats and dogs and cats"]
SCALE = 0.5


def bert() -> Any:
    raw = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(TEXTS, tokenizers.trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return transformers.BertTokenizerFast(tokenizer_object=raw, **names)


def bytes_of(kind: str) -> Any:
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    raw.train_from_iterator(TEXTS, trainer)
    made = transformers.GPT2TokenizerFast if kind == "gpt2" else transformers.PreTrainedTokenizerFast
    return made(tokenizer_object=raw, eos_token="<|endoftext|>")


def t5() -> Any:
    raw = tokenizers.Tokenizer(tokenizers.models.Unigram())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    raw.decoder = tokenizers.decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=40, special_tokens=special, unk_token="<unk>")
    raw.train_from_iterator(TEXTS, trainer)
    return transformers.T5TokenizerFast(tokenizer_object=raw, extra_ids=4)


def model_for(kind: str, rows: int) -> Any:
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=rows, **SMALL))
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=rows, n_embd=8, n_layer=1, n_head=2))
    if kind == "t5":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=rows, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        )
    config = transformers.LlamaConfig(vocab_size=rows, **SMALL, tie_word_embeddings=kind == "llama tied")
    return transformers.LlamaForCausalLM(config)


def make(path: Path, kind: str, special: Sequence[str], plain: Sequence[str], pad: int | None, seed: int) -> Any:
    """A model and its tokenizer in a folder; its vocabulary and its weights."""
    torch.manual_seed(seed)
    tokenizer = bert() if kind == "bert" else t5() if kind == "t5" else bytes_of(kind)
    model = model_for(kind, len(tokenizer)).bfloat16()
    if pad is not None:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=pad)
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.add_tokens(list(plain))
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return tokenizer.get_vocab(), {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("pad", [None, 64])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "llama tied", "t5"])
def test_union_is_read_again(tmp_path: Path, kind: str, pad: int | None) -> None:
    base, weights = make(tmp_path / "base", kind, [], [], pad, 0)
    models = [
        make(tmp_path / "one", kind, ["<one>"], ["<both>"], None, 1),
        make(tmp_path / "two", kind, ["<two>"], ["<both>"], pad, 2),
    ]
    plan = make_plan(
        [open_checkpoint(tmp_path / name) for name in ("one", "two")],
        open_checkpoint(tmp_path / "base"),
        Policy(vocabulary="union"),
    )
    merge_checkpoints(TaskArithmetic(scale=SCALE), plan, tmp_path / "out", about="")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    count = len(base)
    assert tokenizer.get_vocab() == base | {"<one>": count, "<both>": count + 1, "<two>": count + 2}
    ids = tokenizer("the <both> cat<two><one>", add_special_tokens=False)["input_ids"]
    assert [each for each in ids if each >= count] == [count + 1, count + 2, count]
    assert tokenizer.decode([count + 1], skip_special_tokens=True) == "<both>"
    assert tokenizer.decode([count], skip_special_tokens=True) == "", "it was a special one"

    loaded, report = type(model_for(kind, 99)).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"] and not report["unexpected_keys"]
    rows = loaded.config.vocab_size
    assert rows == (-(-(count + 3) // 64) * 64 if pad else count + 3)
    state = loaded.state_dict()
    names = [name for name, tensor in state.items() if tensor.shape[:1] == (rows,)]
    assert len(names) == {"bert": 4, "t5": 4}.get(kind, 2)
    for name in names:
        for token, row in tokenizer.get_vocab().items():
            expected = row_of(token, (base, weights[name]), [(rows, its[name]) for rows, its in models])
            torch.testing.assert_close(state[name][row].double(), expected, rtol=1e-2, atol=1e-2)

    auto = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert auto.get_input_embeddings().weight.shape[0] == rows
    given = {"input_ids": torch.tensor([ids])} | ({"decoder_input_ids": torch.tensor([ids])} if kind == "t5" else {})
    assert bool(auto(**given).last_hidden_state.isfinite().all())


def row_of(token: str, base: tuple[dict[str, int], Tensor], models: Sequence[tuple[dict[str, int], Tensor]]) -> Tensor:
    """Task arithmetic on one row, float64."""
    rows = [weight[tokens[token]].double() for tokens, weight in models if token in tokens]
    if token not in base[0]:
        return torch.stack(rows).mean(0)
    start = base[1][base[0][token]].double()
    return start + SCALE * (torch.stack(rows) - start).sum(0)
