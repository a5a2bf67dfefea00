"""LoRA in PEFT's format: its adapters become tasks of one insertion, and each task an adapter that it loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from polytask.errors import InputError, quoted, suggest
from polytask.files import replacing
from polytask.peft_format import CONFIG, PREFIX, LoRASettings, lora_settings, split_name
from polytask.share._linear import weight_of
from polytask.share.insertion import Inserted, insert
from polytask.share.lora import LoRA, LoRAPart

WEIGHTS = "adapter_model.safetensors"
"""The file of an adapter's factors."""


@dataclass(frozen=True)
class _Adapter:
    """One adapter: by the name of the module, ``A (r, in)`` and ``B (out, r)``, which contains the scaling."""

    factors: dict[str, tuple[Tensor, Tensor]]
    settings: LoRASettings


def save_peft(inserted: Inserted, folder: Path | str, task: str) -> None:
    """Write what ``task`` has of a LoRA insertion as an adapter of PEFT: ``PeftModel.from_pretrained(base, folder)`` loads
    it.

    Args:
        inserted: of `LoRA`; `as_lora` makes one of an insertion of MHR.
        folder: made if need be; a file that is there is replaced whole.
        task: one of the insertion's tasks.
    """
    method, folder = inserted.method, Path(folder)
    if not isinstance(method, LoRA):
        raise InputError(f"an insertion of {method.name}, expected lora")
    if task not in inserted.tasks:
        raise InputError(f"unknown task {task!r}: {suggest(task, inserted.tasks)}")
    tensors: dict[str, Tensor] = {}
    for place, part in inserted.parts.items():
        assert isinstance(part, LoRAPart)
        for which, factor in {"A": part.of(task).a, "B": part.of(task).b}.items():
            tensors[f"{PREFIX}{place}.lora_{which}.weight"] = factor.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": getattr(inserted.model, "name_or_path", None),
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "fan_in_fan_out": not all(isinstance(inserted.model.get_submodule(place), nn.Linear) for place in inserted.parts),
        "target_modules": list(inserted.parts),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        safetensors.save_file(tensors, temporary, {"format": "pt"})
    with replacing(folder / CONFIG) as temporary:
        Path(temporary).write_text(json.dumps(config, indent=2))


def load_peft(model: nn.Module, folders: Mapping[str, Path | str], name: str | None = None) -> Inserted:
    """Insert LoRA adapters that PEFT saved into ``model``, each as a task: one network then serves, or trains, all of them.

    Adapters may differ in their modules and ranks: the insertion has the largest rank, and what an adapter lacks is 0 in it.
    Where their scalings differ, ``B`` contains the difference. The dropout is that of the first.

    Args:
        model: the base, as the adapters were trained on it.
        folders: of the adapters, by task.
        name: of the insertion; ``"lora"`` by default.

    Raises `InputError` for a folder that is no LoRA adapter, one whose modules are not in ``model`` or have other sizes, and
    one with settings that are more than two factors (DoRA, trained biases, whole modules); then nothing is changed.
    """
    if not folders:
        raise InputError("no adapter is given, expected a folder for each task")
    adapters = {task: _read(Path(folder), model) for task, folder in folders.items()}
    first = next(iter(adapters.values())).settings
    rank = max(len(a) for adapter in adapters.values() for a, _ in adapter.factors.values())
    places = {place for adapter in adapters.values() for place in adapter.factors}
    method = LoRA(rank, alpha=first.scaling("", first.r) * rank, dropout=first.lora_dropout)
    inserted = insert(model, method, tuple(adapters), lambda place, module: place in places, name)
    with torch.no_grad():
        for task, adapter in adapters.items():
            for place, part in inserted.parts.items():
                assert isinstance(part, LoRAPart)
                factors = part.of(task)
                factors.b.zero_()
                if place in adapter.factors:
                    a, b = adapter.factors[place]
                    factors.a.zero_()
                    factors.a[: len(a)].copy_(a)
                    factors.b[:, : len(a)].copy_(b / method.scaling)
    return inserted


def _read(folder: Path, model: nn.Module) -> _Adapter:
    file = folder / WEIGHTS
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read as JSON ({error})") from error
    settings = lora_settings(content, str(folder / CONFIG))
    try:
        tensors = safetensors.load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read as a safetensors file ({error})") from error
    found: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        place, which = split_name(str(file), full)
        if which not in ("A", "B"):
            raise InputError(f"{file}: tensor {quoted(full)}, expected factors A and B of linear layers alone")
        found.setdefault(place, {})[which] = tensor
    if not found:
        raise InputError(f"{file}: no factors in it")
    return _Adapter({place: _pair(file, model, place, pair, settings) for place, pair in found.items()}, settings)


def _pair(
    file: Path, model: nn.Module, place: str, pair: dict[str, Tensor], settings: LoRASettings
) -> tuple[Tensor, Tensor]:
    """The factors of one module, ``B`` times the scaling."""
    modules = dict(model.named_modules())
    if place not in modules:
        raise InputError(f"{file}: module {quoted(place)} is not in the network: {suggest(place, modules)}")
    layer, shapes = modules[place], {which: tuple(factor.shape) for which, factor in pair.items()}
    rank = settings.rank(place)
    if isinstance(layer, LoRA().types):
        outputs, inputs = weight_of(layer).shape
        if shapes == {"A": (rank, inputs), "B": (outputs, rank)}:
            return pair["A"].float(), pair["B"].float() * settings.scaling(place, rank)
    kind = type(layer).__name__
    raise InputError(f"{file}: module {quoted(place)}: factors {shapes} of rank {rank} do not fit the network's {kind}")
