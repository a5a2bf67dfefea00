"""Low-rank adapters merged as what they are: factors in, factors out, and no base is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch as safetensors
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.files import replacing_folder, write_json, write_text
from polytask.merge.checkpoint.adapter import Factors, read_factors
from polytask.merge.engine.rule import PerModel, per_model


@dataclass(frozen=True)
class Cut:
    """What cutting merged adapters to a rank left of them.

    Attributes:
        ranks: of each module, afterwards.
        lost: the Frobenius norm of what was cut off the deltas of all modules, over that of the deltas; 0 when nothing was.
    """

    ranks: dict[str, int]
    lost: float


def stacked(pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors ``(A, B)`` of ``sum_k scale_k B_k A_k``, exactly: ``(R, in)`` and ``(out, R)``, where ``R`` sums the ranks.

    Args:
        pairs: ``A_k (r_k, in)`` and ``B_k (out, r_k)``.
        scales: one for each, of any sign.
    """
    a = torch.cat([a for a, _ in pairs])
    b = torch.cat([b * scale for (_, b), scale in zip(pairs, scales, strict=True)], 1)
    return a, b


def cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of ``rank`` for ``B A`` (Eckart and Young, 1936), and the Frobenius norm of what is cut off.

    Only the factors are decomposed: with ``B = Q_b R_b`` and ``A^T = Q_a R_a``, the singular values of ``B A`` are those of
    the small ``R_b R_a^T``. The square root of a singular value goes to each side. Factors of the rank, or less, stay.

    Args:
        a, b: ``(r, in)`` and ``(out, r)``, float32 or float64; the arithmetic is in float64.
    """
    if len(a) <= rank:
        return a, b, 0.0
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    return ((q_a @ v[:rank].T) * root).T.to(a.dtype), ((q_b @ u[:, :rank]) * root).to(b.dtype), float(s[rank:].norm())


def merge_adapters(adapters: Sequence[Path | str], out: Path | str, weights: PerModel = 1.0, rank: int | None = None) -> Cut:
    """Merge LoRA adapters of one base into one adapter: task arithmetic, ``delta = sum_k w_k scaling_k B_k A_k``.

    Without ``rank`` nothing is lost: a module's rank is the sum of the adapters' ranks there. With it, each module's delta
    is cut to the best approximation of that rank. Modules that only some adapters have are merged over those, as the others
    leave them at the base. The folder is PEFT's, its scaling 1, its dtype the first adapter's.

    Args:
        adapters: folders as PEFT saves them, of LoRA in any ranks and scalings. What `open_adapter` refuses is refused.
        out: the folder to write.
        weights: one for all, or one for each: ``1 / K`` is the average, below 0 takes away.
        rank: the highest rank of a module; ``None`` keeps all.

    Raises:
        InputError: shapes differ, weights do not fit, or an adapter holds more than factors, such as a new head or a bias:
            these cannot be added as factors can. Merge such adapters into their base (`open_adapter`).
    """
    if not adapters:
        raise InputError("no adapters to merge, expected at least one")
    if rank is not None and rank < 1:
        raise InputError(f"rank {rank}, expected at least 1")
    scales = per_model(weights, len(adapters), "weights")
    opened = [_only_factors(read_factors(path)) for path in adapters]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    lost = whole = 0.0
    for module in sorted({module for adapter in opened for module in adapter.modules}):
        a, b = stacked(*_pairs(module, opened, scales))
        whole += float(((a.double() @ a.double().T) * (b.double().T @ b.double())).sum())
        if rank is not None:
            a, b, off = cut(a, b, rank)
            lost += off**2
        ranks[module] = len(a)
        tensors |= _as_saved(module, next(adapter for adapter in opened if module in adapter.modules), a, b)
    with replacing_folder(out) as folder:
        safetensors.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        write_json(folder / "adapter_config.json", _config(opened[0].config, ranks))
        write_text(folder / "README.md", _card(opened, scales, rank))
    return Cut(ranks, (lost / whole) ** 0.5 if whole > 0 else 0.0)


def _only_factors(adapter: Factors) -> Factors:
    more = [*adapter.saved, *(f"{module}.bias" for module, parts in adapter.modules.items() if "bias" in parts)]
    if more:
        raise InputError(
            f"{adapter.file}: holds {more[0]!r} beside its factors: expected factors alone, or merge with the base"
        )
    return adapter


def _pairs(
    module: str, adapters: Sequence[Factors], weights: Sequence[float]
) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """The factors of a module as matrices in float32 or float64, and the scale of each product, of adapters that have it."""
    pairs, scales = [], []
    first: tuple[Any, ...] = ()
    for adapter, weight in zip(adapters, weights, strict=True):
        if module not in adapter.modules:
            continue
        a, b, scaling = adapter.read(module)
        outer = (adapter.pair(module), b.shape[:1], b.shape[2:], a.shape[1:])
        first = first or outer
        if outer != first:
            shapes = f"B {tuple(b.shape)} and A {tuple(a.shape)}"
            raise InputError(f"{adapter.file}: module {module!r} has {shapes}, expected shapes that fit the adapters before")
        dtype = torch.promote_types(a.dtype, torch.float32)
        pairs.append((a.flatten(1).to(dtype), b.flatten(1).to(dtype)))
        scales.append(weight * scaling)
    return pairs, scales


def _as_saved(module: str, adapter: Factors, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Merged matrices under the names, in the shapes and the dtype of an adapter that has the module."""
    saved = {}
    for part, merged in zip(adapter.pair(module), (a, b), strict=True):
        name = adapter.modules[module][part]
        entry = adapter.tensors.entries[name]
        shape = (len(a), *entry.shape[1:]) if part.endswith("A") else (len(b), len(a), *entry.shape[2:])
        saved[name] = merged.reshape(shape).to(entry.dtype).contiguous()
    return saved


PLACES = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")
"""Settings that say which modules are adapted by more than their names."""


def _config(config: dict[str, Any], ranks: dict[str, int]) -> dict[str, Any]:
    """The first adapter's configuration, for these modules and ranks and scaling 1."""
    rank = max(ranks.values())
    other = {module: own for module, own in ranks.items() if own != rank}
    return (
        config
        | {name: None for name in PLACES if name in config}
        | {
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": False,
            "rank_pattern": other,
            "alpha_pattern": dict(other),
            "target_modules": sorted(ranks),
            "inference_mode": True,
        }
    )


def _card(adapters: Sequence[Factors], weights: Sequence[float], rank: int | None) -> str:
    kept = "all ranks kept" if rank is None else f"each module's delta cut to rank {rank}"
    lines = ["---", "library_name: peft", "tags:", "- merge", "- polytask", "---", "", "# A merged adapter", ""]
    lines += [f"The weighted sum of adapters' deltas, {kept}:", ""]
    lines += [f"- `{adapter.path}`, weight {weight:g}" for adapter, weight in zip(adapters, weights, strict=True)]
    return "\n".join(lines) + "\n"
