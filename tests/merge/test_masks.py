"""Masks of flat tensors: the paper's oracles and properties, and bits that are packed."""

from __future__ import annotations

from math import inf, nan, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.small_models import A, B, exact, shapes, vectors
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.masks import agreement, consensus, magnitude_mask, pack, tall_mask, unpack


@pytest.mark.parametrize(
    ("scale", "of_a", "of_b"),
    [(0.4, [1, 0, 1, 1], [1, 1, 1, 0]), (1.0, [0, 0, 1, 1], [0, 1, 0, 0])],
)
def test_two_vectors_of_the_paper_s_code(scale: float, of_a: list[int], of_b: list[int]) -> None:
    assert tall_mask(A, A + B, scale).int().tolist() == of_a
    assert tall_mask(B, A + B, scale).int().tolist() == of_b


def test_the_inequality_is_strict() -> None:
    assert tall_mask(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 1.9]), 1.0).tolist() == [False, False, True]


@given(vectors(2))
def test_at_scale_1_the_mask_brings_each_coordinate_nearest_to_the_expert(rows: Tensor) -> None:
    delta, merged = rows
    reached = (merged * tall_mask(delta, merged, 1.0) - delta).abs()
    assert torch.equal(reached, torch.minimum(delta.abs(), (merged - delta).abs()))


@given(vectors(1), st.floats(0, 10))
def test_one_task_alone_has_the_support_of_its_vector(rows: Tensor, scale: float) -> None:
    assert torch.equal(tall_mask(rows[0], rows[0], scale), rows[0] != 0)


@given(vectors(3), st.floats(0, 5), st.floats(0, 5))
def test_a_larger_scale_gives_a_subset(rows: Tensor, one: float, other: float) -> None:
    small, large = sorted((one, other))
    for delta in rows:
        assert not (tall_mask(delta, rows.sum(0), large) & ~tall_mask(delta, rows.sum(0), small)).any()


@given(vectors(3), st.sampled_from([0.0, 1e-6]))
def test_a_vanishing_scale_gives_the_support(rows: Tensor, scale: float) -> None:
    for delta in rows:
        assert torch.equal(tall_mask(delta, rows.sum(0), scale), delta != 0)


@given(vectors(3), st.lists(st.integers(0, 2), min_size=20, max_size=20), st.floats(1e-3, 100))
def test_disjoint_supports_are_reconstructed_and_have_no_consensus(rows: Tensor, owner: list[int], scale: float) -> None:
    rows = rows * torch.nn.functional.one_hot(torch.tensor(owner[: rows.shape[1]]), 3).T
    merged = rows.sum(0)
    masks = torch.stack([tall_mask(delta, merged, scale) for delta in rows])
    assert torch.equal(masks * merged, rows)
    assert not consensus(masks, 2).any()


def test_half_precision_is_compared_in_float32() -> None:
    # |tau| = 1 + 2^-7, |tau_MTL - tau| = 1 + 2^-7 - 2^-9, which bfloat16 would round to 1 + 2^-7: a tie.
    delta = torch.tensor([1.0078125], dtype=torch.bfloat16)
    merged = torch.tensor([2**-9], dtype=torch.bfloat16)
    assert ((merged - delta).abs() >= delta.abs()).all()
    assert tall_mask(delta, merged, 1.0).all()


@pytest.mark.parametrize("scale", [-0.1, nan, inf])
def test_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(InputError, match=r"scale .*expected a finite number >= 0"):
        tall_mask(A, B, scale)


def test_vectors_of_two_shapes() -> None:
    with pytest.raises(InputError, match=r"shape \(4,\), a multi-task vector of \(3,\)"):
        tall_mask(A, B[:3], 1.0)


@given(st.lists(exact, min_size=1, max_size=40), st.floats(0, 1))
def test_magnitude_mask_keeps_the_first_of_the_largest(values: list[float], density: float) -> None:
    mask = magnitude_mask(torch.tensor(values), density).tolist()
    order = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))
    assert [index for index in range(len(values)) if mask[index]] == sorted(order[: round(density * len(values))])


