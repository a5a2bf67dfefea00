"""The paper's language models, with SMoRA in all linear layers of their blocks: build them on the meta device to count."""

from __future__ import annotations

from typing import Any

from polytask.errors import optional
from polytask.share import SMoRA, insert

LLAMA: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
"""Touvron et al., *Llama 2: open foundation and fine-tuned chat models*, 2023; 32,000 tokens."""

QWEN = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
"""Qwen2.5-7B: Qwen team, *Qwen2.5 technical report*, 2024."""


def llama(size: str) -> Any:
    """Llama 2, ``"7B"`` or ``"13B"``, with the paper's 64 ranks, 8 of them active, in seven layers of each block."""
    transformers = optional("transformers", "text")
    return _adapted(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA[size])))


def qwen() -> Any:
    """Qwen2.5-7B with the same."""
    transformers = optional("transformers", "text")
    return _adapted(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN)))


def _adapted(model: Any) -> Any:
    insert(model, SMoRA(), ["all"], where="*_proj").freeze()
    return model
