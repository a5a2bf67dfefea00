"""Experts of all kinds: functions, fitted models, local language models."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from polytask.errors import InputError
from polytask.route import Example, Expert, LossTable, answering, bits_per_character, predicting


def test_a_fitted_model_is_judged_by_its_cross_entropy_or_by_a_function() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = ["good film", "bad film", "good book", "bad book"], ["+", "-", "+", "-"]
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, labels)
    examples = [Example(text, label) for text, label in zip(texts, labels, strict=True)]
    expected = [-math.log(row["+-".index(label)]) for row, label in zip(model.predict_proba(texts), labels, strict=True)]
    np.testing.assert_allclose(predicting(model)(examples), expected)
    assert predicting(model, lambda made, right: float(made != right))([*examples, Example("good", "-")])[-1] == 1.0
    table = LossTable()
    table.fill([Example("good", "?")], [Expert("model", predicting(model))])
    assert "'?' is no class of the model" in table.failures[0].reason


def test_an_answer_is_judged_by_its_reference() -> None:
    losses = answering(str.upper, lambda answer, reference: float(answer != reference))
    assert losses([Example("a", "A"), Example("a", "B")]) == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "a", "batch": 0}, {"name": "a", "costs": {"size": math.inf}}])
def test_experts_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        Expert(**wrong)


# Local language models


def letters(special: bool = True) -> Any:
    """A tokenizer of pairs of letters and single ones."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = "abcdefgh é"
    words = ["[PAD]", "[MASK]", "[BOS]", "[UNK]", *alphabet, *("ab", "cd")]
    model = tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [("a", "b"), ("c", "d")], unk_token="[UNK]")
    names = {"bos_token": "[BOS]", "mask_token": "[MASK]", "pad_token": "[PAD]"} if special else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), **names)


def causal(tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=64, n_embd=16, n_layer=1, n_head=2)).train()


def test_bits_of_a_causal_model_are_those_of_its_own_loss() -> None:
    tokenizer = letters()
    model = causal(tokenizer)
    texts = ["abcd efgh", "a", "éab é"]
    found = bits_per_character(model, tokenizer)([Example(text) for text in texts])
    for text, bits in zip(texts, found, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        loss = model(input_ids=ids, labels=ids).loss.item()  # mean over the tokens after the first
        assert bits == pytest.approx(loss * (ids.shape[1] - 1) / math.log(2) / len(text), rel=1e-5)
    in_bytes = bits_per_character(model, tokenizer, unit="byte")([Example("éab é")])[0]
    assert in_bytes * 7 == pytest.approx(found[2] * 5, rel=1e-5)


def test_a_reference_is_judged_given_the_prompt() -> None:
    tokenizer = letters()
    model = causal(tokenizer)
    bits = bits_per_character(model, tokenizer)
    (both,) = bits([Example("hg fe")])
    (first,) = bits([Example("hg")])
    (second,) = bits([Example("hg", " fe")])
    assert 5 * both == pytest.approx(2 * first + 3 * second, rel=1e-5)  # the chain rule


def test_without_a_first_token_the_first_is_given() -> None:
    tokenizer = letters(special=False)
    model = causal(tokenizer)
    (bits,) = bits_per_character(model, tokenizer)([Example("abe")])  # tokens "ab" and "e"
    ids = torch.tensor([tokenizer("abe")["input_ids"]])
    assert bits == pytest.approx(model(input_ids=ids, labels=ids).loss.item() / math.log(2), rel=1e-5)
    with pytest.raises(InputError, match="nothing to predict"):
        bits_per_character(model, tokenizer)([Example("ab")])


def test_long_texts_are_cut_and_only_what_is_left_counts() -> None:
    tokenizer = letters()
    bits = bits_per_character(causal(tokenizer), tokenizer, tokens=5)
    assert bits([Example("efghefgh")]) == pytest.approx(bits([Example("efgh")]))


def test_a_masked_model_predicts_what_is_masked() -> None:
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = letters()
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    bits = bits_per_character(model, tokenizer, masked=0.5)
    assert bits([Example("abcdefgh")]) == bits([Example("abcdefgh")])
    text = "ef"  # one of two tokens
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        each = []
        for place in range(2):
            given = torch.tensor([[1 if i == place else token for i, token in enumerate(ids)]])
            each.append(-model(input_ids=given).logits[0, place].log_softmax(0)[ids[place]].item() / math.log(2))
    assert any(bits([Example(text)])[0] == pytest.approx(one, rel=1e-5) for one in each)
    with pytest.raises(InputError, match="a tokenizer with a mask"):
        bits_per_character(model, letters(special=False), masked=0.5)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="expected a fast tokenizer"):
        bits_per_character(None, object())
