"""The tokenizer of a model folder as far as merging needs it: which token has which row. Read and written as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint.header import LIMIT, open_regular, parse

READABLE = ("tokenizer.json", "vocab.json", "vocab.txt")
"""What a vocabulary is read from: the first of them that is there."""

TOKENS = (*READABLE, "added_tokens.json", "tokenizer_config.json")
"""What has to do with which token has which row."""

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
"""What a token becomes as an added one that was none before."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model folder.

    Attributes:
        folder: where it was read.
        rows: each token's row in the embedding, from 0.
        added: the flags of those that were added to the tokenizer after it was trained, by token.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fill(self, file: Path, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Add tokens and their rows; `InputError` where two have one row, or one has two."""
        tokens = {row: token for token, row in self.rows.items()}
        for token, row in pairs:
            if not isinstance(token, str):
                raise InputError(f"{file}: token {quoted(token)}, expected text")
            if type(row) is not int or row < 0:
                raise InputError(f"{file}: token {quoted(token)} has id {quoted(row)}, expected a whole number from 0")
            if self.rows.setdefault(token, row) != row:
                raise InputError(f"{file}: token {quoted(token)} has ids {self.rows[token]} and {row}, expected one")
            if (other := tokens.setdefault(row, token)) != token:
                raise InputError(f"{file}: tokens {quoted(other)} and {quoted(token)} both have id {row}, expected one")


def is_readable(folder: Path) -> bool:
    """Whether a folder has a file that `read_vocabulary` can read."""
    return any((folder / name).is_file() for name in READABLE)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read which token has which row.

    From ``tokenizer.json`` (the model's vocabulary and the added tokens), or else ``vocab.json`` or ``vocab.txt`` with
    ``added_tokens.json``; then from ``added_tokens_decoder`` in ``tokenizer_config.json``. Of a list that has a token twice
    the last place counts, as it does when text is tokenized.

    Raises:
        InputError: there is no such file, it is no JSON, or an id is there twice or is no whole number from 0.
    """
    found = Vocabulary(folder)
    file = next((folder / name for name in READABLE if (folder / name).is_file()), None)
    if file is None:
        binary = next((name for name in SENTENCEPIECE if (folder / name).is_file()), None)
        there = f"only {binary}" if binary else "none"
        raise InputError(
            f"{folder}: which token has which row is to be read from {', '.join(READABLE)}, and there is {there}: save a "
            "tokenizer.json (transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    if file.name == "tokenizer.json":
        content = _object(file)
        found.fill(file, _trained(file, content))
        _fill_added(found, file, ((each.get("id"), each) for each in _added(file, content)))
    elif file.name == "vocab.json":
        found.fill(file, _object(file).items())
    else:
        found.fill(file, _lines(file).items())
    more = folder / "added_tokens.json"
    if file.name != "tokenizer.json" and more.is_file():
        _fill_added(found, more, ((row, {"content": token}) for token, row in _object(more).items()))
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        _fill_added(found, settings, _decoder(settings, _object(settings)))
    return found


def vocabulary_sizes(folder: Path) -> set[int]:
    """Every ``vocab_size`` of a folder's ``config.json``, also of models within the model."""
    return {size for part in _parts(read_config(folder)) if type(size := part.get("vocab_size")) is int}


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, or an empty dictionary where there is none."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(_bytes(file))  # not `parse`: configurations of some models hold Infinity
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({quoted(str(error))})") from error
    if not isinstance(config, dict):
        raise InputError(f"{file}: a {type(config).__name__}, expected a JSON object")
    return config


def resized_config(folder: Path, rows: Mapping[int, int]) -> dict[str, str]:
    """``config.json`` with every ``vocab_size`` changed from old to new ``rows``, by name its text; none if none changes."""
    config = read_config(folder)
    changes = {old: new for old, new in rows.items() if old != new}
    if not config or not changes:
        return {}
    changed = [part for part in _parts(config) if part.get("vocab_size") in changes]
    for part in changed:
        part["vocab_size"] = changes[part["vocab_size"]]
    # What is the default of its class is not always written.
    within = config.get("text_config")
    silent = [within] if isinstance(within, dict) and "vocab_size" not in within else []
    for part in silent or [config] * (not changed):
        part["vocab_size"] = max(changes.values())
    return {"config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}


def extended_tokenizer(base: Vocabulary, new: dict[str, int], flags: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The base's tokenizer files with ``new`` tokens and their rows as added tokens, by name their text.

    The library that reads ``tokenizer.json`` counts added tokens on from those that are there, and overlooks the ids that
    are written: the rows have to go on from the base's without a gap.

    Args:
        base: the vocabulary that is extended.
        new: rows of the tokens that the base lacks.
        flags: of tokens that were added ones where they come from.

    Raises:
        InputError: the base has no ``tokenizer.json``, or gaps between its ids.
    """
    file = base.folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(
            f"{base.folder}: no tokenizer.json, which policy vocabulary: union adds tokens to: save one (transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    content = _object(file)
    trained = dict(_trained(file, content))
    counted: dict[str, int] = {}
    every = base.rows | new
    own = [str(each.get("content")) for each in _added(file, content)]
    there = {*trained, *own}
    appended = sorted((token for token in every if token not in there), key=every.__getitem__)
    for token in (*own, *appended):
        highest = max(counted.values(), default=-1)
        row = trained.get(token, highest + 1 if highest >= len(trained) else len(trained))
        if counted.setdefault(token, row) != every[token]:
            raise InputError(
                f"{file}: token {quoted(token)} would get id {counted[token]} and not {every[token]}, as there are gaps "
                "between the ids, so that no tokens can be added: expected ids without gaps, or policy vocabulary: base"
            )
    rows = {token: dict(FLAGS, **base.added.get(token, flags.get(token, {}))) for token in appended}
    added = [{"id": every[token], "content": token, **rows[token]} for token in appended]
    files = {"tokenizer.json": {**content, "added_tokens": [*_added(file, content), *added]}}
    settings = base.folder / "tokenizer_config.json"
    if settings.is_file() and "added_tokens_decoder" in (its := _object(settings)):
        decoder = {str(new[token]): {"content": token, **rows[token]} for token in appended if token in new}
        files[settings.name] = {**its, "added_tokens_decoder": {**its["added_tokens_decoder"], **decoder}}
    more = base.folder / "added_tokens.json"
    if more.is_file():
        files[more.name] = {**_object(more), **new}
    return {name: json.dumps(value, ensure_ascii=False) + "\n" for name, value in files.items()}


def _bytes(file: Path) -> bytes:
    with open_regular(file) as opened:
        content = opened.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise InputError(f"{file}: more than {LIMIT} bytes, expected a file of a tokenizer or a configuration")
    return content


def _object(file: Path) -> dict[str, Any]:
    content = parse(_bytes(file), str(file))
    if not isinstance(content, dict):
        raise InputError(f"{file}: a {type(content).__name__}, expected a JSON object")
    return content


def _trained(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The vocabulary of the model in a ``tokenizer.json``: an object by token, or, for Unigram, a list with scores."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list):
        for each in vocabulary:
            if not isinstance(each, list) or len(each) != 2 or not isinstance(each[0], str):
                raise InputError(f"{file}: {quoted(each)} in model.vocab, expected a token and its score")
        yield from {each[0]: row for row, each in enumerate(vocabulary)}.items()
    else:
        raise InputError(f"{file}: no model.vocab, expected a tokenizer.json of the tokenizers library")


def _added(file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
        raise InputError(f"{file}: added_tokens {quoted(added)}, expected a list of objects")
    return added


def _decoder(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """``added_tokens_decoder``: from an id, as text, to the token."""
    decoder = content.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise InputError(f"{file}: added_tokens_decoder {quoted(decoder)}, expected an object by id")
    for key, each in decoder.items():
        if not isinstance(each, dict):
            raise InputError(f"{file}: added_tokens_decoder {quoted(key)}: {quoted(each)}, expected an object")
        yield int(key) if key.isascii() and key.isdigit() and len(key) < 20 else key, each


def _fill_added(found: Vocabulary, file: Path, added: Iterable[tuple[Any, dict[str, Any]]]) -> None:
    every = [(each.get("content"), row, each) for row, each in added]
    found.fill(file, ((token, row) for token, row, _ in every))
    for token, _, each in every:
        found.added.setdefault(str(token), {name: bool(each[name]) for name in FLAGS if name in each})


def _lines(file: Path) -> dict[str, int]:
    """A ``vocab.txt``: a token on each line, in the order of the rows."""
    try:
        text = _bytes(file).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{file}: not UTF-8 text") from error
    # Only the ends of lines that a text file has: tokens may hold the others that Unicode knows.
    return {line.rstrip("\n"): row for row, line in enumerate(io.StringIO(text, newline=None))}


def _parts(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and those within it."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
