from __future__ import annotations

from typing import Literal

import pytest
import torch
from tests.merge.rules.models import assert_close, deltas, flat, make_models, merge, quantised, unflat
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.ties import TIES, trim_and_elect

ROWS = torch.tensor([[1, -2, 0.5, 0, 3], [2, 1, -0.5, 0, -4], [-1, 3, 0.1, 0, 0.5]])


def reference(tau: Tensor, densities: list[float], weights: list[float], merge_by: str) -> Tensor:
    """Sorted rows, the first of equal ones, signs of the sum, and a mean over what agrees."""
    d = tau.shape[1]
    kept = torch.zeros_like(tau)
    for row, out, density in zip(tau, kept, densities, strict=True):
        order = sorted(range(d), key=lambda p: (-abs(float(row[p])), p))[: int(density * d)]
        out[order] = row[order]
    w = torch.tensor(weights, dtype=tau.dtype)[:, None]
    signs = torch.where((w * kept).sum(0) >= 0, 1.0, -1.0)
    agree = kept * signs > 0
    total = (w * kept * agree).sum(0)
    return total if merge_by == "sum" else total / (w * agree).sum(0).where(agree.any(0), torch.ones(()).to(w))


def test_elect_and_merge() -> None:
    base, models = {"w": torch.zeros(5)}, [{"w": row} for row in ROWS]
    assert merge_state_dicts(TIES(1, merge_by="sum"), models, base)["w"].tolist() == pytest.approx([3, 4, 0.6, 0, -4])
    assert merge_state_dicts(TIES(1), models, base)["w"].tolist() == pytest.approx([1.5, 2, 0.3, 0, -4])
    assert merge_state_dicts(TIES(1, scale=0.5), models, base)["w"].tolist() == pytest.approx([0.75, 1, 0.15, 0, -2])


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("merge_by", ["mean", "sum"])
@pytest.mark.parametrize("densities", [[0.2] * 3, [0.0, 0.5, 1.0], [0.001, 0.999, 0.3]])
@pytest.mark.parametrize("chunk", [4096, 2**16])
def test_the_whole_model(make: object, merge_by: Literal["mean", "sum"], densities: list[float], chunk: int) -> None:
    base, models = make()  # type: ignore[operator]
    weights = [1.0, 2.0, 0.5]
    vector = reference(flat(deltas(base, models)), densities, weights, merge_by)
    expected = {name: base[name] + 0.8 * delta for name, delta in unflat(vector, base).items()}
    assert_close(merge(TIES(densities, 0.8, weights, "model", merge_by), models, base, chunk), expected)


@pytest.mark.parametrize("chunk", [4096, 2**16])
def test_an_even_election_adds_up_what_adamerging_pp_learns_coefficients_of(chunk: int) -> None:
    base, models = make_models()
    weights = [0.2, 0.9, 0.0]
    vectors = [{name: model[name] - base[name] for name in base} for model in models]
    chosen = trim_and_elect(vectors, 0.3)
    expected = {name: base[name] + sum(w * vector[name] for w, vector in zip(weights, chosen, strict=True)) for name in base}
    found = merge(TIES(0.3, weight=weights, merge_by="sum", election="even"), models, base, chunk)
    assert_close(found, expected)
    weighted = merge(TIES(0.3, weight=weights, merge_by="sum"), models, base, chunk)
    assert any(bool((weighted[name] - found[name]).abs().max() > 1e-3) for name in base)
    # A mean of equal weights is the same either way.
    even, usual = (merge(TIES(0.3, election=how), models, base, chunk) for how in ("even", "weighted"))
    assert_close(even, usual)
    with pytest.raises(InputError, match="election 'none'"):
        TIES(election="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("merge_by", ["mean", "sum"])
def test_by_tensor(make: object, merge_by: Literal["mean", "sum"]) -> None:
    base, models = make()  # type: ignore[operator]
    expected = {}
    for name, tau in deltas(base, models).items():
        vector = reference(tau.reshape(3, -1), [0.3, 0.2, 1], [1, 1, 1], merge_by)
        expected[name] = base[name] + vector.view(base[name].shape)
    for chunk in (4096, 2**16):
        assert_close(merge(TIES([0.3, 0.2, 1], scope="tensor", merge_by=merge_by), models, base, chunk), expected)


@pytest.mark.parametrize(("n", "density", "kept"), [(1000, 0.2, 200), (1000, 0.5, 500), (7, 0.5, 3), (1, 0.9, 0), (1, 1, 1)])
def test_so_many_are_kept(n: int, density: float, kept: int) -> None:
    """Exactly; the authors' function keeps one more, 201 of 1000."""
    for values in (torch.randn(n, generator=torch.Generator().manual_seed(0)), torch.ones(n)):
        found = merge_state_dicts(TIES(density), [{"w": values}], {"w": torch.zeros(n)})["w"]
        assert int(found.count_nonzero()) == kept
        if bool((values == 1).all()):  # all equal: the first are kept
            assert bool((found[:kept] == 1).all())


def test_ties_across_tensors_go_to_the_first() -> None:
    shapes = {"a": 5000, "b": 9000, "c": 3}
    base = {name: torch.zeros(n) for name, n in shapes.items()}
    found = merge(TIES(0.7), [{name: torch.ones(n) for name, n in shapes.items()}], base, 4096)
    kept = torch.cat([found[name] for name in shapes])
    assert int(kept.sum()) == int(0.7 * 14003)
    assert bool((kept[: int(kept.sum())] == 1).all())


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"density 1.5: expected a number from 0 to 1"):
        TIES(1.5)
    with pytest.raises(InputError, match=r"density -1"):
        TIES([0.5, -1])
    with pytest.raises(InputError, match="scope 'row'"):
        TIES(scope="row")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="merge_by 'median'"):
        TIES(merge_by="median")  # type: ignore[arg-type]
    base, models = make_models()
    with pytest.raises(InputError, match="density has 2 numbers, expected one for each of 3 models"):
        merge_state_dicts(TIES([0.1, 0.2]), models, base)


