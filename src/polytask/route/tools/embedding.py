"""Selection by meaning: documents and requests as vectors, by any function of texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError, optional
from polytask.route.tools.registry import Registry
from polytask.route.tools.selection import Hit, Selection, best
from polytask.route.tools.vectors import VectorIndex

Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]
"""From N texts to vectors ``(N, width)``."""


def sentence_embedder(name: Path | str = "minilm", tokens: int = 64, batch: int = 64) -> Embed:
    """A frozen text encoder as a function of texts; by default all-MiniLM-L6-v2, on the processor.

    Args:
        name: of the encoder, or its folder (`polytask.nn.sentence.text_encoder_folder`).
        tokens: longer texts are cut.
        batch: texts at a time; those of one length are put together.
    """
    import torch  # which nothing else of the platform needs

    from polytask.nn.sentence import SentenceEncoder, text_encoder_folder

    folder = text_encoder_folder(name)
    encoder = SentenceEncoder.pretrained(folder).eval()
    tokenizer: Any = optional("tokenizers", "text").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)

    def embed(texts: Sequence[str]) -> Floats:
        codes = [[1 + i for i in one.ids] for one in tokenizer.encode_batch(list(texts))]
        vectors: Floats = torch.nn.functional.normalize(encoder.encode(codes, batch)).numpy()
        return vectors

    return embed


class Embedding:
    """The documents whose vectors, or whose usage examples' vectors, are nearest to the request's.

    Args:
        registry: the documents.
        index: their vectors; what is missing there is embedded by `refresh`.
        embed: from texts to vectors, of requests and documents alike.
        probe: how many clusters of the index a search looks at; ``None`` for all.
    """

    def __init__(self, registry: Registry, index: VectorIndex, embed: Embed, probe: int | None = 32) -> None:
        self.registry, self.index, self.embed, self.probe = registry, index, embed, probe

    def refresh(self, batch: int = 1024) -> int:
        """Embed the documents that the index does not have yet, some at a time, and say how many they were."""
        known = self.index.ids()
        missing = [one for one in self.registry.ids() if one not in known]
        for start in range(0, len(missing), batch):
            some = missing[start : start + batch]
            texts = [(one, text) for one, d in zip(some, self.registry.get(some), strict=True) for text in d.texts()]
            self.index.add([one for one, _ in texts], self.embed([text for _, text in texts]))
        return len(missing)

    def select(self, request: str, k: int, modules: Collection[str] | None = None) -> Selection:
        return self.search(self.embed([request])[0], k, modules)

    def search(self, vector: Floats, k: int, modules: Collection[str] | None = None) -> Selection:
        """The same for the vector of a request."""
        if modules is not None:
            among = np.array(sorted(self.registry.ids(modules)), np.int64)
            return self.index.search(vector, k, among=among)
        more = k  # versions that are no longer alive take places: ask for more until there are enough
        while True:
            found = self.index.search(vector, more, probe=self.probe)
            alive = self.registry.living(found.ids)
            hits = tuple(hit for hit in found.hits if hit.id in alive)[:k]
            if len(hits) == k or len(found.hits) < more or more >= 16_000:
                return Selection(hits, found.scored)
            more *= 2


class Centroids:
    """Modules by the mean of their documents' vectors, for `ModuleFirst`.

    Args:
        embedding: the documents' vectors; it is read once.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embed = embedding.embed
        self.names = list(embedding.registry.modules())
        if not self.names:
            raise InputError("module strategy: the registry has no documents, expected some")
        module = {one: n for n, name in enumerate(self.names) for one in embedding.registry.ids([name])}
        sums = np.zeros((len(self.names), embedding.index.width), np.float32)
        for ids, vectors in embedding.index.rows():
            own = np.array([module.get(one, -1) for one in ids.tolist()])
            np.add.at(sums, own[own >= 0], vectors[own >= 0])
        self.centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def __len__(self) -> int:
        return len(self.names)

    def modules(self, request: str, count: int) -> list[str]:
        """The modules whose mean is nearest to the request."""
        scores = self.centroids @ self.embed([request])[0]
        hits: tuple[Hit, ...] = best(np.arange(len(self.names)), scores, count)
        return [self.names[hit.id] for hit in hits]
