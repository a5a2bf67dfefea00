"""Language models of characters that are counted in a moment: cheap experts whose losses are real."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polytask.errors import InputError
from polytask.route import Example


class CharacterModel:
    """An n-gram model of bytes with the smoothing of Witten and Bell (1991).

    ``P_n(w | h) = (c(hw) + T(h) P_{n-1}(w | h')) / (c(h) + T(h))`` with ``T(h)`` the number of different bytes seen after
    ``h``, and ``P_0 = 1/256``. A text begins after bytes 0, which no text has.

    Args:
        order: the length of the longest n-grams, 1 to 7.
    """

    def __init__(self, order: int) -> None:
        if not 1 <= order <= 7:
            raise InputError(f"order {order} of a character model, expected 1 to 7")
        self.order = order
        self._levels: list[_Level] = []

    def fit(self, texts: Sequence[str], weights: np.ndarray | None = None) -> CharacterModel:
        """Count ``texts``, each ``weights`` times (1 by default; those of weight 0 are left out), from a new start."""
        weights = np.ones(len(texts)) if weights is None else np.asarray(weights, dtype=float)
        kept = [i for i, weight in enumerate(weights) if weight > 0]
        grams, lengths = self._grams([texts[i] for i in kept])
        times = np.repeat(weights[kept], lengths)
        self._levels = [_Level(codes, times) for codes in grams]
        return self

    @property
    def size(self) -> int:
        """How many n-grams are stored, of all lengths."""
        return sum(len(level.grams) for level in self._levels)

    def chances(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each byte given those before it in its text, all texts in one row, and the texts' lengths."""
        grams, lengths = self._grams(texts)
        chance = np.full(int(lengths.sum()), 1 / 256)
        for level, codes in zip(self._levels, grams, strict=True):
            chance = level.smoothed(codes, chance)
        return chance, lengths

    def bits(self, texts: Sequence[str]) -> np.ndarray:
        """Bits per character of each text, ``(N,)``; 0 for an empty one."""
        chance, lengths = self.chances(texts)
        of_text = np.repeat(np.arange(len(texts)), lengths)
        total = np.bincount(of_text, -np.log2(chance), minlength=len(texts))
        bits: np.ndarray = total / np.array([max(1, len(text)) for text in texts])
        return bits

    def losses(self, examples: Sequence[Example]) -> list[float]:
        """The losses of `polytask.route.Expert`: bits per character of the prompts."""
        return [float(bits) for bits in self.bits([example.prompt for example in examples])]

    def _grams(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """For each length the n-gram that ends at each byte, as a number of base 256; and the texts' lengths in bytes."""
        before = bytes(self.order - 1)
        encoded = [text.encode() for text in texts]
        row = np.frombuffer(b"".join(before + text for text in encoded), dtype=np.uint8).astype(np.int64)
        lengths = np.array([len(text) for text in encoded], dtype=np.int64)
        starts = np.cumsum(lengths + len(before)) - lengths
        ends = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        found, code = [], np.zeros(len(ends), dtype=np.int64)
        for n in range(self.order):
            code = code + (row[ends - n] << (8 * n))
            found.append(code)
        return found, lengths


class _Level:
    """The counts of n-grams of one length, and of what they begin with."""

    def __init__(self, codes: np.ndarray, times: np.ndarray) -> None:
        self.grams, where = np.unique(codes, return_inverse=True)
        self.counts = np.bincount(where, times, minlength=len(self.grams))
        self.contexts, where = np.unique(self.grams >> 8, return_inverse=True)
        self.totals = np.bincount(where, self.counts, minlength=len(self.contexts))
        self.types = np.bincount(where, minlength=len(self.contexts)).astype(float)

    def smoothed(self, codes: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        count = _at(self.grams, self.counts, codes)
        total, types = _at(self.contexts, self.totals, codes >> 8), _at(self.contexts, self.types, codes >> 8)
        seen = total > 0
        return np.where(seen, (count + types * shorter) / np.where(seen, total + types, 1.0), shorter)


def _at(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
