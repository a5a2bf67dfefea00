"""Losses of local language models, in bits for each character, so that models with other tokens compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.route.expert import Example, Losses


def bits_per_character(
    model: Any,
    tokenizer: Any,
    *,
    unit: Literal["character", "byte"] = "character",
    masked: float = 0.0,
    tokens: int = 512,
) -> Losses:
    """Losses of a model of `transformers`: the bits that it needs for a text, divided by the text's length.

    A causal model is judged on the reference given the prompt where the reference is a text, else on the prompt. Every token
    has to be predicted: the first from the tokenizer's token for a beginning or an end; where it has neither, the first
    token is given, and its characters do not count. Losses per token depend on the tokens; these do not.

    Args:
        model: causal, with logits ``(N, L, vocabulary)``; or masked, when ``masked`` is above 0. It is put into evaluation
            mode.
        tokenizer: the model's, one of the fast ones.
        unit: what the length is counted in, Unicode characters or bytes of UTF-8.
        masked: the part of a prompt's tokens that are masked and have to be predicted, at least one, the same for a text
            every time: 0.15 is BERT's. The bits are divided by the length of what is masked.
        tokens: texts are cut here; what is cut off does not count.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"bits per character: {type(tokenizer).__name__} knows no characters, expected a fast tokenizer")
    if not 0 <= masked < 1 or (masked and tokenizer.mask_token_id is None):
        raise InputError(f"bits per character: masked {masked}, expected from 0 to 1, and a tokenizer with a mask")
    model.eval()

    @torch.no_grad()
    def losses(examples: Sequence[Example]) -> list[float]:
        rows = [
            _masked(tokenizer, example, masked, tokens, unit) if masked else _causal(tokenizer, example, tokens, unit)
            for example in examples
        ]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64, device=model.device)
        there = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            there[i, : len(row.ids)] = 1
        logits: Tensor = model(input_ids=ids, attention_mask=there).logits
        found = []
        for row, of_row in zip(rows, logits, strict=True):
            nats = F.cross_entropy(
                of_row[row.places].float(), torch.tensor(row.targets, device=of_row.device), reduction="sum"
            )
            found.append(float(nats) / math.log(2) / row.length)
        return found

    return losses


class _Row(NamedTuple):
    """What the model reads; the places whose logits count, what should be there, and how long that is as text."""

    ids: list[int]
    places: list[int]
    targets: list[int]
    length: int


def _causal(tokenizer: Any, example: Example, tokens: int, unit: str) -> _Row:
    given = tokenizer(example.prompt, add_special_tokens=False)["input_ids"] if isinstance(example.reference, str) else []
    text = example.reference if isinstance(example.reference, str) else example.prompt
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prefix = [*([start] if start is not None else []), *given][-(tokens // 2) :]
    if not prefix:
        prefix, ids, spans = ids[:1], ids[1:], spans[1:]
    ids, spans = ids[: tokens - len(prefix)], spans[: tokens - len(prefix)]
    first = len(prefix) - 1
    return _Row([*prefix, *ids], list(range(first, first + len(ids))), ids, _length(text, spans, unit))


def _masked(tokenizer: Any, example: Example, part: float, tokens: int, unit: str) -> _Row:
    encoded = tokenizer(example.prompt, truncation=True, max_length=tokens, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
    able = [place for place, (begin, end) in enumerate(spans) if end > begin]
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(example.prompt.encode()).digest()[:7], "big"))
    count = max(1, round(part * len(able)))
    places = sorted(able[i] for i in torch.randperm(len(able), generator=generator)[:count].tolist())
    targets = [ids[place] for place in places]
    for place in places:
        ids[place] = tokenizer.mask_token_id
    return _Row(ids, places, targets, _length(example.prompt, [spans[place] for place in places], unit))


def _length(text: str, spans: Sequence[tuple[int, int]], unit: str) -> int:
    if unit == "character":
        covered = {place for begin, end in spans for place in range(begin, end)}  # parts of one character share its place
        length = len(covered)
    else:
        covered = {place for begin, end in spans for place in range(begin, end)}
        length = sum(len(text[place].encode()) for place in covered)
    if not length:
        raise InputError(f"nothing to predict in a text of {len(text)} characters")
    return length
