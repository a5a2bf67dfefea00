"""MiniLM as it is, for papers that keep it frozen: what it gives of each text is computed once, and kept.

All-MiniLM-L6-v2 (Wang et al., *MiniLM*, 2020), whose weights a package of the extra ``text`` has: six layers of width 384.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from polytask.files import cache_folder, sha256
from polytask.nn.sentence import MINILM, SentenceEncoder, text_encoder_folder
from polytask.papers._experts.experts import cached
from polytask.papers._experts.text import _read as read_gzip

__all__ = ["Text", "embedded", "kept", "minilm", "read_gzip", "tokenised"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""

WIDTH = 384
CHUNK = 1000


def minilm() -> Any:
    """The network, one of `transformers`, frozen and in evaluation mode."""
    return SentenceEncoder.pretrained(text_encoder_folder(MINILM)).transformer.eval().requires_grad_(False)


def tokenised(texts: Sequence[Text], tokens: int) -> dict[str, Tensor]:
    """What the network takes: each text cut to ``tokens`` tokens, or padded to the longest."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_encoder_folder(MINILM))
    return dict(tokenizer(list(texts), padding="longest", truncation=True, max_length=tokens, return_tensors="pt"))


def embedded(texts: Sequence[str], tokens: int = 64) -> Tensor:
    """The network's sentence embeddings, ``(N, WIDTH)``: the mean over tokens of its last layer, of length 1.

    They are kept, `CHUNK` texts at a time, so that a run that ends early loses little.
    """
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    return torch.cat([kept("embedded", _embedded, chunk, tokens=tokens)["embeddings"] for chunk in chunks])


@torch.no_grad()
def _embedded(texts: Sequence[str], tokens: int) -> dict[str, Tensor]:
    bert, found = minilm(), torch.empty(len(texts), WIDTH)
    inputs = tokenised(texts, tokens)
    order = inputs["attention_mask"].sum(1).argsort()  # texts of one length together need no padding
    for start in range(0, len(texts), 64):
        rows = order[start : start + 64]
        longest = int(inputs["attention_mask"][rows].sum(1).max())
        batch = {name: tensor[rows, :longest] for name, tensor in inputs.items()}
        there = batch["attention_mask"][..., None]
        found[rows] = (bert(**batch).last_hidden_state * there).sum(1) / there.sum(1)
    return {"embeddings": torch.nn.functional.normalize(found)}


def kept(name: str, make: Callable[..., Mapping[str, Tensor]], texts: Sequence[Text], **settings: Any) -> dict[str, Tensor]:
    """What ``make(texts, **settings)`` gives, out of the user's cache folder where it gave it before.

    Args:
        name: of the file.
        make: a function; when its source changes, or this module's, it is called again.
        texts: what it is given; others have other files.
        settings: further arguments.
    """
    parts = [torch.__version__, sha256(Path(__file__)), inspect.getsource(make), repr(settings), repr(list(texts))]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = cache_folder() / "features" / f"{name}-{digest}.safetensors"
    return cached(path, lambda: dict(make(texts, **settings)))
