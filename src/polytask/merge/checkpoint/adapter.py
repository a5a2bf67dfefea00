"""Low-rank adapters as PEFT saves them, read as the whole model that they make of their base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint._checkpoint import Checkpoint, Entry, Source, nearest
from polytask.merge.checkpoint.header import LIMIT, open_regular, parse
from polytask.merge.checkpoint.opening import ADAPTERS, open_checkpoint
from polytask.peft_format import CONFIG, LoRASettings, lora_settings, split_name

BLOCK = 2**18
"""Elements of the product of two factors that are computed at a time, in whole rows."""


@dataclass(frozen=True)
class _Delta:
    """``scaling * left @ right``, ``(R, r)`` by ``(r, C)``: what is added to a tensor, seen as ``R`` rows of ``C``."""

    left: Tensor
    right: Tensor
    scaling: float


class _Sum:
    """Tensors of a source, each with its delta added, in float32 or, for float64, in that."""

    def __init__(self, below: Mapping[str, Source], deltas: Mapping[str, _Delta]) -> None:
        self._below = below
        self._deltas = deltas

    def read(self, name: str, start: int, stop: int) -> Tensor:
        delta = self._deltas[name]
        piece = self._below[name].read(name, start, stop)
        total = torch.empty_like(piece)
        exact = torch.promote_types(piece.dtype, torch.float32)
        right = delta.right.to(exact)
        width = right.shape[1]
        # The same blocks whatever piece is asked for: the sums of a product may depend on how many rows it has.
        rows = max(1, BLOCK // width)
        for first in range(start // (rows * width) * rows, -(-stop // width), rows):
            product = (delta.left[first : first + rows].to(exact) @ right).mul_(delta.scaling).flatten()
            low, high = max(start, first * width), min(stop, first * width + len(product))
            here = slice(low - start, high - start)
            total[here] = piece[here].to(exact) + product[low - first * width : high - first * width]
        return total

    def release(self, name: str) -> None:
        self._below[name].release(name)


class _Renamed:
    """Tensors of a source under other names."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self._source = source
        self._names = names

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._source.read(self._names[name], start, stop)

    def release(self, name: str) -> None:
        self._source.release(self._names[name])


def open_adapter(path: Path | str, base: Checkpoint) -> Checkpoint:
    """Open a LoRA adapter as the model that it makes of ``base``: ``W + scaling * B @ A`` for the weights that it adapts.

    Hu et al., *LoRA: low-rank adaptation of large language models*, ICLR 2022. ``scaling`` is ``alpha / r``, or
    ``alpha / sqrt(r)`` with ``use_rslora`` (Kalajdzievski, *A rank stabilization scaling factor for fine-tuning with LoRA*,
    2023), by module where ``rank_pattern`` and ``alpha_pattern`` say so. ``A`` is ``(r, in)`` and ``B`` ``(out, r)``, for a
    linear layer, for one that stores its weight as ``(in, out)``, for an embedding or for a convolution. Where a square
    weight leaves open which way it lies, ``fan_in_fan_out`` decides. Nothing is computed until it is read; then a
    block of rows at a time, in float32, rounded once to the base's dtype. (PEFT rounds the product to the
    adapter's dtype and the sum to the base's.)

    Modules saved whole (``modules_to_save``, biases, embeddings) take the place of the base's, in the shape and dtype in
    which they were saved; one that the base has not, such as a new head, is added. All else is the base's. Names may
    differ by one leading part, as when the base was saved without its head (``h.0`` and ``transformer.h.0``).

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``adapter_model.bin``.
        base: the model that the adapter was trained on. It stays the caller's to close, after this one.

    Raises `InputError` for adapters that are no plain LoRA (such as ``use_dora``), for factors that do not fit the base, and
    for tensors in the adapter that would otherwise be ignored.
    """
    lora = read_factors(path)
    file, adapter, factors = lora.file, lora.tensors, lora.modules
    rename = _renaming(file, factors, base)

    replaced = {name if rename(name) not in base.entries else rename(name): full for name, full in lora.saved.items()}
    entries = dict(base.entries)
    entries.update({name: replace(adapter.entries[full], name=name) for name, full in replaced.items()})
    sources: dict[str, Source] = dict.fromkeys(base.entries, base)
    sources.update({name: _Renamed(adapter, replaced) for name in replaced})

    deltas: dict[str, _Delta] = {}
    for module, names in factors.items():
        weight = entries[f"{rename(module)}.weight"]
        if weight.name in deltas:
            raise InputError(f"{file}: module {quoted(module)} and another one both adapt the base's {weight.name}")
        deltas[weight.name] = _delta(lora, module, weight)
        if "bias" in names:
            bias = entries.get(f"{rename(module)}.bias")
            deltas[f"{rename(module)}.bias"] = _bias(file, names["bias"], adapter, deltas[weight.name].scaling, bias)
    total = _Sum(dict(sources), deltas)
    sources.update(dict.fromkeys(deltas, total))
    return Checkpoint(lora.path, [*base.files, *adapter.files], entries, base.metadata, sources)


