"""A tiny text encoder on disk, as `transformers` writes one, and a small table of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

WORDS = ("good", "bad", "fair", "service", "food", "the", "was", "and")
TARGETS = ("liked", "about")


def encoder(folder: Path) -> Path:
    """A BERT of two layers and 16 units with random weights, and a tokenizer that knows `WORDS`."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    special = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))}
    vocabulary = special | {word: 4 + i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)  # as a package may leave it
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def table(path: Path, rows: int = 120) -> Path:
    """Reviews with two targets that depend on them, a number, and some missing texts, as CSV."""
    rng = np.random.default_rng(0)
    mood, subject = rng.choice(["good", "bad", "fair"], rows), rng.choice(["service", "food"], rows)
    texts = [
        f"the {s} was {m} and the {s} was {m}" + " and" * int(i % 7)
        for i, (m, s) in enumerate(zip(mood, subject, strict=True))
    ]
    frame = pl.DataFrame(
        {
            "review": [None if i % 29 == 5 else f"{text} {i}" for i, text in enumerate(texts)],
            "visits": rng.integers(0, 9, rows),
            "liked": np.where(mood == "good", "yes", "no"),
            "about": subject,
        }
    )
    frame.write_csv(path)
    return path
