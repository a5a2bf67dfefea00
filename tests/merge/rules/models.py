"""Models to merge, in memory, and how the tests merge them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.merge.engine.measured import Measured
from polytask.merge.engine.rule import Rule
from polytask.merge.engine.run import CHUNK, Merge
from polytask.merge.engine.source import InMemory

Weights = dict[str, Tensor]

SHAPES = {"a": (7, 33), "b": (), "c": (1,), "d": (129,), "e": (3, 5, 2), "f": (0, 4), "g": (41, 211), "h": (1, 1)}
"""In sorted order, odd ones; one tensor, of 8,651 elements, is longer than two blocks."""


def make_models(
    count: int = 3, seed: int = 0, shapes: Mapping[str, Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float32
) -> tuple[Weights, list[Weights]]:
    """A base and models near it, in which a tensor's deltas have many sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)

    base = {name: draw(shape).to(dtype) for name, shape in shapes.items()}
    models = [
        {name: (base[name].double() + 0.05 * draw(shape) * draw(shape).exp()).to(dtype) for name, shape in shapes.items()}
        for _ in range(count)
    ]
    return base, models


def quantised(seed: int = 0, count: int = 3, shapes: Mapping[str, Sequence[int]] = SHAPES) -> tuple[Weights, list[Weights]]:
    """Deltas of which most are 0 and the rest are one of a few values: ties everywhere."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.zeros(tuple(shape)) for name, shape in shapes.items()}
    models = [
        {name: torch.randint(-2, 3, tuple(shape), generator=generator) * 0.25 for name, shape in shapes.items()}
        for _ in range(count)
    ]
    return base, models


def deltas(base: Weights, models: Sequence[Weights], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Task vectors by tensor, ``(K, *shape)``, float64; the difference itself is taken in ``dtype``, as merging does."""
    return {name: torch.stack([m[name].to(dtype) - base[name].to(dtype) for m in models]).double() for name in base}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All tensors' values beside each other, in sorted order: ``(K, d)``."""
    return torch.cat([tensors[name].reshape(len(tensors[name]), -1) for name in sorted(tensors)], 1)


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = sorted(like)
    pieces = vector.split([like[name].numel() for name in names])
    return {name: piece.view(like[name].shape) for name, piece in zip(names, pieces, strict=True)}


def merge(
    rule: Rule,
    models: Sequence[Weights],
    base: Weights | None,
    chunk: int = CHUNK,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
    measured: Measured | None = None,
) -> Weights:
    """The merge, in ``dtype``, cut at ``chunk`` elements."""
    shapes = {name: tuple(t.shape) for name, t in sorted(models[0].items())}
    merged = {name: torch.full((math.prod(shape),), math.nan, dtype=dtype) for name, shape in shapes.items()}

    def write(name: str, start: int, values: Tensor) -> None:
        merged[name][start : start + len(values)] = values

    sources = [InMemory(m) for m in models]
    Merge(rule, sources, None if base is None else InMemory(base), shapes, dtype, chunk, threads, measured).run(write)
    return {name: values.view(shapes[name]) for name, values in merged.items()}


def assert_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor.double(), expected[name].double(), rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to the last bit; -0 is 0."""
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
