from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, deltas, make_models, merge, quantised

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.emr import EMR, mask, rescaler, specialize, unify


def test_unify() -> None:
    rows = torch.tensor([[1, -2, 0.5, 0, 3, 1], [2, 1, -0.5, 0, -4, -1], [-1, 3, 0.1, 0, 0.5, 0]])
    assert unify(rows).tolist() == pytest.approx([2, 3, 0.5, 0, -4, 1])


@pytest.mark.parametrize("make", [make_models, quantised])
def test_emr(make: object) -> None:
    base, models = make(count=4)  # type: ignore[operator]
    expected = {}
    for name, tau in deltas(base, models).items():
        sign = torch.where(tau.sum(0) >= 0, 1.0, -1.0)
        expected[name] = base[name] + 0.9 * sign * (tau * sign).clamp(min=0).amax(0)
    for chunk in (4096, 2**16):
        assert_close(merge(EMR(0.9), models, base, chunk), expected)


def test_each_task_has_its_model() -> None:
    base, models = make_models(dtype=torch.float64)
    merged = merge_state_dicts(EMR(), models, base, torch.float64)
    unified = {name: merged[name] - base[name] for name in base}
    for model in models:
        tau = {name: model[name] - base[name] for name in base}
        scale = rescaler(tau, unified)
        own = {name: specialize(base[name], tau[name], unified[name], scale) for name in base}
        # The masked vector has the task's own mean magnitude, and never its opposite sign.
        size = sum(float((own[name] - base[name]).abs().sum()) for name in base)
        assert size == pytest.approx(sum(float(t.abs().sum()) for t in tau.values()))
        assert all(bool(((own[name] - base[name]) * tau[name] >= -1e-15).all()) for name in base)
        # It is nearer to the task's own than the shared vector is.
        far, near = (sum(float((model[n] - other[n]).square().sum()) for n in base) for other in (merged, own))
        assert near < far


def test_one_task_is_itself() -> None:
    base, models = make_models(count=1)
    tau = {name: models[0][name] - base[name] for name in base}
    assert rescaler(tau, tau) == 1
    assert_close({name: specialize(base[name], tau[name], tau[name], 1.0) for name in base}, models[0])
    assert rescaler({"w": torch.zeros(3)}, {"w": torch.ones(3)}) == 1


def test_masks() -> None:
    assert mask(torch.tensor([1.0, -1, 0, 1e-30]), torch.tensor([2.0, 1, 1, 1e-30])).tolist() == [True, False, False, True]
    with pytest.raises(InputError, match=r"shape \[2\], expected"):
        mask(torch.ones(2), torch.ones(3))
    with pytest.raises(InputError, match="'v' is not in both"):
        rescaler({"w": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(1)})
