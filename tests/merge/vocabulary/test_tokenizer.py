"""Tokenizers of strangers: which token has which row, and one line for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.merge.folders import tokenizer, words, write

from polytask.errors import InputError
from polytask.merge.vocabulary import tokenizer as module
from polytask.merge.vocabulary.tokenizer import (
    extended_tokenizer,
    is_readable,
    read_config,
    read_vocabulary,
    resized_config,
    vocabulary_sizes,
)


def test_a_tokenizer_json_has_trained_and_added_tokens(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", tokenizer(words("a b c"), {"a": 0, "<x>": 3}, special=True))
    write(tmp_path / "vocab.json", {"not": 0, "read": 1})
    found = read_vocabulary(tmp_path)
    assert found.rows == {"a": 0, "b": 1, "c": 2, "<x>": 3}
    assert set(found.added) == {"a", "<x>"} and found.added["<x>"]["special"] is True


def test_a_list_of_tokens_with_scores_counts_from_0_and_the_last_of_two_counts(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", tokenizer([["<unk>", 0], ["a", -1.5], ["b", -2.0], ["a", -3]], {"<x>": 4}))
    assert read_vocabulary(tmp_path).rows == {"<unk>": 0, "a": 3, "b": 2, "<x>": 4}


def test_older_files(tmp_path: Path) -> None:
    write(tmp_path / "gpt" / "vocab.json", words("a b"))
    write(tmp_path / "gpt" / "added_tokens.json", {"<x>": 2})
    write(tmp_path / "gpt" / "tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "<y>", "lstrip": True}}})
    found = read_vocabulary(tmp_path / "gpt")
    assert found.rows == {"a": 0, "b": 1, "<x>": 2, "<y>": 3} and found.added == {"<x>": {}, "<y>": {"lstrip": True}}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_bytes("[PAD]\r\na\u2028b\n\u0085\nä\n".encode())
    assert read_vocabulary(tmp_path / "bert").rows == {"[PAD]": 0, "a\u2028b": 1, "\u0085": 2, "ä": 3}


def test_a_folder_without_what_can_be_read(tmp_path: Path) -> None:
    assert not is_readable(tmp_path)
    with pytest.raises(InputError, match=r"there is none: save a tokenizer\.json"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(InputError, match=r"there is only tokenizer\.model: save a tokenizer\.json") as error:
        read_vocabulary(tmp_path)
    assert "\n" not in str(error.value) and not is_readable(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list, expected a JSON object"),
        ("{}", "no model.vocab"),
        ('{"model": {"vocab": 3}}', "no model.vocab"),
        ('{"model": {"vocab": [["a"]]}}', "expected a token and its score"),
        ('{"model": {"vocab": {"a": 0, "a": 1}}}', "'a' is there twice"),
        ("[" * 10**6, "not valid JSON"),
        (tokenizer({"a": -1}), "token 'a' has id -1, expected a whole number from 0"),
        (tokenizer({"a": "0"}), "token 'a' has id '0'"),
        (tokenizer({"a": True}), "token 'a' has id True"),
        (tokenizer({"a": 1.5}), "token 'a' has id 1.5"),
        (tokenizer({"a": 0, "b": 0}), "tokens 'a' and 'b' both have id 0"),
        (tokenizer(words("a b"), {"<x>": 1}), "tokens 'b' and '<x>' both have id 1"),
        (tokenizer(words("a b"), {"b": 2}), "token 'b' has ids 1 and 2, expected one"),
        (tokenizer(words("a b"), {"<x>": -5}), "token '<x>' has id -5"),
        ({"model": {"vocab": {}}, "added_tokens": {"a": 1}}, "expected a list of objects"),
        ({"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}, "token None, expected text"),
        ({"model": {"vocab": {"x" * 10**6: -1}}}, "(1000002 characters) has id -1"),
    ],
)
def test_hostile_ones_are_one_line(tmp_path: Path, content: Any, says: str) -> None:
    write(tmp_path / "tokenizer.json", content)
    with pytest.raises(InputError) as error:
        read_vocabulary(tmp_path)
    text = str(error.value)
    assert says in text and "tokenizer.json" in text and "\n" not in text and len(text) < 500


@pytest.mark.parametrize(
    ("decoder", "says"),
    [({"x": {"content": "b"}}, "id 'x'"), ({"-1": {"content": "b"}}, "id '-1'"), ({"1": "b"}, "an object"), ([1], "by id")],
)
def test_hostile_added_tokens(tmp_path: Path, decoder: Any, says: str) -> None:
    write(tmp_path / "vocab.json", words("a"))
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with pytest.raises(InputError, match=r"tokenizer_config\.json") as error:
        read_vocabulary(tmp_path)
    assert says in str(error.value)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 100)
    write(tmp_path / "tokenizer.json", tokenizer(words("a b")))
    with pytest.raises(InputError, match=r"tokenizer\.json: more than 100 bytes"):
        read_vocabulary(tmp_path)


def test_sizes_of_a_configuration_and_its_parts(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {} and vocabulary_sizes(tmp_path) == set() and resized_config(tmp_path, {4: 5}) == {}
    inner = {"text_config": {"vocab_size": 4, "limit": [0, float("inf")]}, "vision_config": {"vocab_size": 9}}
    write(tmp_path / "config.json", inner)
    assert vocabulary_sizes(tmp_path) == {4, 9} and resized_config(tmp_path, {4: 4}) == {}
    changed = json.loads(resized_config(tmp_path, {4: 5})["config.json"])
    assert changed == {**inner, "text_config": {"vocab_size": 5, "limit": [0, float("inf")]}}
    write(tmp_path / "config.json", {"vocab_size": 4, "text_config": {"model_type": "llama"}})
    changed = json.loads(resized_config(tmp_path, {4: 5})["config.json"])
    assert changed["vocab_size"] == 5 and changed["text_config"]["vocab_size"] == 5, "what was the default is so no more"
    write(tmp_path / "config.json", {"model_type": "gpt2"})
    assert json.loads(resized_config(tmp_path, {4: 5})["config.json"])["vocab_size"] == 5
    for wrong in ("[", "[]", "[" * 10**6):
        write(tmp_path / "config.json", wrong)
        with pytest.raises(InputError, match=r"config\.json: "):
            read_config(tmp_path)


def test_tokens_are_added_with_their_flags_and_all_files_agree(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", tokenizer(words("a b c"), {"<x>": 3}))
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "<x>"}}, "other": 1})
    write(tmp_path / "added_tokens.json", {"<x>": 3})
    base = read_vocabulary(tmp_path)
    files = extended_tokenizer(base, {"<y>": 4, "d": 5}, {"<y>": {"special": True, "rstrip": True}})
    for name, text in files.items():
        write(tmp_path / "new" / name, text)
    found = read_vocabulary(tmp_path / "new")
    assert found.rows == base.rows | {"<y>": 4, "d": 5}
    assert found.added["<y>"]["special"] is found.added["<y>"]["rstrip"] is True and found.added["d"]["special"] is False
    assert json.loads(files["added_tokens.json"]) == {"<x>": 3, "<y>": 4, "d": 5}
    settings = json.loads(files["tokenizer_config.json"])
    assert settings["other"] == 1 and list(settings["added_tokens_decoder"]) == ["3", "4", "5"]
    tokenizers = pytest.importorskip("tokenizers")
    assert tokenizers.Tokenizer.from_str(files["tokenizer.json"]).get_vocab(True) == found.rows


def test_a_token_that_only_the_settings_have_comes_into_the_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", tokenizer(words("a b c")))
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "[PAD]", "special": True}}})
    files = extended_tokenizer(read_vocabulary(tmp_path), {"<y>": 4}, {})
    added = json.loads(files["tokenizer.json"])["added_tokens"]
    assert [(each["id"], each["content"], each["special"]) for each in added] == [(3, "[PAD]", True), (4, "<y>", False)]


@pytest.mark.parametrize(
    ("trained", "added", "new"),
    [({"a": 0, "b": 5}, {}, {"<x>": 6}), (words("a b"), {"<x>": 9}, {"<y>": 10}), (words("a b"), {}, {"<x>": 3})],
)
def test_ids_with_gaps_cannot_be_added_to(
    tmp_path: Path, trained: dict[str, int], added: dict[str, int], new: dict[str, int]
) -> None:
    write(tmp_path / "tokenizer.json", tokenizer(trained, added))
    with pytest.raises(InputError, match=r"would get id \d and not \d+, as there are gaps between the ids"):
        extended_tokenizer(read_vocabulary(tmp_path), new, {})
    tokenizers = pytest.importorskip("tokenizers")
    every = trained | added | new
    read = tokenizers.Tokenizer.from_str(json.dumps(tokenizer(trained, added | new))).get_vocab(True)
    assert read != every, "the library itself would have others"


def test_a_base_without_a_tokenizer_json_cannot_be_added_to(tmp_path: Path) -> None:
    write(tmp_path / "vocab.json", words("a b"))
    with pytest.raises(InputError, match=r"no tokenizer\.json, which policy vocabulary: union adds tokens to"):
        extended_tokenizer(read_vocabulary(tmp_path), {"<x>": 2}, {})
