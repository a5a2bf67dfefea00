from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.rules.models import assert_close, assert_same, deltas, flat, make_models, merge, quantised, unflat
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.pcb import LARGEST_EXPONENT, PCB, normalize, score, times_tanh


def reference(
    tau: Tensor,
    outliers: float,
    ratio: float,
    agreement: Literal["sum", "normalized_sum", "pairs"] = "sum",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The merged task vector and S, written from the released function: sorted rows, one matrix, nothing else."""
    n, d = tau.shape

    def norm(x: Tensor) -> Tensor:
        low, high = x.min(1, keepdim=True).values, x.max(1, keepdim=True).values
        return ((x - low) / (high - low)).nan_to_num(nan=0.0)

    def clamp(x: Tensor, low: float, high: float) -> Tensor:
        ordered = x.sort(1).values
        return torch.clamp(x, ordered[:, int(d * low), None], ordered[:, int(d * (1 - high) - 1), None])

    sizes = clamp(tau.abs(), outliers, outliers)
    signed = tau.sign() * norm(sizes)
    if agreement == "sum":
        agree = torch.tanh(tau * tau.sum(0))
    elif agreement == "normalized_sum":
        agree = torch.tanh(tau * signed.sum(0))
    else:
        agree = sum(torch.tanh(signed * signed[j]) for j in range(n))
    strength = norm(clamp(torch.exp(n * norm(sizes) ** 2) * agree, 1 - ratio, 0))
    kept = tau.sign() * sizes * (torch.ones(n, 1) if weights is None else weights[:, None])
    return (strength * kept).sum(0) / strength.sum(0).clamp(min=1e-12), strength


SETTINGS = [(0.01, 0.1), (1e-4, 0.05), (0.0, 0.2), (0.3, 0.9), (0.49, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("agreement", ["sum", "normalized_sum", "pairs"])
@pytest.mark.parametrize(("outliers", "ratio"), SETTINGS)
def test_pcb_is_the_authors_function(agreement: str, outliers: float, ratio: float) -> None:
    base, models = make_models(count=4)
    vector, _ = reference(flat(deltas(base, models)), outliers, ratio, agreement)
    expected = {name: base[name] + 1.3 * delta for name, delta in unflat(vector, base).items()}
    found = merge_state_dicts(PCB(outliers, ratio, 1.3, agreement=agreement), models, base)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("agreement", ["sum", "normalized_sum", "pairs"])
@pytest.mark.parametrize(("outliers", "ratio"), SETTINGS)
@pytest.mark.parametrize("chunk", [4096, 2**16])
def test_pcb_is_the_authors_function_in_float64(agreement: str, outliers: float, ratio: float, chunk: int) -> None:
    base, models = make_models(count=3, dtype=torch.float64)
    vector, _ = reference(flat(deltas(base, models, torch.float64)), outliers, ratio, agreement)
    expected = {name: base[name] + delta for name, delta in unflat(vector, base).items()}
    found = merge(PCB(outliers, ratio, agreement=agreement), models, base, chunk, torch.float64)
    assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("d", range(1, 9))
@pytest.mark.parametrize(("outliers", "ratio"), [*SETTINGS, (0.4, 0.5), (0.2, 0.3)])
def test_few_coordinates(d: int, outliers: float, ratio: float) -> None:
    base, models = make_models(count=2, seed=d, shapes={"w": (d,)})
    vector, _ = reference(flat(deltas(base, models)), outliers, ratio)
    assert_close(merge_state_dicts(PCB(outliers, ratio), models, base), {"w": base["w"] + vector}, atol=1e-5)


def test_by_tensor_each_tensor_is_merged_alone() -> None:
    base, models = make_models()
    together = merge_state_dicts(PCB(scope="tensor"), models, base)
    for name in base:
        alone = merge_state_dicts(PCB(), [{name: m[name]} for m in models], {name: base[name]})
        assert torch.equal(alone[name], together[name])
    assert not torch.equal(together["g"], merge_state_dicts(PCB(), models, base)["g"])


def test_the_winner_takes_it() -> None:
    rows = torch.tensor([[0.5, -0.2, 0.1, 0, 0.9], [0.4, 0.3, -0.1, 0.2, -0.8]])
    _, strength = reference(rows.double(), 0, 0.4)
    assert strength.tolist() == [[1, 0, 0, 0, 0]] * 2
    found = merge_state_dicts(PCB(outliers=0, ratio=0.4), [{"w": row} for row in rows], {"w": torch.zeros(5)})
    torch.testing.assert_close(found["w"], torch.tensor([0.45, 0, 0, 0, 0]))


@pytest.mark.parametrize("agreement", ["sum", "normalized_sum", "pairs"])
def test_the_strongest_counts_1_and_as_many_are_above_0_in_each_task(agreement: str) -> None:
    rows = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    sizes = rows.abs().sort(1).values
    scores = score(rows.clone(), sizes[:, 100].tolist(), sizes[:, 9899].tolist(), agreement)
    ordered = scores.sort(1).values
    limits = zip(ordered[:, int(10_000 * 0.9)].tolist(), ordered[:, -1].tolist(), strict=True)
    strength = scores.clone()
    for row, pair in zip(strength.numpy(), limits, strict=True):
        normalize(row, *pair)
    assert strength.amax(1).tolist() == [1, 1, 1]
    assert (strength > 0).sum(1).tolist() == [999] * 3


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_are_left(count: int) -> None:
    d, ratio = 10_000, 0.1
    base, models = make_models(count=1, shapes={"w": (100, 100)})
    found = merge_state_dicts(PCB(ratio=ratio), models * count, base)
    changed = found["w"] != base["w"]
    assert int(changed.count_nonzero()) == d - int(d * (1 - ratio)) - 1 == 999
    # Alone, and beside its copies, what a task vector has left is as it was, but for the clamped outliers.
    delta = (models[0]["w"] - base["w"]).flatten()
    sizes = delta.abs().sort().values
    clamped = delta.sign() * delta.abs().clamp(sizes[100], sizes[9899])
    torch.testing.assert_close((found["w"] - base["w"])[changed], clamped[changed.flatten()], rtol=1e-4, atol=1e-6)
    # These are the largest, but the outliers, which all have one importance, are ranked by agreement.
    assert float(delta.abs()[changed.flatten()].min()) >= float(sizes[9000])


def test_the_order_of_tasks_does_not_matter() -> None:
    base, models = make_models(count=4)
    one, other = merge_state_dicts(PCB(), models, base), merge_state_dicts(PCB(), models[::-1], base)
    assert_close(one, other)


def test_each_task_has_a_multiplier() -> None:
    base, models = make_models(count=3)
    weights = [0.8, 1.2, 1.3]
    vector, _ = reference(flat(deltas(base, models)), 0.01, 0.1, weights=torch.tensor(weights))
    expected = {name: base[name] + delta for name, delta in unflat(vector, base).items()}
    assert_close(merge_state_dicts(PCB(weight=weights), models, base), expected, atol=1e-5, rtol=1e-4)


def test_small_task_vectors_are_merged_alike() -> None:
    """tanh is the identity for these: scaling the task vectors scales what comes out."""
    base, models = make_models(dtype=torch.float64)
    zeros = {name: torch.zeros_like(t) for name, t in base.items()}
    vectors = [{name: (m[name] - base[name]) * 1e-4 for name in base} for m in models]
    twice = [{name: 2 * t for name, t in v.items()} for v in vectors]
    one = merge_state_dicts(PCB(), vectors, zeros, torch.float64)
    two = merge_state_dicts(PCB(), twice, zeros, torch.float64)
    assert_close(two, {name: 2 * t for name, t in one.items()}, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_nothing_changed_stays(count: int, scope: Literal["model", "tensor"]) -> None:
    base, _ = make_models()
    for weights in (base, {name: t + 1 for name, t in base.items()}):  # all equal: nothing to compete with
        found = merge_state_dicts(PCB(scope=scope), [base] * count, base)
        assert_same(found, base)
        assert all(t.isfinite().all() for t in merge_state_dicts(PCB(scope=scope), [weights] * count, base).values())


@pytest.mark.parametrize("chunk", [4096, 2**16])
def test_heavy_ties(chunk: int) -> None:
    """Quantised values: scores of equal entries are equal, so no tie is cut."""
    base, models = quantised()
    for outliers, ratio in SETTINGS:
        vector, _ = reference(flat(deltas(base, models)).float(), outliers, ratio)
        assert_close(merge(PCB(outliers, ratio), models, base, chunk), unflat(vector, base))


@pytest.mark.parametrize("count", [61, 200])
def test_many_tasks_stay_finite(count: int) -> None:
    base, models = make_models(count=count, shapes={"w": (300,)})
    assert count > LARGEST_EXPONENT
    vector, _ = reference(flat(deltas(base, models)), 0.01, 0.1)
    assert_close(merge_state_dicts(PCB(), models, base), {"w": base["w"] + vector}, atol=1e-4, rtol=1e-3)


def test_bfloat16_models_are_merged_in_float32() -> None:
    base, models = make_models(dtype=torch.bfloat16)
    vector, _ = reference(flat(deltas(base, models)).float(), 0.01, 0.1)
    expected = {name: base[name].float() + delta for name, delta in unflat(vector, base).items()}
    found = merge(PCB(), models, base)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    stored = merge_state_dicts(PCB(), models, base)
    for name, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, found[name].bfloat16())


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30), st.floats(0, 2, width=32), st.floats(0, 2, width=32))
def test_normalize(values: list[float], low: float, width: float) -> None:
    row = torch.tensor(values)
    high = float(torch.tensor(low + width))
    found = row.clone()
    normalize(found.numpy(), low, high)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert bool((found[row <= low] == 0).all())
    if high > low:
        assert bool((found[row >= high] == 1).all())


@given(st.integers(1, 5), st.integers(0, 100), st.sampled_from(["sum", "normalized_sum", "pairs"]))
def test_a_score_is_never_minus_zero(count: int, seed: int, agreement: str) -> None:
    rows = torch.randint(-2, 3, (count, 50), generator=torch.Generator().manual_seed(seed)).float()
    rows[rows == 2] = -0.0
    found = score(rows, [0.0] * count, [2.0] * count, agreement)
    assert not bool((found.signbit() & (found == 0)).any())
    if count == 1:
        assert bool((found >= 0).all())  # a task agrees with itself


@pytest.mark.parametrize(
    "settings",
    [{"outliers": 0.5}, {"outliers": -0.1}, {"ratio": 1.1}, {"ratio": math.nan}, {"agreement": "none"}, {"scope": "row"}],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        PCB(**settings)


def test_weights_for_each() -> None:
    base, models = make_models(count=2)
    with pytest.raises(InputError, match="weight has 3 numbers, expected one for each of 2 models"):
        merge_state_dicts(PCB(weight=[1, 2, 3]), models, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh(dtype: torch.dtype) -> None:
    values = torch.cat(
        [torch.linspace(-3, 3, 1001, dtype=dtype), torch.logspace(-12, 0, 1001, dtype=dtype), torch.zeros(1).to(dtype)]
    )
    one = torch.ones_like(values)
    found = times_tanh(one.clone(), values, one)
    torch.testing.assert_close(found, values.double().tanh().to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)
    pieces = [times_tanh(torch.ones_like(piece), piece, one[: len(piece)]) for piece in values.split(7)]
    assert torch.equal(torch.cat(pieces), found)
