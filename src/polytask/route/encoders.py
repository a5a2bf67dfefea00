"""Texts to features for a router: a frozen sentence encoder, or weighed character n-grams."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polytask.data.table.sentences import Sentences
from polytask.errors import InputError
from polytask.nn.sentence import MINILM, SentenceEncoder, text_encoder_folder
from polytask.register import Register


@runtime_checkable
class TextEncoder(Protocol):
    """``N`` texts to features ``(N, width)`` float32."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


text_encoders: Register[type[Any]] = Register("text encoder")
"""Encoders that a saved router names. Such a class has ``fit(texts)``, ``settings()``, which its constructor takes, and
``tensors()``, which ``load_tensors`` takes."""


@text_encoders.add("sentences")
class SentenceFeatures:
    """What a frozen transformer makes of each text: the mean over its tokens, see `polytask.nn.sentence.SentenceEncoder`.

    Args:
        encoder: ``"minilm"``, the default, or a folder of `transformers`. A saved router names it and does not contain it.
        tokens: texts are cut here.
        kept: of how many texts the features are kept, those used last, so that the same prompt is encoded once.
    """

    def __init__(self, encoder: Path | str = MINILM, tokens: int = 128, kept: int = 1024) -> None:
        self.encoder, self.tokens, self.kept = str(encoder), tokens, kept
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def fit(self, texts: Sequence[str]) -> SentenceFeatures:
        """Nothing is fitted."""
        return self

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        codes = [[1 + i for i in row.ids[: self.tokens]] for row in self._tokenised(new)]
        # Copies, since a row that is kept would hold on to all the others.
        found = {text: row.clone() for text, row in zip(new, self._network.encode(codes), strict=True)}
        rows = [found[text] if text in found else self._kept[text] for text in texts]
        for text in texts:
            self._kept[text] = found.get(text, self._kept.get(text))  # type: ignore[assignment]
            self._kept.move_to_end(text)
        while len(self._kept) > self.kept:
            self._kept.popitem(last=False)
        return torch.stack(rows) if rows else torch.empty(0, self._network.width)

    def _tokenised(self, texts: Sequence[str]) -> list[Any]:
        rows: list[Any] = self._sentences.tokenizer().encode_batch(list(texts))
        return rows

    @cached_property
    def _sentences(self) -> Sentences:
        return Sentences.read(text_encoder_folder(self.encoder))

    @cached_property
    def _network(self) -> SentenceEncoder:
        return SentenceEncoder.pretrained(text_encoder_folder(self.encoder)).eval().requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"encoder": self.encoder, "tokens": self.tokens, "kept": self.kept}

    def tensors(self) -> dict[str, Tensor]:
        """None: the network stays where it is."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """None are needed."""


@text_encoders.add("ngrams")
class NGramFeatures:
    """Character n-grams hashed into ``width`` places, ``log(1 + count)`` times the inverse document frequency, of length 1.

    A place's sign depends on the n-gram, so that those that share one cancel on average (Weinberger et al., *Feature hashing
    for large scale multitask learning*, ICML 2009).

    Args:
        low, high: the lengths of n-grams, 2 to 4 by default.
        width: 4,096 by default.
    """

    def __init__(self, low: int = 2, high: int = 4, width: int = 4096) -> None:
        if not 1 <= low <= high or width < 1:
            raise InputError(f"n-grams of {low} to {high} in {width} places, expected 1 <= low <= high and a place")
        self.low, self.high, self.width = low, high, width
        self.idf = torch.ones(width)

    def fit(self, texts: Sequence[str]) -> NGramFeatures:
        """Count in how many of ``texts`` each place occurs."""
        often = np.asarray((self._counts(texts) != 0).sum(0)).ravel()
        self.idf = torch.from_numpy(np.log((1 + len(texts)) / (1 + often)) + 1).float()
        return self

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.empty(0, self.width)
        counts = self._counts(texts)
        counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
        features = torch.from_numpy(counts.toarray().astype(np.float32)) * self.idf
        return torch.nn.functional.normalize(features)

    def _counts(self, texts: Sequence[str]) -> Any:
        return self._vectorizer.transform([text.lower() for text in texts])

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(analyzer="char", ngram_range=(self.low, self.high), n_features=self.width, norm=None)

    def settings(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"low": self.low, "high": self.high, "width": self.width}

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted."""
        return {"idf": self.idf}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave."""
        self.idf = tensors["idf"]
