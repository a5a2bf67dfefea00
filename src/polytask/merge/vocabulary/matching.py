"""Models whose vocabularies differ: rows of embeddings are matched by token, not by their place."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint import Checkpoint, Entry, is_adapter
from polytask.merge.vocabulary.rows import Layout, common
from polytask.merge.vocabulary.tokenizer import (
    TOKENS,
    Vocabulary,
    extended_tokenizer,
    is_readable,
    read_vocabulary,
    resized_config,
    vocabulary_sizes,
)

Vocabularies = Literal["error", "base", "union"]

KNOWN = (
    # what turns tokens into vectors
    "embed_tokens.weight",
    "word_embeddings.weight",
    "word_embedding.weight",
    "tok_embeddings.weight",
    "token_embedding.weight",
    "embeddings.weight",
    "shared.weight",
    "wte.weight",
    "embed_in.weight",
    # what turns vectors into scores of tokens
    "lm_head.weight",
    "lm_head.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "generator_lm_head.weight",
    "generator_lm_head.bias",
    "predictions.bias",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
    "decoder.weight",
    "decoder.bias",
    "vocab_projector.weight",
    "vocab_projector.bias",
    "pred_layer.proj.weight",
    "pred_layer.proj.bias",
    "embed_out.weight",
    "output_layer.weight",
    "output.weight",
    "proj_out.weight",
    "head.weight",
    "final_logits_bias",
)
"""How names of vocabulary tensors end in the models of transformers: they are these, or have a dot before them."""

MULTIPLES = (128, 64, 32, 16, 8)
"""What embeddings are padded to."""

ANSWERS = "with policy vocabulary: base the output has the base's tokens, with union those of all"


@dataclass(frozen=True)
class Change:
    """The vocabulary of one model beside that of the base, or of the first model without a base: tokens by their rows.

    Attributes:
        model: its path.
        new: tokens that the base lacks.
        lacking: tokens of the base that it lacks.
        moved: tokens that have another row in the base.
    """

    model: str
    new: list[str]
    lacking: list[str]
    moved: list[str]


@dataclass
class Match:
    """Vocabularies that differ, matched.

    Attributes:
        policy: ``"base"`` or ``"union"``.
        tokens: of the output, with their rows.
        layouts: where the rows of each vocabulary tensor come from, by its name.
        changes: model by model.
        unreachable: new tokens that are no added tokens where they come from.
        unknown: tensors that are merged as they lie although they have as many rows: no names of vocabulary tensors.
        has_base: whether there is a base, or the first model stands for it.
        files: texts of the files of the output that are not the base's, by name.
    """

    policy: Vocabularies
    tokens: Mapping[str, int]
    layouts: Mapping[str, Layout]
    changes: Sequence[Change]
    unreachable: Sequence[str]
    unknown: Sequence[str]
    has_base: bool
    files: Mapping[str, str] = field(repr=False)

    def lines(self) -> list[str]:
        """What was matched, for a person."""
        sizes = ", ".join(f"{name} {list(layout.shape)}" for name, layout in self.layouts.items())
        lines = [f"rows matched by token (policy vocabulary: {self.policy}): {len(self.tokens):,} tokens; {sizes}"]
        base = "base" if self.has_base else "first model"
        stands_in = "the base's rows are taken" if self.has_base else "the mean of the others is taken"
        for change in self.changes:
            kinds = (
                (change.new, f"that the {base} lacks, {'left out' if self.policy == 'base' else 'added'}"),
                (change.lacking, f"of the {base} lacking, for which {stands_in}"),
                (change.moved, f"at other rows than in the {base}"),
            )
            parts = [f"{_counted(tokens)} {what} ({_some(tokens)})" for tokens, what in kinds if tokens]
            lines.append(f"{change.model}: {'; '.join(parts) or f'the tokens and rows of the {base}'}")
        if self.has_base and self.policy == "union" and any(change.new for change in self.changes):
            lines.append(
                "a token that the base lacks has no task vector: its row is the plain mean over the models that have it, "
                "whatever the rule and its weights"
            )
        if self.unreachable:
            lines.append(
                f"{_counted(self.unreachable)} added that are no added tokens where they come from: they are found only in "
                f"text that has them letter by letter ({_some(self.unreachable)})"
            )
        if self.unknown:
            lines.append(
                f"as many rows, but not matched, as no vocabulary tensor is known by such a name: {_some(self.unknown)}; "
                "policy vocabulary_tensors would name them"
            )
        return lines

    def digest(self) -> str:
        """Of all that decides on rows and files."""
        found = hashlib.sha256(self.policy.encode())
        for name, layout in self.layouts.items():
            found.update(repr((name, layout.shape, layout.dtype)).encode())
            for index in [*([] if layout.base is None else [layout.base]), *layout.models]:
                found.update(index.numpy().tobytes())
        for text in self.files.values():
            found.update(text.encode())
        return found.hexdigest()


def match_vocabularies(
    models: Sequence[Checkpoint], base: Checkpoint | None, policy: Vocabularies = "error", tensors: Sequence[str] = ()
) -> Match | None:
    """Match the rows of vocabulary tensors by token; ``None`` where they are the same in all inputs.

    A tensor is a vocabulary tensor if its name ends as one of `KNOWN` does, and it has as many rows as a ``vocab_size`` in
    ``config.json`` says, that of the base, or of the first model without one. If the configuration says none (what is the
    default of its class is not always written), the names decide, of tensors with a row for each token. Rows lie along
    the first dimension, or along the second of a bias of shape ``(1, V)``; there may be more than tokens (padding).
    ``tensors`` names others.

    With ``"error"``, tokens that have rows must have the same in all inputs that have a tokenizer that can be read.

    With ``"base"`` the output has the tokens and the rows of the base. Tokens that only a model has are left out; for
    those that it lacks it takes the base's row, a task vector of 0. Rows without a token (padding) are the base's.

    With ``"union"`` the tokens that the base lacks follow its last one, in the order of the models and of their rows. They
    take the base's rows of padding. Where these do not suffice, and the base's rows were padded to a multiple of 128, 64,
    32, 16 or 8 (the largest that divides them counts), so are the output's: what is added to that end repeats the base's
    last row of padding, which a head is used to give the score of no token. A new token has no row in the base
    and so no task vector: its row is the plain mean over the models that have it, whatever the rule and its weights.

    Without a base the first model takes its place; a model that lacks a token takes the mean of those that have it, and
    the rule merges these rows as it does all others.

    Args:
        models: what is merged. An adapter without a tokenizer of its own has the base's.
        base: what they were fine-tuned from, if any.
        policy: see above.
        tensors: patterns, with ``*`` and ``?``, of the names of vocabulary tensors beside the known ones.

    Raises:
        InputError: vocabularies differ, with ``"error"``; a vocabulary cannot be read; a token has no row in a tensor; or
            tokens cannot be added to the base's tokenizer.
    """
    reference = models[0] if base is None else base
    if policy == "error":
        others = [model for model in models if is_readable(model.path) and not _looks_same(reference, model)]
        if others and is_readable(reference.path):
            own = read_vocabulary(reference.path)
            sizes = _vocabulary_tensors(reference, own, tensors)
            for model in others:
                _check_same(reference, own, model, read_vocabulary(model.path), sizes)
        return None
    own = read_vocabulary(reference.path)
    sizes = _vocabulary_tensors(reference, own, tensors)
    if not sizes:
        raise InputError(
            f"{reference.path}: no tensor is known to have a row for each token, expected patterns of their names as policy "
            "vocabulary_tensors"
        )
    inputs = [*([] if base is None else [base]), *models]
    vocabularies = [own if each is reference else _vocabulary(each, own, sizes) for each in inputs]
    for each, vocabulary in zip(inputs, vocabularies, strict=True):
        _check_rows(reference, each, vocabulary, sizes)
    if all(vocabulary is own for vocabulary in vocabularies) and not any(
        rows_of(each.entries[name]) != rows for each in inputs for name, rows in sizes.items() if name in each.entries
    ):
        return None
    places = dict(own.rows)
    if policy == "union":
        next_row = max(places.values(), default=-1) + 1
        for vocabulary in vocabularies:
            new = sorted(vocabulary.rows.keys() - places.keys(), key=vocabulary.rows.__getitem__)
            places |= {token: next_row + k for k, token in enumerate(new)}
            next_row += len(new)
    return _match(policy, inputs, base is not None, vocabularies, places, sizes)


def rows_of(entry: Entry) -> int:
    """How many rows a vocabulary tensor has, padding included."""
    return entry.shape[1] if _lies_across(entry) else entry.shape[0]


def _lies_across(entry: Entry) -> bool:
    """Whether tokens lie along the second dimension, as in the ``final_logits_bias`` of BART."""
    return len(entry.shape) == 2 and entry.shape[0] == 1 and not entry.name.endswith(".weight")


def _vocabulary_tensors(reference: Checkpoint, own: Vocabulary, patterns: Sequence[str]) -> dict[str, int]:
    """The names of the vocabulary tensors, and how many rows each has."""
    found: dict[str, int] = {}
    sizes = vocabulary_sizes(reference.path)
    for name, entry in reference.entries.items():
        if entry.numel == 0 or not entry.shape:
            continue
        rows = rows_of(entry)
        known = any(name == end or name.endswith(f".{end}") for end in KNOWN)
        fits = rows in sizes if sizes else rows > max(own.rows.values(), default=-1)
        if (known and fits) or any(fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = rows
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise InputError(f"policy vocabulary_tensors: {pattern!r} matches no tensor of {reference.path}")
    return found


def _vocabulary(checkpoint: Checkpoint, own: Vocabulary, sizes: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a model: the base's itself where it is the same, or where an adapter has none and as many rows."""
    if is_adapter(checkpoint.path) and not is_readable(checkpoint.path):
        entries = checkpoint.entries
        if all(name not in entries or rows_of(entries[name]) == rows for name, rows in sizes.items()):
            return own
    if _same_files(own.folder, checkpoint.path):
        return own
    found = read_vocabulary(checkpoint.path)
    return own if found.rows == own.rows else found


