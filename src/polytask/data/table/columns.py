"""What a table's columns are, and how each becomes numbers: fitted on training rows only, saved with the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

KNOTS = 256
"""Points at which a number's distribution is kept."""

CATEGORIES = 4096
"""Categories that get a code of their own; a column with more is hashed into as many codes."""

RARE = 3
"""A category with fewer training rows than this shares the code of the categories that training never saw."""

WORDS = 16384
"""Codes that the words of texts are hashed into."""

TEXT_LENGTH = 64
"""Words of a text that are read, at most."""

TOKENS = 128
"""Tokens of a text that a pretrained encoder reads, at most."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Number:
    """A column, or one part of a date, as its rank in [-1, 1] among the training values.

    The rank is the middle of the value's step in the cumulative distribution, linear between ``KNOTS`` points, and clamped
    outside the training range, so that no outlier, scale or skew reaches the network. Half of the distribution's mass is
    spread over the rows and half over the *distinct* values: a column that is 0 in 97 % of the rows keeps half of the
    range for the other values. A missing or infinite value is 0, the middle, and has an indicator of its own when training
    rows have missing values too.
    """

    column: str
    part: str
    knots: Floats
    ranks: Floats
    missing: bool

    @classmethod
    def fit(cls, column: str, part: str, values: Floats, missing: bool) -> Number:
        """Fitted to ``values``, all finite and at least one; ``missing``: whether training has missing values too."""
        distinct, counts = np.unique(values, return_counts=True)
        mass = counts / counts.sum() / 2 + 1 / (2 * len(distinct))
        ranks = 2 * (np.cumsum(mass) - mass / 2) - 1
        if len(distinct) > KNOTS:
            kept = np.unique(np.searchsorted(ranks, np.linspace(ranks[0], ranks[-1], KNOTS)).clip(max=len(distinct) - 1))
            distinct, ranks = distinct[kept], ranks[kept]
        return cls(column, part, distinct, ranks, missing)

    def encode(self, values: Floats) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Ranks, and which are missing."""
        absent = ~np.isfinite(values)
        ranks = np.interp(values, self.knots, self.ranks)
        ranks[absent] = 0
        return ranks, absent


@dataclass(frozen=True, eq=False)
class Category:
    """A column of categories as codes: 0 is missing, 1 any category that is rare or was not seen in training, then its own.

    With more than ``CATEGORIES`` categories that are not rare, ``categories`` is empty and a category's code is
    ``2 + crc32(category) % CATEGORIES``.
    """

    column: str
    categories: tuple[str, ...]
    hashed: bool

    @classmethod
    def fit(cls, column: str, values: pl.Series) -> Category:
        """Fitted to ``values``, strings that are not missing."""
        counts = values.value_counts(name="count")
        common = counts.filter(pl.col("count") >= RARE)[:, 0]
        hashed = len(common) > CATEGORIES
        return cls(column, () if hashed else tuple(common.sort()), hashed)

    @property
    def size(self) -> int:
        """The number of codes."""
        return 2 + (CATEGORIES if self.hashed else len(self.categories))

    def encode(self, values: pl.Series) -> NDArray[np.int64]:
        """Codes of ``values``, strings."""
        if self.hashed:
            return _by_distinct(values, lambda text: 2 + _hash(text) % CATEGORIES)
        codes = values.cast(pl.Enum(self.categories), strict=False).to_physical().cast(pl.Int64) + 2
        return codes.fill_null(1).set(values.is_null(), 0).to_numpy()


@dataclass(frozen=True, eq=False)
class Text:
    """A column of texts as the codes of their words, ``1 + crc32(column, word) % (WORDS - 1)``; 0 fills up to ``length``."""

    column: str
    length: int

    @classmethod
    def fit(cls, column: str, values: pl.Series) -> Text:
        """As long as 95 % of the texts, ``TEXT_LENGTH`` at most; ``values`` are strings that are not missing."""
        lengths = _words(values).list.len()
        return cls(column, int(min(max(lengths.quantile(0.95) or 1, 1), TEXT_LENGTH)))

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Codes ``(N, length)`` of ``values``, strings."""
        words = _words(values).list.head(self.length).fill_null([])
        lengths = words.list.len().to_numpy().astype(np.int64)
        codes = np.zeros((len(values), self.length), np.int32)
        filled = np.arange(self.length) < lengths[:, None]
        flat = words.filter(words.list.len() > 0).explode()
        codes[filled] = _by_distinct(flat, lambda word: 1 + _hash(f"{self.column} {word}") % (WORDS - 1))
        return codes


@dataclass(frozen=True, eq=False)
class Tokens:
    """A column of texts as 1 + the ids of its tokens, which a pretrained encoder reads; 0 fills up to ``length``."""

    column: str
    length: int

    @classmethod
    def fit(cls, column: str, values: pl.Series, tokenizer: Any) -> Tokens:
        """As long as 95 % of the texts, `TOKENS` at most; ``values`` are strings that are not missing."""
        lengths = [len(codes) for codes in _tokenized(tokenizer, values, TOKENS)]
        return cls(column, max(1, int(np.quantile(lengths, 0.95))))

    def encode(self, values: pl.Series, tokenizer: Any) -> NDArray[np.int32]:
        """Codes ``(N, length)`` of ``values``, strings."""
        codes = np.zeros((len(values), self.length), np.int32)
        known = values.is_not_null().to_numpy()
        for row, ids in zip(np.flatnonzero(known), _tokenized(tokenizer, values.drop_nulls(), self.length), strict=True):
            codes[row, : len(ids)] = np.asarray(ids) + 1
        return codes


def _tokenized(tokenizer: Any, values: pl.Series, length: int) -> list[list[int]]:
    """The ids of each text's tokens, with those that begin and end a text, ``length`` at most."""
    tokenizer.enable_truncation(max(length, 1 + tokenizer.num_special_tokens_to_add(is_pair=False)))
    return [encoding.ids[:length] for encoding in tokenizer.encode_batch_fast(values.to_list())]


def _words(values: pl.Series) -> pl.Series:
    return values.str.to_lowercase().str.extract_all(r"\w+")


def _hash(text: str) -> int:
    # Not Python's or polars' hash: those differ between processes or versions, and a saved model must not.
    return zlib.crc32(text.encode())


def _by_distinct(values: pl.Series, code: Callable[[str], int]) -> NDArray[np.int64]:
    """``code`` of every value, computed once for each distinct one; 0 where it is null."""
    distinct = values.drop_nulls().unique()
    codes = pl.Series([code(value) for value in distinct], dtype=pl.Int64)
    return values.replace_strict(distinct, codes, default=0, return_dtype=pl.Int64).to_numpy()
