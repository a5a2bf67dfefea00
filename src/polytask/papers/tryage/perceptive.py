"""The perceptive router: a transformer that is trained to predict every expert's loss, one task for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.data.examples import Examples
from polytask.errors import InputError, optional

BERT_SMALL = {
    "vocab_size": 30522,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 512,
}
"""A small BERT, as the router is said to be; the paper's own sizes are not known to us."""


class PerceptiveRouter(nn.Module):
    """A transformer's pooled output and a linear layer to ``K`` predicted losses; trained by `polytask.fit`.

    Each expert is a task, with the error of its predicted loss on the prompts where that is known. So any balancer weighs
    experts against one another.

    Args:
        transformer: of `transformers`, with a pooler: its output is read from ``pooler_output``.
        experts: their names.
        error: ``"squared"``, the default, or ``"huber"`` with a threshold of 1.
    """

    def __init__(self, transformer: Any, experts: Sequence[str], error: Literal["squared", "huber"] = "squared") -> None:
        super().__init__()
        if getattr(transformer, "pooler", None) is None:
            raise InputError("perceptive router: the transformer has no pooler")
        self.transformer, self.tasks = transformer, tuple(experts)
        self.output = nn.Linear(transformer.config.hidden_size, len(self.tasks))
        self.error = F.huber_loss if error == "huber" else F.mse_loss

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """``input_ids`` and ``attention_mask``, each ``(N, L)``, to ``(N, K)``."""
        predicted: Tensor = self.output(self.transformer(**inputs).pooler_output)
        return predicted

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Each expert's mean error; an expert that no prompt of the batch knows a loss of is left out."""
        inputs, targets = batch
        predicted = self(inputs)
        found = {}
        for k, name in enumerate(self.tasks):
            known = ~targets[name].isnan()
            if known.any():
                found[name] = self.error(predicted[known, k], targets[name][known].to(predicted.dtype))
        return found

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The transformer's."""
        parameters: Iterator[nn.Parameter] = self.transformer.parameters()
        return parameters


def bert_small() -> Any:
    """`BERT_SMALL` with random weights."""
    transformers = optional("transformers", "text")
    return transformers.BertModel(transformers.BertConfig(**BERT_SMALL))


def labelled(
    tokenizer: Any, texts: Sequence[str], losses: np.ndarray, experts: Sequence[str], tokens: int = 512
) -> Examples:
    """Prompts and their rows of a loss table, ``(N, K)`` with NaN where not known, as `polytask.fit` takes them."""
    encoded = tokenizer(list(texts), padding="longest", truncation=True, max_length=tokens, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return Examples(inputs, {name: torch.from_numpy(losses[:, k].copy()).float() for k, name in enumerate(experts)})