def _same_files(one: Path, other: Path) -> bool:
    """Whether what says which token has which row is the same in two folders, to the byte: then it need not be read."""
    pairs = [(one / name, other / name) for name in TOKENS]
    return all(a.is_file() == b.is_file() and (not a.is_file() or filecmp.cmp(a, b, shallow=False)) for a, b in pairs)


def _looks_same(reference: Checkpoint, model: Checkpoint) -> bool:
    """Whether a model has the base's files, and no tensor of another shape."""
    ours, its = reference.entries, model.entries
    return _same_files(reference.path, model.path) and all(
        its[name].shape == entry.shape for name, entry in ours.items() if name in its
    )


def _check_same(
    reference: Checkpoint, own: Vocabulary, model: Checkpoint, other: Vocabulary, sizes: Mapping[str, int]
) -> None:
    """Raise `InputError` where tokens that have rows have others in a model, or it has more or fewer rows."""
    there = [name for name in sizes if name in model.entries]
    if not there:
        return
    its = min(rows_of(model.entries[name]) for name in there)
    ours = {token: row for token, row in own.rows.items() if row < min(sizes.values())}
    theirs = {token: row for token, row in other.rows.items() if row < its}
    if ours != theirs:
        by_row = [token for rows in (ours, theirs) for token in sorted(rows, key=rows.__getitem__)]
        first = next(token for token in by_row if ours.get(token) != theirs.get(token))
        in_ours, in_theirs = (f"row {rows[first]}" if first in rows else "no row" for rows in (ours, theirs))
        raise InputError(
            f"{model.path}: token {quoted(first)} has {in_theirs}, and {in_ours} in {reference.path}; expected the same "
            f"tokens at the same rows (policy vocabulary: error); {ANSWERS}"
        )
    for name in there:
        if rows_of(model.entries[name]) != sizes[name]:
            raise InputError(
                f"{model.path}: tensor {name!r} has {rows_of(model.entries[name])} rows, expected {sizes[name]} as in "
                f"{reference.path} (policy vocabulary: error): the tokens are the same, the rest is padding; {ANSWERS}"
            )


