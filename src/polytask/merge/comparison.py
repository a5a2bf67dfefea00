"""What models that are to be merged have in common, and where they fight: signs, supports, directions, cancellation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import same_tensors
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.rule import Cuts, Rule, magnitudes, share
from polytask.merge.engine.run import BLOCK, CHUNK, Merge, cuts_of
from polytask.merge.engine.source import InMemory, Source
from polytask.merge.plan import Plan
from polytask.merge.rules._arithmetic import kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]

EXACT = 2**24
"""Elements of a chunk, at most: so many ones are still added up exactly in float32."""


@dataclass(frozen=True)
class Part:
    """Counts and products of ``K`` task vectors over some coordinates: a tensor, a layer, or all. Parts add up.

    A model *keeps* a coordinate that is among its largest magnitudes of the tensor and is not 0. Whatever has nothing to be
    measured on, as a cosine with a task vector of 0, is NaN.

    Attributes:
        size: the number of coordinates.
        kept: how many of them both models keep, and on the diagonal each one: ``(K, K)``, int64.
        opposed: on how many of these the two have opposite signs: ``(K, K)``, int64.
        votes: how many coordinates 0, 1, ... ``K`` models keep: ``(K + 1,)``, int64.
        conflicted: on how many coordinates some of the models that keep it have opposite signs.
        products: inner products of the task vectors and, in the last row and column, the base: ``(K + 1, K + 1)``, float64.
    """

    size: int
    kept: Array
    opposed: Array
    votes: Array
    conflicted: int
    products: Array

    def __add__(self, other: Part) -> Part:
        return Part(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def conflict(self) -> float:
        """Of the coordinates that any model keeps, the share with opposite signs among the models that keep it."""
        return float(_ratio(self.conflicted, self.votes[1:].sum()))

    @property
    def conflicts(self) -> Array:
        """Of the coordinates that two models keep, the share on which their signs are opposite: ``(K, K)``."""
        return _ratio(self.opposed, self.kept)

    @property
    def overlap(self) -> Array:
        """The coordinates that two models keep, over those that either keeps (Jaccard): ``(K, K)``."""
        own = self.kept.diagonal()
        return _ratio(self.kept, own[:, None] + own - self.kept)

    @property
    def lengths(self) -> Array:
        """The task vectors' lengths, ``(K,)``."""
        found: Array = np.sqrt(self.products.diagonal()[:-1])
        return found

    @property
    def relative(self) -> Array:
        """The task vectors' lengths, over that of the base: ``(K,)``."""
        return _ratio(self.lengths, np.sqrt(self.products[-1, -1]))

    @property
    def cosine(self) -> Array:
        """Of the angle between two task vectors, ``(K, K)``."""
        return _ratio(self.products[:-1, :-1], self.lengths[:, None] * self.lengths).clip(-1, 1)

    @property
    def cancelled(self) -> float:
        """How much of the task vectors' lengths is lost in their sum: ``1 - |sum_k tau_k| / sum_k |tau_k|``."""
        total = max(float(self.products[:-1, :-1].sum()), 0.0)
        return float((1 - _ratio(np.sqrt(total), self.lengths.sum())).clip(0, 1))

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values, ``None`` for NaN."""
        found = {
            "size": self.size,
            "conflict": self.conflict,
            "conflicts": self.conflicts,
            "overlap": self.overlap,
            "votes": self.votes,
            "cosine": self.cosine,
            "relative": self.relative,
            "cancelled": self.cancelled,
        }
        return {name: _plain(value) for name, value in found.items()}


@dataclass(frozen=True)
class Interference:
    """What `interference` finds.

    Attributes:
        names: of the models.
        density: the fraction of each tensor that a model may keep.
        tensors: by name, sorted; tensors that are not floating-point numbers, or are empty, are left out.
    """

    names: tuple[str, ...]
    density: float
    tensors: dict[str, Part]

    @cached_property
    def layers(self) -> dict[str, Part]:
        """Tensors added up by `layer_of` their names: embeddings, numbered blocks in order, then the rest."""
        found: dict[str, Part] = {}
        for name, part in self.tensors.items():
            layer = layer_of(name)
            found[layer] = found[layer] + part if layer in found else part
        return {layer: found[layer] for layer in sorted(found, key=_place)}

    @cached_property
    def whole(self) -> Part:
        """All tensors added up."""
        return reduce(add, self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values: of the ``whole``, of ``layers`` and of ``tensors``."""
        return {
            "models": list(self.names),
            "density": self.density,
            "whole": self.whole.to_json(),
            "layers": {name: part.to_json() for name, part in self.layers.items()},
            "tensors": {name: part.to_json() for name, part in self.tensors.items()},
        }

    def plot(self) -> Figure:
        """Layer by layer how signs, supports, directions and lengths agree; of the whole, each pair of models."""
        from polytask.merge._pictures import interference_figure

        return interference_figure(self)