# The vectors that AdaMerging++ learns coefficients of.


def reference_split(tau: Tensor, densities: list[float]) -> Tensor:
    """The trimmed rows where they have the sign of their sum; a sum of 0 has the sign of most sums."""
    d = tau.shape[1]
    kept = torch.zeros_like(tau)
    for row, out, density in zip(tau, kept, densities, strict=True):
        order = sorted(range(d), key=lambda p: (-abs(float(row[p])), p))[: int(density * d)]
        out[order] = row[order]
    signs = kept.sum(0).sign()
    signs[signs == 0] = 1.0 if signs.sum() >= 0 else -1.0
    return torch.where(kept * signs > 0, kept, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("densities", [[0.2] * 3, [0.0, 0.5, 1.0], [0.001, 0.999, 0.3]], ids=str)
def test_trim_and_elect(make: object, densities: list[float], dtype: torch.dtype) -> None:
    base, models = make(seed=1)  # type: ignore[operator]
    vectors = [{name: (model[name].double() - base[name].double()).to(dtype) for name in base} for model in models]
    before = [{name: tensor.clone() for name, tensor in vector.items()} for vector in vectors]
    tau = flat({name: torch.stack([vector[name] for vector in vectors]).double() for name in base})
    expected = [unflat(row, base) for row in reference_split(tau, densities)]
    found = trim_and_elect(vectors, densities)
    for vector, want, own, same in zip(found, expected, vectors, before, strict=True):
        assert all(torch.equal(own[name], same[name]) for name in own)
        assert vector.keys() == want.keys()
        for name, tensor in vector.items():
            assert tensor.dtype == dtype and tensor.shape == base[name].shape
            assert torch.equal(tensor, want[name].to(dtype)), name


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_what_is_elected_adds_up_to_ties(density: float) -> None:
    base, models = make_models()
    vectors = [{name: model[name] - base[name] for name in base} for model in models]
    found = trim_and_elect(vectors, density)
    total = {name: base[name] + sum(vector[name] for vector in found) for name in base}
    assert_close(total, merge(TIES(density, merge_by="sum"), models, base))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sum_of_zero_takes_the_sign_of_most_sums(sign: float) -> None:
    rows = sign * torch.tensor([[2.0, 1, 1, -3, 0], [-2.0, 1, 1, 0, 0]])
    found = [vector["w"].tolist() for vector in trim_and_elect([{"w": row} for row in rows], 1)]
    assert found == (sign * torch.tensor([[2.0, 1, 1, -3, 0], [0.0, 1, 1, 0, 0]])).tolist()
    even = torch.tensor([[2.0, 1, -1], [-2.0, 1, -1]])  # as many + as -
    assert [vector["w"][0].item() for vector in trim_and_elect([{"w": row} for row in even], 1)] == [2, 0]


def test_coordinates_that_no_vector_keeps_are_zero_and_others_are_as_they_were() -> None:
    vectors = [{"w": torch.randn(1000, generator=torch.Generator().manual_seed(k)), "n": torch.tensor(3)} for k in range(4)]
    found = trim_and_elect(vectors)
    assert all(set(vector) == {"w"} for vector in found)
    for vector, own in zip(found, vectors, strict=True):
        at = own["w"].abs().argsort(descending=True, stable=True)[200:]
        assert not vector["w"][at].any()
        assert torch.equal(vector["w"][vector["w"] != 0], own["w"][vector["w"] != 0])
    signs = torch.stack([vector["w"] for vector in found]).sign()
    assert not bool(((signs > 0).any(0) & (signs < 0).any(0)).any())
    assert 0.4 < float((signs != 0).any(0).float().mean()) < 1 - 0.8**4 + 0.03


def test_vectors_of_any_layout() -> None:
    wide = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    (plain,) = trim_and_elect([{"w": wide}], 0.5)
    (turned,) = trim_and_elect([{"w": wide.T.contiguous().T.requires_grad_()}], 0.5)
    assert torch.equal(plain["w"], turned["w"]) and not turned["w"].requires_grad
    assert int(plain["w"].count_nonzero()) == 27


def test_vectors_that_cannot_be_elected() -> None:
    w = torch.ones(3)
    with pytest.raises(InputError, match="vectors: none"):
        trim_and_elect([])
    with pytest.raises(InputError, match="model 2: tensor 'v' is not in every model"):
        trim_and_elect([{"w": w}, {"w": w, "v": w}])
    with pytest.raises(InputError, match=r"model 2: tensor 'w' has shape \[2\], expected \[3\]"):
        trim_and_elect([{"w": w}, {"w": torch.ones(2)}])
    with pytest.raises(InputError, match="density 2: expected a number from 0 to 1"):
        trim_and_elect([{"w": w}], 2)
    with pytest.raises(InputError, match="tensor 'w': the merged values are not finite; neither are those of model 1"):
        trim_and_elect([{"w": torch.tensor([1.0, torch.nan])}], 1)