@dataclass(frozen=True)
class Factors:
    """An adapter's folder, read: what is in it, not yet what it is added to.

    Attributes:
        path, file: the folder, and the file of its tensors.
        config: ``adapter_config.json`` as it is.
        settings: what is needed of it.
        tensors: the file's tensors.
        modules: for each adapted module, relative to the base, its factors' full names by part: ``A`` and ``B``, or
            ``embedding_A`` and ``embedding_B``, and ``bias`` if there is one.
        saved: tensors that were saved whole: their names relative to the base, and in full.
    """

    path: Path
    file: Path
    config: dict[str, Any]
    settings: LoRASettings
    tensors: Checkpoint
    modules: dict[str, dict[str, str]]
    saved: dict[str, str]

    def pair(self, module: str) -> tuple[str, str]:
        """The parts that a module's two factors are, A's first."""
        names = self.modules[module]
        pair = ("embedding_A", "embedding_B") if "embedding_A" in names or "embedding_B" in names else ("A", "B")
        if set(names) - {"bias"} != set(pair):
            found = ", ".join(sorted(names))
            raise InputError(f"{self.file}: module {quoted(module)}: factors {found}, expected {' and '.join(pair)}")
        return pair

    def read(self, module: str) -> tuple[Tensor, Tensor, float]:
        """A module's factors ``A (r, ...)`` and ``B (out, r, ...)``, and its scaling."""
        a, b = (_factor(self.tensors, self.modules[module][part]) for part in self.pair(module))
        rank = self.settings.rank(module)
        if a.dim() < 2 or a.shape[0] != rank or rank < 1:
            where = f"{self.file}: module {quoted(module)}"
            raise InputError(f"{where}: A is {tuple(a.shape)}, expected rank {rank} as adapter_config.json says")
        return a, b, self.settings.scaling(module, rank)


def read_factors(path: Path | str) -> Factors:
    """Read a LoRA adapter's folder; `InputError` for what `open_adapter` refuses, whatever the base."""
    path = Path(path)
    config, settings = _read_settings(path / CONFIG)
    file = next((path / name for name in ADAPTERS if (path / name).is_file()), None)
    if file is None:
        raise InputError(f"{path}: no factors, expected {' or '.join(ADAPTERS)}")
    adapter = open_checkpoint(file)
    modules: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for full in adapter.entries:
        name, part = split_name(str(file), full)
        kept, key = (saved, name) if part is None else (modules.setdefault(name, {}), part)
        if key in kept:
            raise InputError(f"{file}: tensors {quoted(kept[key])} and {quoted(full)} stand for the same")
        kept[key] = full
    if not modules:
        raise InputError(f"{file}: no LoRA factors, expected lora_A and lora_B of at least one module")
    return Factors(path, file, config, settings, adapter, modules, saved)


def _read_settings(path: Path) -> tuple[dict[str, Any], LoRASettings]:
    """``adapter_config.json``, as it is and as what is needed of it."""
    with open_regular(path) as file:
        content = parse(file.read(LIMIT), str(path))
    return content, lora_settings(content, str(path))


def _renaming(file: Path, modules: Iterable[str], base: Checkpoint) -> Callable[[str], str]:
    """From the adapter's names to the base's: as they are, less their first part, or with one of the base's before them."""

    def shortened(name: str) -> str:
        return name.partition(".")[2]

    def prefixed(head: str) -> Callable[[str], str]:
        return lambda name: f"{head}.{name}"

    heads = sorted({name.partition(".")[0] for name in base.entries})
    modules = list(modules)
    ways: list[Callable[[str], str]] = [str, shortened, *map(prefixed, heads)]
    for way in ways:
        if all(f"{way(module)}.weight" in base.entries for module in modules):
            return way
    lacking = next(f"{module}.weight" for module in modules if f"{module}.weight" not in base.entries)
    raise InputError(f"{file}: adapts {quoted(lacking)}, which {base.path} has not, {nearest(lacking, base.entries)}")


def _delta(lora: Factors, module: str, weight: Entry) -> _Delta:
    where = f"{lora.file}: module {quoted(module)}"
    pair = lora.pair(module)
    a, b, scaling = lora.read(module)
    rank = len(a)
    if not weight.is_float:
        raise InputError(f"{where}: the base's {weight.name} is {weight.dtype}, expected floating-point numbers")
    # A convolution's B is (out, r, 1, ...): a product of matrices all the same.
    matrices = a.flatten(1), b.view(b.shape[:2]) if b.dim() > 1 and b[0, 0].numel() == 1 else b
    plain = b.shape[1:2] == (rank,) and (b.shape[0], *a.shape[1:]) == weight.shape
    turned = a.dim() == b.dim() == 2 and b.shape[1] == rank and (a.shape[1], b.shape[0]) == weight.shape
    lies_turned = pair[0] == "embedding_A" or lora.settings.fan_in_fan_out
    if turned and (lies_turned or not plain):
        return _Delta(a.T, b.T, scaling)
    if plain and pair[0] == "A" and matrices[1].shape == b.shape[:2]:
        return _Delta(matrices[1], matrices[0], scaling)
    raise InputError(
        f"{where}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit the base's {weight.name} of shape {weight.shape}"
    )


def _bias(file: Path, full: str, adapter: Checkpoint, scaling: float, bias: Entry | None) -> _Delta:
    values = _factor(adapter, full)
    if bias is None or bias.shape != tuple(values.shape) or not bias.is_float:
        raise InputError(f"{file}: tensor {quoted(full)} of shape {tuple(values.shape)}: the base has no bias like it")
    return _Delta(values[:, None], values.new_ones(1, 1), scaling)


def _factor(adapter: Checkpoint, name: str) -> Tensor:
    entry = adapter.entries[name]
    if not entry.is_float or not entry.numel:
        raise InputError(f"{adapter.path}: tensor {quoted(name)}: {entry.dtype} {entry.shape}, expected numbers")
    return adapter.read(name).view(entry.shape)