def _check_rows(reference: Checkpoint, each: Checkpoint, vocabulary: Vocabulary, sizes: Mapping[str, int]) -> None:
    """Raise `InputError` unless each token has a row, and rows are of one length and of floating-point numbers."""
    last = max(vocabulary.rows, key=vocabulary.rows.__getitem__, default="")
    for name in sizes:
        if name not in each.entries:
            continue
        entry, ours = each.entries[name], reference.entries[name]
        if vocabulary.rows.get(last, -1) >= rows_of(entry):
            raise InputError(
                f"{vocabulary.folder}: token {quoted(last)} has id {vocabulary.rows[last]}, but {name} in {each.path} has "
                f"{rows_of(entry)} rows: expected a row for each token"
            )
        if not entry.is_float:
            raise InputError(f"{each.path}: tensor {name!r} is of {entry.dtype}, expected numbers whose rows can be merged")
        if _lies_across(entry) != _lies_across(ours) or (not _lies_across(ours) and entry.shape[1:] != ours.shape[1:]):
            raise InputError(
                f"{each.path}: tensor {name!r} has shape {list(entry.shape)}, expected {list(ours.shape)} as in "
                f"{reference.path}, but for the number of rows"
            )


def _match(
    policy: Vocabularies,
    inputs: Sequence[Checkpoint],
    has_base: bool,
    vocabularies: Sequence[Vocabulary],
    places: Mapping[str, int],
    sizes: Mapping[str, int],
) -> Match:
    """The rows of the output from the ``places`` of its tokens. The first input is the base, or stands for it."""
    reference, own = inputs[0], vocabularies[0]
    count = max(places.values(), default=-1) + 1
    indices = [_index(places, vocabulary, count) for vocabulary in vocabularies]
    taken = torch.zeros(count, dtype=torch.bool)
    taken[list(places.values())] = True
    last = max(own.rows.values(), default=-1)
    layouts: dict[str, Layout] = {}
    made: dict[tuple[int, ...], list[Tensor]] = {}
    for name, rows in sizes.items():
        there = [name in each.entries for each in inputs]
        size = _padded(count, rows, last + 1)
        if (key := (rows, *there)) not in made:
            index = [i if has else torch.full_like(i, -1) for i, has in zip(indices, there, strict=True)]
            made[key] = [torch.nn.functional.pad(each, (0, size - count), value=-1) for each in index]
            free = torch.nn.functional.pad(~taken, (0, size - count), value=True)
            made[key][0][free] = torch.arange(size)[free].clamp(max=rows - 1)
        index = made[key]
        lost = torch.stack(index).amax(0) < 0
        if bool(lost.any()):
            token = next(token for token, row in places.items() if lost[row])
            raise InputError(
                f"{reference.path}: token {quoted(token)} would have no row in {name}, as no model that has the token has "
                "that tensor: expected models that all have it"
            )
        entry = reference.entries[name]
        shape = (1, size) if _lies_across(entry) else (size, *entry.shape[1:])
        dtype = common([each.entries[name].dtype for each, has in zip(inputs, there, strict=True) if has])
        layouts[name] = Layout(shape, dtype, index[0] if has_base else None, index[1:] if has_base else index)
    flags: dict[str, Mapping[str, Any]] = {}
    for vocabulary in vocabularies:
        flags = {**vocabulary.added, **flags}
    new = {token: row for token, row in places.items() if token not in own.rows}
    files = extended_tokenizer(own, new, flags) if new else {}
    files |= resized_config(reference.path, {sizes[name]: len(layout.models[0]) for name, layout in layouts.items()})
    changes = [_change(each, its, own) for each, its in zip(inputs, vocabularies, strict=True)][1:]
    unknown = [
        name
        for name, entry in reference.entries.items()
        if name not in sizes and entry.is_float and entry.shape and rows_of(entry) in sizes.values()
    ]
    unreachable = [token for token in new if token not in flags]
    return Match(policy, places, layouts, changes, unreachable, unknown, has_base, files)


