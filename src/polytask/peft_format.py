"""LoRA adapters as PEFT describes and names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from polytask.errors import InputError, quoted

T = TypeVar("T", int, float)

CONFIG = "adapter_config.json"
"""The file of an adapter's settings, beside its tensors."""

PREFIX = "base_model.model."
"""What the name of every tensor begins with."""

REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
)
"""Settings that make of an adapter something else than the base plus ``scaling * B @ A``."""


class LoRASettings(pydantic.BaseModel):
    """What is needed of ``adapter_config.json``."""

    model_config = pydantic.ConfigDict(extra="allow")

    peft_type: str
    r: pydantic.PositiveInt
    lora_alpha: pydantic.FiniteFloat = 8
    lora_dropout: pydantic.FiniteFloat = 0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, pydantic.FiniteFloat] = {}
    init_lora_weights: Any = True

    def rank(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str, rank: int) -> float:
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)


def lora_settings(content: Any, path: str) -> LoRASettings:
    """The settings in the parsed JSON of ``path``; `InputError` for an adapter that is no plain LoRA."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}, expected a JSON object")
    # PEFT writes null for what was left out.
    try:
        settings = LoRASettings.model_validate({key: value for key, value in content.items() if value is not None})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place} {quoted(first['input'])}: {first['msg']}") from error
    if settings.peft_type != "LORA":
        raise InputError(f"{path}: peft_type {quoted(settings.peft_type)}, expected 'LORA'")
    for key in REFUSED:
        if content.get(key):
            raise InputError(f"{path}: {key} {quoted(content[key])}, expected plain LoRA, whose deltas are scaling * B @ A")
    for pattern in (*settings.rank_pattern, *settings.alpha_pattern):
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise InputError(f"{path}: pattern {quoted(pattern)}: {error}, expected a regular expression") from error
    start = settings.init_lora_weights
    if isinstance(start, str) and start.lower() not in ("gaussian", "orthogonal", "eva"):
        raise InputError(
            f"{path}: init_lora_weights {quoted(start)} changes the base as training starts, expected an adapter to the "
            "unchanged base (peft: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    return settings


def split_name(file: str, full: str) -> tuple[str, str | None]:
    """A tensor of an adapter: the module's name and which factor (``A``, ``B``, ``embedding_A``, ..., ``bias``), or the
    name of a tensor saved whole and ``None``."""
    name = full.removeprefix(PREFIX)
    if name == full:
        raise InputError(f"{file}: tensor {quoted(full)}, expected names that start with {PREFIX!r}")
    factor = re.fullmatch(r"(.+)\.lora_(?:([AB])\.weight|(embedding_[AB])|B\.(bias))", name)
    if factor:
        return factor[1], factor[2] or factor[3] or factor[4]
    if ".lora_" in name:
        raise InputError(f"{file}: tensor {quoted(full)}, expected the factors of plain LoRA")
    return re.sub(r"\.(modules_to_save|base_layer)(?=\.)", "", name), None


def _by_pattern(patterns: Mapping[str, T], module: str, default: T) -> T:
    """The value whose pattern, a regular expression, matches the end of the module's name; the first, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
