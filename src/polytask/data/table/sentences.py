"""What a schema keeps of a pretrained text encoder, so that a saved model reads texts without its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polytask.errors import InputError, optional
from polytask.nn.sentence import read_config


@dataclass(frozen=True, eq=False)
class Sentences:
    """A pretrained text encoder's tokenizer and configuration; its weights are the model's.

    Attributes:
        tokens: the tokenizer, as its ``tokenizer.json`` has it.
        config: the transformer's ``config.json``.
    """

    tokens: str
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Sentences:
        """Of the encoder in ``folder``; `InputError` for files that cannot be read."""
        sentences = cls((folder / "tokenizer.json").read_text(), read_config(folder))
        try:
            sentences.tokenizer()
        except Exception as error:  # tokenizers raises no class of its own
            raise InputError(f"{folder / 'tokenizer.json'}: cannot be read as a tokenizer ({error})") from error
        return sentences

    def tokenizer(self) -> Any:
        """The tokenizer, a ``tokenizers.Tokenizer`` without padding."""
        return _tokenizer(self.tokens)


@cache
def _tokenizer(tokens: str) -> Any:
    made = optional("tokenizers", "text").Tokenizer.from_str(tokens)
    made.no_padding()
    return made
