"""The paper's size: T5-XL, and what is inserted at each linear layer of its attention and feed-forward blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from polytask.errors import optional
from polytask.share import MHR, Insertable, insert

T5_XL = {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu"}


def t5_xl() -> Any:
    """T5 1.1 XL without the layer that gives words: Lester et al. made it the language model that the paper uses."""
    transformers = optional("transformers", "text")
    return transformers.T5Model(transformers.T5Config(**T5_XL))


def skills(method: Insertable) -> nn.Module:
    """What a method inserts into T5-XL, with the routing of one task."""
    return nn.ModuleList(insert(t5_xl(), method, ["task"]).parts.values())


def routing(method: MHR) -> nn.Module:
    """The routing of one task alone, which is all that MHR-z and Poly-z train for it."""
    return nn.ParameterList(insert(t5_xl(), method, ["task"]).parameters_of("task"))
