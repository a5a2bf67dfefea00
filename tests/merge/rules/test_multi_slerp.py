from __future__ import annotations

import math

import pytest
import torch
from tests.merge.rules.models import assert_close, deltas, make_models, merge
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.multi_slerp import MultiSLERP, weights
from polytask.merge.rules.slerp import SLERP


def reference(vectors: Tensor, shares: list[float]) -> Tensor:
    """The spherical mean by small steps down the mean squared angle, in the space of the vectors themselves."""
    units = torch.nn.functional.normalize(vectors, dim=1)
    w = torch.tensor(shares, dtype=torch.float64)
    mean = torch.nn.functional.normalize(w @ units, dim=0)
    for _ in range(2000):
        cosines = (units @ mean).clamp(-1, 1)
        tangents = units - cosines[:, None] * mean
        arcs = tangents * (cosines.acos() / tangents.norm(dim=1).clamp(min=1e-300))[:, None]
        mean = torch.nn.functional.normalize(mean + 0.3 * (w @ arcs), dim=0)
    return mean * (w @ vectors.norm(dim=1))


@pytest.mark.parametrize("given", [[1.0, 1.0, 1.0], [2.0, 1.0, 0.5]])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_spherical_mean(given: list[float], with_base: bool) -> None:
    shapes = {"a": (7, 33), "b": (129,), "c": (41, 211)}
    base, models = make_models(shapes=shapes)
    if not with_base:
        models = [make_models(count=1, seed=k, shapes=shapes)[0] for k in range(3)]
        base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    shares = [g / sum(given) for g in given]
    expected = {
        name: base[name] + reference(tau.reshape(3, -1), shares).view(shapes[name])
        for name, tau in deltas(base, models).items()
    }
    for chunk in (4096, 2**16):
        assert_close(merge(MultiSLERP(given), models, base if with_base else None, chunk), expected)


def test_two_are_half_way_along_the_arc() -> None:
    v, w = torch.tensor([3.0, 0, 0]), torch.tensor([0, 0, 3.0])
    found = merge_state_dicts(MultiSLERP(), [{"w": v}, {"w": w}])
    assert_close(found, merge_state_dicts(SLERP(0.5), [{"w": v}, {"w": w}]))
    third = merge_state_dicts(MultiSLERP([2, 1]), [{"w": v}, {"w": w}])
    assert_close(third, merge_state_dicts(SLERP(1 / 3), [{"w": v}, {"w": w}]))


def test_vectors_of_length_0_count_for_the_length_only() -> None:
    found = weights(torch.tensor([[4.0, 0], [0, 0]]).double(), [0.5, 0.5])
    assert found == pytest.approx([0.5, 0])
    assert weights(torch.zeros(2, 2).double(), [0.5, 0.5]) == [0, 0]


@pytest.mark.parametrize("values", [[0.5, -0.5], [1.0, -2.0], [1.0, 2.0, -0.5], [1.0, 1.0, -5.0]])
def test_numbers_alone(values: list[float]) -> None:
    """They have two directions only: what wins has the mean length, and where none wins they are averaged."""
    found = merge_state_dicts(MultiSLERP(), [{"w": torch.tensor([v])} for v in values], {"w": torch.zeros(1)})["w"]
    signs = sum(math.copysign(1, v) for v in values)
    length = sum(map(abs, values)) / len(values)
    expected = math.copysign(length, signs) if signs else sum(values) / len(values)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("given", [[1, -1], [0, 0]])
def test_bad_weights(given: list[float]) -> None:
    _, models = make_models(count=2)
    with pytest.raises(InputError, match="weights"):
        merge_state_dicts(MultiSLERP(given), models)