def test_magnitude_mask_of_nothing_and_of_everything() -> None:
    assert magnitude_mask(torch.zeros(5), 1.0).all() and not magnitude_mask(A, 0.0).any()
    assert magnitude_mask(torch.zeros(5), 0.4).tolist() == [True, True, False, False, False]
    assert int(magnitude_mask(torch.arange(100.0)).sum()) == 10  # the paper's density
    assert magnitude_mask(torch.ones(1), 1.0).all() and magnitude_mask(torch.empty(0), 0.5).shape == (0,)
    with pytest.raises(InputError, match=r"density 1\.5"):
        magnitude_mask(A, 1.5)
    with pytest.raises(InputError, match="expected \\(n,\\)"):
        magnitude_mask(A.view(2, 2), 0.5)


def test_magnitude_mask_keeps_equally_many_as_a_mask_of_that_density() -> None:
    random = torch.Generator().manual_seed(0)
    delta = torch.randn(997, generator=random)
    for count in range(0, 998, 7):
        assert int(magnitude_mask(delta, count / 997).sum()) == count


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_agreement_counts_and_consensus_thresholds(rows: list[list[bool]]) -> None:
    masks = torch.tensor(rows)
    counts = np.array(rows).sum(0)
    assert agreement(masks).tolist() == counts.tolist() == agreement(iter(masks)).tolist()
    assert masks.tolist() == rows
    for k in range(len(rows) + 2):
        assert consensus(masks, k).tolist() == (counts >= k).tolist()
    assert consensus(masks, 0).all() and not consensus(masks, len(rows) + 1).any()


def test_agreement_leaves_its_input_alone_and_needs_one() -> None:
    counted = torch.ones(2, 3, dtype=torch.int32)
    assert agreement(counted).tolist() == [2, 2, 2] and counted.eq(1).all()
    with pytest.raises(InputError, match="no masks"):
        agreement([])
    with pytest.raises(InputError, match="k -1"):
        consensus(torch.ones(2, 3).bool(), -1)


# Packed bits


@given(shapes, st.randoms(use_true_random=False))
def test_packing_is_exact(shape: tuple[int, ...], random: object) -> None:
    values = [random.random() < 0.5 for _ in range(prod(shape))]  # type: ignore[attr-defined]
    mask = torch.tensor(values, dtype=torch.bool).view(shape)
    packed = pack(mask)
    written = sum(value << (8 * len(packed) - 1 - place) for place, value in enumerate(values))
    assert packed.numpy().tobytes() == written.to_bytes(len(packed), "big")
    assert len(packed) == -(-len(values) // 8)
    back = unpack(packed, len(values), shape)
    assert back.dtype == torch.bool and back.shape == shape and torch.equal(back, mask)
    assert unpack(packed, len(values)).tolist() == values


def test_a_mask_in_another_memory_order_is_packed_row_by_row() -> None:
    mask = torch.rand(5, 3) < 0.5
    assert torch.equal(pack(mask.T), pack(mask.T.contiguous()))


@pytest.mark.parametrize(
    ("packed", "numel", "shape", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), 17, None, r"expected torch.uint8 of shape \(3,\) for 17 values"),
        (torch.zeros(2, dtype=torch.uint8), 8, None, r"shape \(2,\), expected torch.uint8 of shape \(1,\)"),
        (torch.zeros(1, dtype=torch.int8), 8, None, "torch.int8"),
        (torch.zeros(1, 1, dtype=torch.uint8), 8, None, r"shape \(1, 1\)"),
        (torch.tensor([0b00100000], dtype=torch.uint8), 2, None, "bits behind its 2 values"),
        (torch.zeros(1, dtype=torch.uint8), 6, (2, 4), r"6 values, expected 8 for the shape \(2, 4\)"),
    ],
)
def test_bytes_that_are_no_mask(packed: Tensor, numel: int, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpack(packed, numel, shape)


def test_only_bool_is_packed() -> None:
    with pytest.raises(InputError, match=r"torch\.float32, expected torch\.bool"):
        pack(torch.ones(3))
