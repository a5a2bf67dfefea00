"""Encoders of `transformers` in a panel: the first token as features, and the masked language model as a further loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.model import Model
from polytask.scope import task_scope


class FirstToken(nn.Module):
    """The last layer's first token, ``(N, width)``: what stands for a pair of texts.

    It takes what a tokenizer gives of contexts and responses, ``tokenizer(contexts, responses, max_length=128, ...)``, as
    ``{"input_ids": (N, tokens), "attention_mask": (N, tokens), ...}``.

    Args:
        encoder: a model of `transformers` without a head.
        dropout: of the features while training; 0.5 by default, as in the paper's predecessor.
    """

    def __init__(self, encoder: Any, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, dropout
        self.width = int(encoder.config.hidden_size)

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last layer's tokens, ``(N, tokens, width)``."""
        states: Tensor = self.encoder(**inputs).last_hidden_state
        return states

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.dropout(self.states(inputs)[:, 0], self.dropout, self.training)


class WithMaskedLM(nn.Module):
    """A panel's model whose losses have one more, ``masked lm``: tokens are hidden and predicted, as in BERT.

    The paper's predecessor trains with the sum of both losses. It runs in the scope of the batch's domain, whose adapters
    learn from it too. It meets the protocol `polytask.model.Losses`.

    Args:
        model: of a panel, with an encoder `FirstToken`.
        head: from tokens ``(N, tokens, width)`` to logits ``(N, tokens, vocabulary)``, as ``lm_head`` of `transformers` is.
        mask: the number of the mask token.
        special: the numbers of tokens that are never hidden.
        vocabulary: how many tokens there are.
        share: of the tokens that are hidden; 0.15 by default.
    """

    def __init__(
        self, model: Model, head: nn.Module, mask: int, special: Sequence[int], vocabulary: int, share: float = 0.15
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.mask, self.special, self.vocabulary, self.share = mask, tuple(special), vocabulary, share
        self.tasks = (*model.tasks, "masked lm")

    def losses(self, batch: Mapping[str, tuple[Mapping[str, Tensor], Tensor]]) -> dict[str, Tensor]:
        """The losses of each domain in the batch, and the mean over domains of ``masked lm``."""
        encoder: Any = self.model.encoder
        hidden = []
        for domain, (inputs, _) in batch.items():
            ids, targets = hide(inputs["input_ids"], self.mask, self.special, self.vocabulary, self.share)
            with task_scope(domain):
                states = encoder.states({**inputs, "input_ids": ids})
            chosen = targets >= 0
            # A sum that is divided: a batch in which nothing was hidden has a loss of 0.
            loss = F.cross_entropy(self.head(states[chosen]), targets[chosen], reduction="sum")
            hidden.append(loss / chosen.sum().clamp(min=1))
        return {**self.model.losses(batch), "masked lm": torch.stack(hidden).mean()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.model.shared_parameters()


def hide(ids: Tensor, mask: int, special: Sequence[int], vocabulary: int, share: float) -> tuple[Tensor, Tensor]:
    """Tokens of which some are hidden, and what to predict: the token where one was chosen, else -100.

    Of the tokens that are not special each is chosen with probability ``share``; eight in ten of those become ``mask``, one
    in ten any token, and one stays (Devlin et al., *BERT*, 2019).

    Args:
        ids: ``(N, tokens)`` int64.
    """
    ordinary = ~torch.isin(ids, torch.tensor(tuple(special), device=ids.device))
    chosen = ordinary & (torch.rand(ids.shape, device=ids.device) < share)
    kind = torch.rand(ids.shape, device=ids.device)
    hidden = torch.where(chosen & (kind < 0.8), mask, ids)
    hidden = torch.where(chosen & (kind >= 0.9), torch.randint_like(ids, vocabulary), hidden)
    return hidden, torch.where(chosen, ids, -100)
