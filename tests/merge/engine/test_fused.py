"""Loops that numba compiles give the bits of the plain functions beside them, and are left out where it is not there."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.merge.engine.fused import fused
from polytask.merge.engine.ranks import keep, split
from polytask.merge.engine.run import widened_less
from polytask.merge.rules._arithmetic import sum_of_elected
from polytask.merge.rules.pcb import compete, importance, normalize, times_straight

FLOATS = st.sampled_from([np.float32, np.float64])


def values(seed: int, n: int, kind: str, dtype: Any) -> np.ndarray[Any, Any]:
    found = np.random.default_rng(seed).standard_normal(n)
    if kind == "ties":
        found = np.round(found * 3) / 3
    elif kind == "special":
        found[::7], found[1::11], found[2::13], found[3::5] = math.nan, math.inf, -math.inf, -0.0
    return found.astype(dtype)


def alike(function: Callable[..., Any], *arguments: Any) -> None:
    """What is compiled, where numba is there, and the plain function give and leave the same bits."""
    ours, plain = ([np.copy(a) if isinstance(a, np.ndarray) else a for a in arguments] for _ in range(2))
    with np.errstate(all="ignore"):
        results = function(*ours), function.__wrapped__(*plain)  # type: ignore[attr-defined]
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*(each if isinstance(each, tuple) else (each,) for each in results), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from(["normal", "ties", "special"]), FLOATS, st.data())
def test_what_is_kept(seed: int, n: int, kind: str, dtype: Any, data: st.DataObject) -> None:
    row = values(seed, n, kind, dtype)
    cuts: list[Any] = [dtype(0), dtype(1 / 3), dtype(1), dtype(math.inf), *np.abs(row[:3])]
    left = st.sampled_from([0, 1, 50, 700, sys.maxsize])
    low, high = data.draw(st.sampled_from(cuts)), data.draw(st.sampled_from(cuts))
    alike(keep, row, low, data.draw(left), high, data.draw(left))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from(["normal", "ties", "special"]), FLOATS, st.booleans())
def test_what_is_in_a_bracket(seed: int, n: int, kind: str, dtype: Any, signed: bool) -> None:
    bits = values(seed, n, kind, dtype).view(np.int32 if dtype == np.float32 else np.int64)
    one, two = (bits.dtype.type(abs(values(seed + 1, 2, "normal", dtype)[i]).view(bits.dtype)) for i in range(2))
    alike(split, bits, signed, min(one, two), max(one, two))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.integers(1, 5), FLOATS, st.booleans(), st.booleans())
def test_the_sum_of_what_is_elected(seed: int, n: int, count: int, dtype: Any, mean: bool, weighted: bool) -> None:
    rows = np.stack([values(seed + k, n, "ties", dtype) for k in range(count)])
    weights = np.array([[1.0, -0.5, 0.25, 2.0, 0.0][k] if weighted else 1.0 for k in range(count)], dtype)
    # The rows are for either to overwrite: only what comes out counts.
    np.testing.assert_array_equal(
        sum_of_elected(rows.copy(), weights, mean), sum_of_elected.__wrapped__(rows.copy(), weights, mean)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.sampled_from(["normal", "ties", "special"]), FLOATS, st.data())
def test_the_parts_of_competing(seed: int, n: int, kind: str, dtype: Any, data: st.DataObject) -> None:
    row, other = values(seed, n, kind, dtype), values(seed + 1, n, "ties", dtype)
    low, high = (data.draw(st.sampled_from([-1.0, 0.0, 1 / 3, 0.7, 2.0])) for _ in range(2))
    alike(normalize, row, low, high)
    alike(compete, row, other, min(low, high), max(low, high))
    alike(
        importance, row, low, high, data.draw(st.integers(1, 70)), data.draw(st.sampled_from([0, 5.0])), np.zeros_like(row)
    )
    alike(times_straight, np.exp(np.abs(row)), row, other, dtype(abs(low)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5000), st.sampled_from(["normal", "ties", "special"]))
def test_bfloat16_less_the_base(seed: int, n: int, kind: str) -> None:
    pytest.importorskip("numba")  # it is used only once another loop has loaded it
    bits = torch.from_numpy(values(seed, n, kind, np.float32)).bfloat16().view(torch.int16).numpy()
    alike(widened_less, bits, values(seed + 1, n, "normal", np.float32), np.zeros(n, np.float32))


def test_without_numba_the_plain_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)

    def loop(x: int) -> int:
        raise AssertionError

    assert fused(lambda x: x + 1)(loop)(2) == 3


def test_numba_is_loaded_by_a_merge_alone() -> None:
    code = "import sys, polytask.merge; print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
