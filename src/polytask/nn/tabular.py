"""The default encoder for tables: embedded fields, then an MLP that is an ensemble in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.sentence import SentenceEncoder


class TabularEncoder(nn.Module):
    """Fields of a table -> features ``(N, members, width)``, or ``(N, width)`` with one member.

    Every field becomes ``embedding`` numbers: a numeric one by a piecewise-linear function of its value (Gorishniy et al.,
    *On embeddings for numerical features in tabular deep learning*, NeurIPS 2022), a categorical one by a table, a text by
    the mean of its words' embeddings, or by a pretrained transformer. What is joined of them goes through a BatchEnsemble
    MLP: ``members`` networks that share their weight matrices and differ by vectors that scale each layer's inputs and
    outputs (Gorishniy et al., *TabM: advancing tabular deep learning with parameter-efficient ensembling*, ICLR 2025).
    `polytask.Model` trains every member on every example and averages their predictions.

    Deviations from TabM: numeric fields arrive as ranks in [-1, 1] (see `polytask.data.table.Schema`), so the bins are of
    equal width; categories are embedded, not one-hot; the members of one example share a dropout mask; members share each
    task's head, which the last scale in the encoder makes up for.

    Args:
        numeric, missing: the number of columns of the inputs ``"numeric"`` and ``"missing"``.
        categories: the number of codes of each column of the input ``"categorical"``.
        texts, words: the number of text fields and of codes of their words, in the input ``"text"``.
        sentences: the configuration of the transformer that reads the texts (`polytask.nn.sentence`), if one does.
        pretrained: the folder of its weights; random without it, as for a model whose weights are read later.
        bins: pieces of each numeric field's embedding (32).
        embedding, text_embedding: numbers that a field (8), or a text (64), becomes.
        width, depth: of the MLP, 256 units in each of 2 layers.
        members: networks in the ensemble (8; TabM has 32, which costs four times as much).
        dropout: after each layer (0.1).

    Raises:
        InputError: no field at all.
    """

    def __init__(
        self,
        numeric: int = 0,
        missing: int = 0,
        categories: Sequence[int] = (),
        texts: int = 0,
        words: int = 1,
        sentences: Mapping[str, Any] | None = None,
        *,
        pretrained: Path | None = None,
        bins: int = 32,
        embedding: int = 8,
        text_embedding: int = 64,
        width: int = 256,
        depth: int = 2,
        members: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.fields = {
            "numeric": numeric,
            "missing": missing,
            "categories": list(categories),
            "texts": texts,
            "words": words,
            "sentences": dict(sentences) if sentences else None,
        }
        self.shape = {"bins": bins, "embedding": embedding, "text_embedding": text_embedding, "depth": depth}
        self.width, self.members, self.dropout = width, members, dropout
        self.text: nn.Module | None = None
        if texts and sentences:
            self.text = SentenceEncoder.pretrained(pretrained) if pretrained else SentenceEncoder(sentences)
            text_embedding = self.text.width
        elif texts:
            self.text = nn.EmbeddingBag(words, text_embedding, mode="mean", padding_idx=0)
        joined = embedding * (numeric + len(categories)) + missing + text_embedding * texts
        if joined == 0:
            raise InputError("the table has no feature to learn from, expected at least one column beside the targets")
        self.numeric = PiecewiseLinear(numeric, bins, embedding)
        self.categorical = Categories(categories, embedding)
        sizes = [joined] + [width] * depth
        self.layers = nn.ModuleList(
            BatchEnsemble(before, width, members, random_signs=i == 0) for i, before in enumerate(sizes[:-1])
        )
        self.scale = nn.Parameter(torch.ones(members, width))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features of the inputs that `polytask.data.table.Schema.transform` gives, first dimension ``N``."""
        parts = []
        if "numeric" in inputs:
            parts.append(self.numeric(inputs["numeric"]).flatten(1))
        if "missing" in inputs:
            parts.append(inputs["missing"])
        if "categorical" in inputs:
            parts.append(self.categorical(inputs["categorical"]).flatten(1))
        if self.text is not None:
            texts = inputs["text"]
            parts.append(self.text(texts.flatten(0, 1)).reshape(texts.shape[0], -1))
        features = torch.cat(parts, 1)[:, None]
        for layer in self.layers:
            # One mask for all members of an example: dropout's random numbers would cost as much as a layer otherwise.
            features = F.dropout1d(F.relu(layer(features)).transpose(1, 2), self.dropout, self.training).transpose(1, 2)
        features = features * self.scale
        return features if self.members > 1 else features.squeeze(1)

    @property
    def pretrained(self) -> nn.Module | None:
        """The part that was trained before, which ways of sharing that are inserted adapt: the texts' transformer."""
        return self.text if isinstance(self.text, SentenceEncoder) else None

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that build this encoder again, as JSON values."""
        return {**self.fields, **self.shape, "width": self.width, "members": self.members, "dropout": self.dropout}


class PiecewiseLinear(nn.Module):
    """``(N, D)`` numbers in [-1, 1] -> ``(N, D, size)``: for each column a piecewise-linear curve of ``bins`` equal pieces.

    Bin ``b`` is 0 below its piece, 1 above, and linear on it, so neighbouring values share most of their weights. As in the
    reference code's version B, a plain linear embedding is the start and the pieces begin at zero.
    """

    def __init__(self, columns: int, bins: int, size: int) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.empty(columns, size).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(columns, size).uniform_(-1, 1))
        self.pieces = nn.Parameter(torch.zeros(columns, bins, size))
        self.register_buffer("left", torch.arange(bins).float(), persistent=False)
        self.left: Tensor

    def forward(self, values: Tensor) -> Tensor:
        values = values.to(self.line.dtype)
        filled = ((values[..., None] + 1) * (len(self.left) / 2) - self.left).clamp(0, 1)
        curve = torch.einsum("ndb,dbe->nde", filled, self.pieces)
        return F.relu(values[..., None] * self.line + self.bias + curve)


class Categories(nn.Module):
    """``(N, C)`` integer codes, column ``c`` below ``sizes[c]`` -> ``(N, C, size)``: one embedding table for all columns."""

    def __init__(self, sizes: Sequence[int], size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(sum(sizes), size))
        starts = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)[:-1]
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        return F.embedding(codes + self.starts, self.table)


class BatchEnsemble(nn.Module):
    """``members`` linear layers that share one matrix: ``y_m = s_m * (W (r_m * x_m)) + b_m``.

    ``(N, 1 or members, inputs)`` -> ``(N, members, outputs)``. From Wen, Tran and Ba, *BatchEnsemble*, ICLR 2020, with
    TabM's initialisation: ``r`` of the first layer holds random signs, all other scales are one, so that members begin as
    networks that differ only in how they see the features.
    """

    def __init__(self, inputs: int, outputs: int, members: int, random_signs: bool) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        signs = torch.randint(0, 2, (members, inputs)).float() * 2 - 1
        self.r = nn.Parameter(signs if random_signs and members > 1 else torch.ones(members, inputs))
        self.s = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound).repeat(members, 1))

    def forward(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.linear(features * self.r, self.weight), self.s)
