from __future__ import annotations

import math

import pytest
import torch
from tests.merge.rules.models import assert_close, make_models, merge

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.slerp import SLERP, weights


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_along_the_arc(t: float) -> None:
    _, models = make_models(count=1, seed=1)
    _, others = make_models(count=1, seed=2)
    one, other = models[0], others[0]
    expected = {}
    for name in one:
        v, w = one[name].double().flatten(), other[name].double().flatten()
        cosine = float(v @ w / (v.norm() * w.norm())) if v.numel() else 1.0
        if abs(cosine) > 0.9995:
            mixed = (1 - t) * v + t * w
        else:
            angle = math.acos(cosine)
            mixed = (math.sin((1 - t) * angle) * v + math.sin(t * angle) * w) / math.sin(angle)
        expected[name] = mixed.view(one[name].shape)
    for chunk in (4096, 2**16):
        assert_close(merge(SLERP(t), [one, other], None, chunk), expected)


def test_ends_and_sides() -> None:
    _, models = make_models(count=2)
    for t, end in ((0, 0), (1, 1)):
        assert_close(merge_state_dicts(SLERP(t), models), models[end])
    assert_close(merge_state_dicts(SLERP(0.3), models), merge_state_dicts(SLERP(0.7), models[::-1]))


def test_lengths_stay_on_the_sphere() -> None:
    v, w = torch.tensor([3.0, 0]), torch.tensor([0, 3.0])
    for t in (0.2, 0.5, 0.8):
        found = merge_state_dicts(SLERP(t), [{"w": v}, {"w": w}])["w"]
        assert found.tolist() == pytest.approx([3 * math.cos(t * math.pi / 2), 3 * math.sin(t * math.pi / 2)])


@pytest.mark.parametrize(
    "products", [[[0, 0], [0, 4]], [[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, -1], [-1, 1]], [[1, 2], [2, 4.0001]]]
)
def test_lines_where_there_is_no_arc(products: list[list[float]]) -> None:
    assert weights(torch.tensor(products, dtype=torch.float64), 0.3) == (0.7, 0.3)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"t 1\.5"):
        SLERP(1.5)
    _, models = make_models(count=3)
    with pytest.raises(InputError, match="SLERP merges 2 models, not 3"):
        merge_state_dicts(SLERP(), models)
