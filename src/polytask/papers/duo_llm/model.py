"""A decoder of Llama's kind, each of whose layers has a big and a small feed-forward part, or none, for each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.route import Alternatives, alternatives_of


class SwiGLU(nn.Module):
    """``w2(silu(w1 x) * w3 x)``, without biases; ``inner`` wide inside."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al., *RoFormer*, 2021), without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise InputError(f"attention of width {width} with {heads} heads, expected a multiple of {2 * heads}")
        self.heads = heads
        self.inputs, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


def rotated(x: Tensor) -> Tensor:
    """``(N, heads, T, d)``: pairs of features turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    speeds = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Layer(nn.Module):
    """``h' = h + attention(norm(h))``, then ``h' + F(norm(h'))`` with the ``F`` that each token uses."""

    def __init__(self, width: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads), feed_forward
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class DuoLM(nn.Module):
    """A language model whose tokens use a big or a small feed-forward part in each layer, at random at first.

    Alizadeh et al., *Duo-LLM*, 2024. Trained with a draw for each token and layer, the parts are interchangeable; then
    `polytask.route.choosing` gives any pattern, and `add_routers` learns one.

    Args:
        vocabulary: how many symbols; the embedding is the output layer too.
        width, layers, heads: of the decoder.
        big, small: what the two parts are wide inside.
        skip: let a token pass a layer's feed-forward part by, as a third choice.
    """

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, big: int, small: int, *, skip: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)

        def parts() -> dict[str, nn.Module | None]:
            pair: dict[str, nn.Module | None] = {"big": SwiGLU(width, big), "small": SwiGLU(width, small)}
            return pair | {"skip": None} if skip else pair

        self.layers = nn.Sequential(*(Layer(width, heads, Alternatives(parts())) for _ in range(layers)))
        self.norm = nn.RMSNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, T)`` int64 to logits of the next token, ``(N, T, vocabulary)``."""
        return F.linear(self.norm(self.layers(self.embedding(tokens))), self.embedding.weight)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The cross-entropy of the next token, as `polytask.fit` takes it: inputs and ``{"next": targets}``, ``(N, T)``."""
        tokens, targets = batch
        return {"next": F.cross_entropy(self(tokens).flatten(0, 1), targets["next"].flatten())}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


def add_routers(model: DuoLM) -> list[nn.Parameter]:
    """Give each layer a linear router from a token to its choices, and make it the policy; the new parameters."""
    width = model.embedding.embedding_dim
    found: list[nn.Parameter] = []
    for alternatives in alternatives_of(model):
        router = nn.Linear(width, len(alternatives.names), bias=False).to(model.embedding.weight.device)
        alternatives.router, alternatives.policy = router, "router"
        found.extend(router.parameters())
    return found
