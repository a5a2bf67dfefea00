"""What holds for all rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.rules.models import assert_close, assert_same, make_models, merge, quantised

from polytask.errors import InputError
from polytask.merge.engine.rule import Rule
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average
from polytask.merge.rules.breadcrumbs import Breadcrumbs
from polytask.merge.rules.consensus import Consensus
from polytask.merge.rules.dare import DARE
from polytask.merge.rules.della import DELLA
from polytask.merge.rules.emr import EMR
from polytask.merge.rules.model_stock import ModelStock
from polytask.merge.rules.multi_slerp import MultiSLERP
from polytask.merge.rules.pcb import PCB
from polytask.merge.rules.slerp import SLERP
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES

RULES: dict[str, Rule] = {
    "average": Average(weight=[1, 2, 0.5]),
    "task_arithmetic": TaskArithmetic(0.7, [1, -0.4, 2]),
    "ties": TIES(0.2, 0.9),
    "ties, by tensor": TIES([0.3, 0.5, 1], 0.9, [1, 2, 0.5], "tensor", "sum"),
    "dare": DARE(0.4, seed=3),
    "dare, elected": DARE([0.4, 0.9, 1], elect=True, weight=[1, 2, 0.5]),
    "breadcrumbs": Breadcrumbs(0.3, 0.05),
    "breadcrumbs, by row": Breadcrumbs(0.3, 0.05, unit="row"),
    "breadcrumbs, of the model": Breadcrumbs([0.3, 0.2, 0.9], 0.05, unit="model", first="top", weight=[1, 2, 0.5]),
    "slerp": SLERP(0.3),
    "multi_slerp": MultiSLERP([1, 2, 0.5]),
    "model_stock": ModelStock(),
    "pcb": PCB(weight=[1, 1.2, 0.8]),
    "pcb, by tensor": PCB(0.05, 0.4, agreement="pairs", scope="tensor"),
    "consensus": Consensus(mask_scale=[0.4, 0.2, 1]),
    "consensus, of ties": Consensus(mask_scale=[0.4, 0.2, 1], vector="ties", density=[0.3, 0.5, 1]),
    "della": DELLA([0.3, 0.5, 0.8], 0.1, weight=[1, 2, 0.5]),
    "emr": EMR(0.9),
}

EVERY = pytest.mark.parametrize("name", RULES)


def how_many(name: str) -> int:
    return RULES[name].models or 3


@EVERY
@settings(max_examples=12)
@given(data=st.data())
def test_chunks_do_not_matter(name: str, data: st.DataObject) -> None:
    """Whatever the chunks, the result is the same, to the last bit, with and without ties."""
    around = st.sampled_from([4096, 8192, 12288, 20480]).flatmap(lambda n: st.integers(n - 2, n + 2))
    shape = data.draw(st.one_of(around.map(lambda n: (n,)), st.tuples(st.integers(1, 90), st.integers(1, 210))))
    shapes = {"a": (5,), "b": shape, "c": data.draw(st.sampled_from([(), (1,), (3, 4097)]))}
    make = data.draw(st.sampled_from([make_models, quantised]))
    base, models = make(count=how_many(name), seed=data.draw(st.integers(0, 99)), shapes=shapes)
    if name == "multi_slerp" and make is quantised:
        models = [{key: tensor + 1 for key, tensor in m.items()} for m in models]  # so that directions cannot cancel out
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    expected = merge(RULES[name], models, base, 2**20, dtype)
    for chunk in (4096, 8192, 12288):
        assert_same(merge(RULES[name], models, base, chunk, dtype), expected)


@EVERY
@pytest.mark.parametrize("make", [make_models, quantised])
def test_threads_do_not_matter(name: str, make: Any) -> None:
    """Neither those that merge tensors at once nor torch's own, with and without ties."""
    shapes = {"a": (300, 701), "b": (7,), **{f"c{i}": (40, 101 + i) for i in range(6)}}
    base, models = make(count=how_many(name), shapes=shapes)
    if name == "multi_slerp" and make is quantised:
        models = [{key: tensor + 1 for key, tensor in m.items()} for m in models]
    expected = merge(RULES[name], models, base)
    assert_same(merge(RULES[name], models, base, 8192, threads=3), expected)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(merge(RULES[name], models, base), expected)
    finally:
        torch.set_num_threads(before)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_in_float32(name: str, dtype: torch.dtype) -> None:
    base, models = make_models(count=how_many(name), dtype=dtype)
    wide_base, *wide_models = [{key: tensor.float() for key, tensor in m.items()} for m in [base, *models]]
    wide = merge(RULES[name], wide_models, wide_base)
    found = merge_state_dicts(RULES[name], models, base)
    for key, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wide[key].to(dtype))


