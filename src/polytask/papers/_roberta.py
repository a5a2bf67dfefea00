"""RoBERTa at its two sizes, by `transformers`: build it on the meta device to count it."""

from __future__ import annotations

from typing import Any, Literal

from polytask.errors import optional

FEED_FORWARD = "*[0-9].output.LayerNorm"
"""The normalisation behind each block's feed-forward network, not that behind its attention."""


def roberta(size: Literal["base", "large"]) -> Any:
    """The encoder without its pooler. Liu et al., *RoBERTa: a robustly optimized BERT pretraining approach*, 2019."""
    transformers = optional("transformers", "text")
    width, layers = {"base": (768, 12), "large": (1024, 24)}[size]
    config = transformers.RobertaConfig(
        vocab_size=50265,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    return transformers.RobertaModel(config, add_pooling_layer=False)