def interference(
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    density: float = 0.2,
    *,
    names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Interference:
    """Compare the task vectors ``tau_k = theta_k - theta_0`` of models in memory, before or instead of a merge.

    Signs and supports are those of the trimmed task vectors: of each tensor's ``n`` entries a model keeps the
    ``int(density n)`` of largest magnitude, the first of equal ones, but none that is 0. Their conflicts are what TIES
    elects signs for: Yadav et al., *TIES-merging: resolving interference when merging models*, NeurIPS 2023. Cosines,
    lengths and what is cancelled are of the whole task vectors. Counts are exact.

    >>> import torch
    >>> base = {"layer.0.weight": torch.ones(4)}
    >>> models = [{"layer.0.weight": torch.tensor(w)} for w in ([2.0, 3, 1, 1], [0.0, 3, 1, 5])]
    >>> found = interference(models, base, density=0.5).whole
    >>> found.votes.tolist(), found.conflict  # the second model keeps the last two of its -1, 2, 0, 4
    ([1, 2, 1], 0.0)
    >>> round(float(found.cosine[0, 1]), 3)
    0.293

    Args:
        models: state dicts with the names and shapes of ``base``.
        base: what they were fine-tuned from.
        density: from 0 to 1.
        names: of the models; numbers from 1 otherwise.
        dtype: of the differences, float32 or float64; products are float64.

    Raises:
        InputError: names or shapes differ, a tensor has values that are not finite, or there is none to compare.
    """
    same_tensors(models, base)
    shapes = {name: tuple(t.shape) for name, t in sorted(base.items()) if t.is_floating_point() and t.numel()}
    called = [str(k) for k in range(1, len(models) + 1)] if names is None else list(names)
    if len(called) != len(models):
        raise InputError(f"{len(called)} names, expected one for each of {len(models)} models")
    return _look([InMemory(model) for model in models], InMemory(base), shapes, called, density, dtype)


def interference_of(
    plan: Plan,
    density: float = 0.2,
    *,
    dtype: torch.dtype = torch.float32,
    chunk: int = CHUNK,
    progress: Callable[[str, int], None] = lambda name, elements: None,
) -> Interference:
    """`interference` of checkpoints on disk, in memory that does not depend on their size.

    Args:
        plan: the inputs, compared; models are named by the ends of their paths.
        density: from 0 to 1.
        dtype: of the differences.
        chunk: elements of one model that are read at a time.
        progress: told of a tensor's elements as they are done.
    """
    base = plan.base_source()
    if base is None:
        raise InputError("task vectors are what is compared: expected a base model")
    shapes = {name: entry.shape for name, entry in plan.merged.items()}
    called = short_names([model.path for model in plan.models])
    return _look(plan.sources(), base, shapes, called, density, dtype, chunk, progress)


def layer_of(tensor: str) -> str:
    """The layer of a tensor: its name up to the first number that stands alone, else up to its last dot."""
    block = re.search(r"(?:^|\.)\d+(?=\.)", tensor)
    return tensor[: block.end()] if block else tensor.rpartition(".")[0] or tensor


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of ``paths`` that tell them apart; all of each path where none do."""
    for length in range(1, max((len(path.parts) for path in paths), default=0)):
        ends = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    return [str(path) for path in paths]


class _Look(Rule):
    """A rule that merges nothing: it keeps what it sees of each tensor in ``found``."""

    def __init__(self, names: Sequence[str], density: float) -> None:
        share(density, "density")
        self.names, self.density = names, density
        self.found: dict[str, Part] = {}

    def statistics(self, count: int) -> Sequence[Cuts]:
        return (kept(self.density, count, "tensor"),)

    def merge(self, chunk: Chunk) -> Tensor:
        assert chunk.base is not None
        for name, values in zip(("the base", *self.names), (chunk.base, *chunk.rows), strict=True):
            if not np.isfinite(values.numpy()).all():
                raise InputError(f"{name}: tensor {chunk.name!r} has values that are not finite")
        count = len(chunk.rows)
        before = self.found.get(chunk.name) or _nothing(count)
        products = _products(before.products, chunk.rows, chunk.base)
        signs = magnitudes(chunk)
        for row, size, cuts in zip(chunk.rows, signs, cuts_of(chunk, "kept"), strict=True):
            size.copy_(cuts[0].above(size))
            size *= row.sign_()
        kept = chunk.rows.copy_(signs).abs_()
        both = _whole(kept @ kept.T)
        self.found[chunk.name] = Part(
            before.size + signs.shape[1],
            before.kept + both,
            # The product of two signs is 1 where they agree and -1 where they do not.
            before.opposed + (both - _whole(signs @ signs.T)) // 2,
            before.votes + np.bincount(kept.sum(0).int().numpy(), minlength=count + 1),
            before.conflicted + int(((signs.amax(0) > 0) & (signs.amin(0) < 0)).sum()),
            products,
        )
        return signs[0]


def _look(
    models: Sequence[Source],
    base: Source,
    shapes: Mapping[str, Sequence[int]],
    names: Sequence[str],
    density: float,
    dtype: torch.dtype,
    chunk: int = CHUNK,
    progress: Callable[[str, int], None] = lambda name, elements: None,
) -> Interference:
    if not models or not shapes:
        raise InputError(f"no {'tensors of floating-point numbers' if models else 'models'} to compare")
    look = _Look(names, density)
    Merge(look, models, base, shapes, dtype, min(chunk, EXACT)).run(lambda name, start, seen: progress(name, len(seen)))
    return Interference(tuple(names), density, {name: look.found[name] for name in sorted(shapes)})


def _nothing(count: int) -> Part:
    none = np.zeros((count, count), dtype=np.int64)
    return Part(0, none, none, np.zeros(count + 1, dtype=np.int64), 0, np.zeros((count + 1, count + 1)))


def _products(before: Array, rows: Tensor, base: Tensor) -> Array:
    """``before`` with the next products added block by block, in their order: sums do not depend on how chunks are cut."""
    total = before.copy()
    for start in range(0, len(base), BLOCK):
        block = torch.cat([rows[:, start : start + BLOCK], base[None, start : start + BLOCK]]).double()
        total += (block @ block.T).numpy()
    return total


def _whole(counted: Tensor) -> Array:
    return counted.numpy().astype(np.int64)


def _ratio(part: Any, of: Any) -> Array:
    """``part / of``, NaN where ``of`` is 0."""
    part, of = np.asarray(part, dtype=float), np.asarray(of, dtype=float)
    ratio: Array = np.divide(part, of, out=np.full(np.broadcast(part, of).shape, np.nan), where=of > 0)
    return ratio


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _place(layer: str) -> tuple[int, list[tuple[int, int, str]]]:
    """What layers are ordered by: embeddings, blocks, the rest; numbers in names by their size."""
    numbers = re.findall(r"(?:^|\.)\d+$", layer)
    kind = 1 if numbers else 0 if re.search(r"embed|\bwte\b|\bwpe\b", layer) else 2
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", layer) if part]
    return kind, parts