@EVERY
def test_inputs_are_left_alone(name: str) -> None:
    base, models = make_models(count=how_many(name))
    before = [{key: tensor.clone() for key, tensor in m.items()} for m in [base, *models]]
    merge_state_dicts(RULES[name], models, base)
    for now, then in zip([base, *models], before, strict=True):
        assert_same(now, then)


@EVERY
def test_whole_numbers_are_the_bases(name: str) -> None:
    base, models = make_models(count=how_many(name), shapes={"w": (3, 4)})
    base["steps"] = torch.tensor(7)
    for k, model in enumerate(models):
        model["steps"] = torch.tensor(k)
    assert int(merge_state_dicts(RULES[name], models, base)["steps"]) == 7


@EVERY
def test_unchanged_models(name: str) -> None:
    """With all task vectors 0 the base comes out."""
    base, _ = make_models()
    if name == "average":
        assert_close(merge_state_dicts(RULES[name], [base] * 3, base), base)
    else:
        assert_close(merge_state_dicts(RULES[name], [base] * how_many(name), base), base)


@EVERY
def test_a_value_that_is_not_finite(name: str) -> None:
    base, models = make_models(count=how_many(name), shapes={"a": (3,), "b": (4097,)})
    models[1]["b"][4096] = math.nan
    with pytest.raises(InputError, match="not finite"):
        merge_state_dicts(RULES[name], models, base)


ALONE = [
    Average(),
    TaskArithmetic(1),
    TIES(1),
    TIES(1, merge_by="sum", scope="tensor"),
    DARE(1),
    DARE(1, elect=True),
    Breadcrumbs(1, 0, 1),
    Breadcrumbs(1, 0, 1, unit="row"),
    Breadcrumbs(1, 0, 1, unit="model"),
    MultiSLERP(),
    ModelStock(),
    Consensus(1, scale=1),
    Consensus(1, scale=1, vector="ties", density=1),
    DELLA(1),
    EMR(),
]


@pytest.mark.parametrize("rule", ALONE, ids=repr)
def test_one_model_alone(rule: Rule) -> None:
    base, models = make_models(count=1)
    assert_close(merge_state_dicts(rule, models, base), models[0])


SYMMETRIC = [
    Average(),
    TaskArithmetic(),
    TIES(),
    TIES(scope="tensor", merge_by="sum"),
    Breadcrumbs(),
    Breadcrumbs(unit="row"),
    MultiSLERP(),
    ModelStock(),
    PCB(),
    Consensus(),
    Consensus(vector="ties"),
    EMR(),
]


@pytest.mark.parametrize("rule", SYMMETRIC, ids=repr)
def test_the_order_of_models_does_not_matter(rule: Rule) -> None:
    base, models = make_models(count=4, dtype=torch.float64)
    one = merge_state_dicts(rule, models, base, torch.float64)
    for order in ([3, 2, 1, 0], [1, 0, 3, 2]):
        assert_close(merge_state_dicts(rule, [models[k] for k in order], base, torch.float64), one, 1e-9, 1e-12)


def test_a_base_is_needed() -> None:
    _, models = make_models()
    for name, rule in RULES.items():
        if rule.needs_base:
            with pytest.raises(InputError, match="expected a base model"):
                merge_state_dicts(rule, models)
        else:
            assert merge_state_dicts(rule, models[: how_many(name)]).keys() == models[0].keys()