def _index(places: Mapping[str, int], vocabulary: Vocabulary, count: int) -> Tensor:
    """For each row of the output the row of the same token in a vocabulary, or -1, ``(count,)``."""
    index = torch.full((count,), -1)
    at, rows = (
        torch.from_numpy(np.fromiter(values, np.int64, len(places)))
        for values in (places.values(), (vocabulary.rows.get(token, -1) for token in places))
    )
    index[at] = rows
    return index


def _padded(count: int, rows: int, tokens: int) -> int:
    """The rows of the output for ``count`` tokens, where the base has ``rows`` for its own ``tokens``."""
    if count <= rows:
        return rows
    multiple = next((m for m in MULTIPLES if rows % m == 0), 1) if rows > tokens else 1
    return -(-count // multiple) * multiple


def _change(model: Checkpoint, its: Vocabulary, own: Vocabulary) -> Change:
    if its is own:
        return Change(str(model.path), [], [], [])
    new = sorted(its.rows.keys() - own.rows.keys(), key=its.rows.__getitem__)
    lacking = sorted(own.rows.keys() - its.rows.keys(), key=own.rows.__getitem__)
    moved = [token for token, row in own.rows.items() if its.rows.get(token, row) != row]
    return Change(str(model.path), new, lacking, moved)


def _counted(tokens: Sequence[str]) -> str:
    return f"{len(tokens):,} token{'s' if len(tokens) > 1 else ''}"


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(map(quoted, tokens[:3])) + (", ..." if len(tokens) > 3 else "")
