"""Folders of models with a tokenizer, and of adapters, written by hand: no library of tokenizers or adapters is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def tokenizer(trained: Any, added: Mapping[str, int] | None = None, **flags: bool) -> dict[str, Any]:
    """What a ``tokenizer.json`` of whole words holds."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} | flags
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": row, "content": token, **plain} for token, row in (added or {}).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": trained, "unk_token": "a"},
    }


def words(text: str) -> dict[str, int]:
    """Rows of words in the order in which they are written."""
    return {word: row for row, word in enumerate(text.split())}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def make_folder(
    path: Path,
    trained: Mapping[str, int],
    added: Mapping[str, int] | None = None,
    *,
    rows: int | None = None,
    names: Sequence[str] = ("model.embed_tokens.weight", "lm_head.weight"),
    width: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    **more: Tensor,
) -> dict[str, Tensor]:
    """Write a model folder; its tensors. ``rows`` of each vocabulary tensor: as many as tokens, unless it is given."""
    every = {**trained, **(added or {})}
    rows = max(every.values()) + 1 if rows is None else rows
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {name: (rows, width) if name.endswith("weight") else (rows,) for name in names}
    if "final_logits_bias" in shapes:
        shapes["final_logits_bias"] = (1, rows)
    shapes["mlp.weight"] = (2, width)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in sorted(shapes.items())} | more
    path.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
    else:
        files = {name: f"model-{k % shards + 1:05}-of-{shards:05}.safetensors" for k, name in enumerate(tensors)}
        for file in set(files.values()):
            save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, path / file)
        write(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    write(path / "config.json", {"vocab_size": rows, "model_type": "llama"} if config is None else config)
    write(path / "tokenizer.json", tokenizer(dict(trained), added))
    return tensors


def make_adapter(folder: Path, modules: Mapping[str, tuple[Tensor, Tensor]], **config: Any) -> Path:
    """A LoRA adapter as PEFT saves it, with factors ``(A, B)`` by module; ``more`` are tensors beside them."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, (a, b) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.float().contiguous()
    save_file(tensors | config.pop("more", {}), folder / "adapter_model.safetensors")
    rank = len(next(iter(modules.values()))[0])
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q"], "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder
