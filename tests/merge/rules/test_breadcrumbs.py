from __future__ import annotations

from typing import Literal

import pytest
import torch
from tests.merge.rules.models import Weights, assert_close, assert_same, deltas, flat, make_models, merge, quantised, unflat
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.breadcrumbs import Breadcrumbs
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES


def band(row: Tensor, density: float, gamma: float, first: str) -> Tensor:
    """One row with all but its middle band 0, by sorting."""
    n = len(row)
    order = sorted(range(n), key=lambda p: (-abs(float(row[p])), p))
    kept, outliers = int(density * n), int(gamma * n)
    if first == "outliers":
        outliers = min(outliers, n - kept)
        order = order[outliers : outliers + kept]
    else:
        order = order[outliers:kept]
    out = torch.zeros_like(row)
    out[order] = row[order]
    return out


def expected(base: Weights, models: list[Weights], density: float, gamma: float, unit: str, first: str) -> dict[str, Tensor]:
    tau = deltas(base, models)
    if unit == "model":
        merged = unflat(torch.stack([band(row, density, gamma, first) for row in flat(tau)]).sum(0), base)
    else:
        merged = {}
        for name, each in tau.items():
            if each.numel() == 0:
                merged[name] = torch.zeros_like(base[name])
                continue
            if unit == "row" and each.ndim == 1:  # a tensor without dimensions
                merged[name] = each.sum(0)
                continue
            width = each[0].numel() if unit == "tensor" else each.shape[-1]
            rows = each.reshape(len(models), -1, width)
            kept = torch.stack([torch.stack([band(row, density, gamma, first) for row in one]) for one in rows])
            merged[name] = kept.sum(0).view(base[name].shape)
    return {name: base[name] + 0.3 * delta for name, delta in merged.items()}


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
@pytest.mark.parametrize("first", ["outliers", "top"])
@pytest.mark.parametrize(("density", "gamma"), [(0.1, 0.01), (0.3, 0.0), (0.9, 0.3), (1.0, 0.0), (0.0, 0.5), (0.2, 0.4)])
def test_breadcrumbs_keep_the_band(
    make: object,
    unit: Literal["tensor", "row", "model"],
    first: Literal["outliers", "top"],
    density: float,
    gamma: float,
) -> None:
    base, models = make(count=2)  # type: ignore[operator]
    want = expected(base, models, density, gamma, unit, first)
    for chunk in (4096, 2**16):
        assert_close(merge(Breadcrumbs(density, gamma, unit=unit, first=first), models, base, chunk), want)


def kept(values: Tensor, rule: Breadcrumbs) -> Tensor:
    return merge_state_dicts(rule, [{"w": values}], {"w": torch.zeros_like(values)})["w"] != 0


@pytest.mark.parametrize(("first", "count"), [("outliers", 10), ("top", 9)])
def test_so_many_are_kept_of_each_row(first: Literal["outliers", "top"], count: int) -> None:
    values = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    for w in (values, torch.ones(64, 100)):
        assert kept(w, Breadcrumbs(0.1, 0.01, unit="row", first=first)).sum(1).tolist() == [count] * 64


@pytest.mark.parametrize(
    ("n", "density", "gamma", "count"),
    [(1000, 0.5, 0.01, 500), (1000, 0.5, 0, 500), (50, 0.5, 0.01, 25), (50, 0.5, 0, 25), (1, 1, 0.5, 1), (10, 0.9, 0.5, 9)],
)
def test_so_many_are_kept_of_a_tensor(n: int, density: float, gamma: float, count: int) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    for w in (values, torch.ones(n)):
        assert int(kept(w, Breadcrumbs(density, gamma)).sum()) == count


def test_short_rows_keep_nothing() -> None:
    assert not bool(kept(torch.randn(512, 1, 4), Breadcrumbs(0.2, 0, unit="row")).any())


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_with_nothing_dropped_it_is_task_arithmetic(unit: Literal["tensor", "row", "model"]) -> None:
    base, models = make_models()
    assert_same(merge_state_dicts(Breadcrumbs(1, 0, 0.4, unit=unit), models, base), merge(TaskArithmetic(0.4), models, base))


def test_without_outliers_it_trims_as_ties_does() -> None:
    base, models = make_models(count=1)
    trimmed = merge_state_dicts(TIES(0.3, scope="tensor"), models, base)
    assert_close(merge_state_dicts(Breadcrumbs(0.3, 0, 1), models, base), trimmed)


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_masks_do_not_depend_on_other_tasks(unit: Literal["tensor", "row", "model"]) -> None:
    base, models = make_models(count=3)
    rule = Breadcrumbs(0.3, 0.02, 1, unit=unit)
    alone = [merge_state_dicts(rule, [m], base) for m in models]
    total = {name: base[name] + sum(a[name] - base[name] for a in alone) for name in base}
    assert_close(merge_state_dicts(rule, models, base), total)


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_elected_signs_are_those_of_what_is_kept(unit: Literal["tensor", "row", "model"]) -> None:
    """mergekit's ``breadcrumbs_ties``: of the weighted, masked task vectors the sum of what agrees with their sum."""
    base, models = quantised(count=3)
    weights = [1.0, 0.5, 2.0]
    rule = Breadcrumbs(0.4, 0.05, unit=unit, weight=weights, elect=True, scale=0.7)
    alone = [merge_state_dicts(Breadcrumbs(0.4, 0.05, 1, unit=unit), [m], base) for m in models]
    for name, found in merge_state_dicts(rule, models, base).items():
        kept = torch.stack([w * (a[name] - base[name]) for w, a in zip(weights, alone, strict=True)])
        sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
        torch.testing.assert_close(found, base[name] + 0.7 * torch.where(kept * sign > 0, kept, 0.0).sum(0))


def test_untouched_rows_do_not_let_everything_pass() -> None:
    values = torch.zeros(100, 10)
    values[:2] = torch.arange(1.0, 21).view(2, 10)
    assert kept(values, Breadcrumbs(0.01, 0.005)).nonzero().tolist() == [[0, j] for j in range(5, 10)] + [
        [1, j] for j in range(5)
    ]
    assert int(kept(values, Breadcrumbs(0.5, 0.005)).sum()) == 15  # all that is not 0, less the five outliers


def test_the_order_of_models_does_not_matter() -> None:
    base, models = make_models(count=4)
    rule = Breadcrumbs(0.2, 0.02)
    assert_close(merge_state_dicts(rule, models[::-1], base), merge_state_dicts(rule, models, base))


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="unit 'layer'"):
        Breadcrumbs(unit="layer")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"gamma 1.2"):
        Breadcrumbs(gamma=1.2)
    with pytest.raises(InputError, match="first 'low'"):
        Breadcrumbs(first="low")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="density -1"):
        Breadcrumbs(density=[0.1, -1])
