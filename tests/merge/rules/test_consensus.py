from __future__ import annotations

import pytest
import torch
from tests.merge.rules.models import assert_close, assert_same, deltas, flat, make_models, merge, quantised, unflat

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.consensus import Consensus
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES

A, B = torch.tensor([1.0, 0, 2, -1]), torch.tensor([1.0, 1, -1, 0])


@pytest.mark.parametrize(
    ("scale", "k", "expected"),
    [
        (0.4, 0, [2, 1, 1, -1]),
        (0.4, 1, [2, 1, 1, -1]),  # masks TFTT and TTTF
        (0.4, 2, [2, 0, 1, 0]),
        (1.0, 1, [0, 1, 1, -1]),  # FFTT and FTFF: coordinate 0 is a tie
        (1.0, 2, [0, 0, 0, 0]),
        (0.4, 3, [0, 0, 0, 0]),
    ],
)
def test_two_tasks(scale: float, k: int, expected: list[float]) -> None:
    found = merge_state_dicts(Consensus(k, scale, 1), [{"w": A}, {"w": B}], {"w": torch.zeros(4)})
    assert found["w"].tolist() == expected


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_consensus(make: object, k: int) -> None:
    base, models = make(count=4)  # type: ignore[operator]
    scales = [0.2, 0.4, 0.6, 1.0]
    expected = {}
    for name, tau in deltas(base, models).items():
        total = tau.sum(0)
        tasks = sum((t.abs() > s * (total - t).abs()).int() for t, s in zip(tau, scales, strict=True))
        expected[name] = base[name] + 0.5 * total * (tasks >= k)
    for chunk in (4096, 2**16):
        assert_close(merge(Consensus(k, scales, 0.5), models, base, chunk), expected)


def ties(tau: dict[str, torch.Tensor], density: float) -> dict[str, torch.Tensor]:
    """What TIES adds up, from the sorted magnitudes of each whole task vector, ``(K, *shape)`` by tensor."""
    every = flat(tau)
    trimmed = torch.zeros_like(every)
    for row, out in zip(every, trimmed, strict=True):
        largest = sorted(range(len(row)), key=lambda i: (-abs(float(row[i])), i))[: int(density * len(row))]
        out[largest] = row[largest]
    sign = torch.where(trimmed.sum(0) >= 0, 1, -1)
    return unflat((trimmed * (trimmed * sign > 0)).sum(0), {name: t[0] for name, t in tau.items()})


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_consensus_of_ties_compares_whole_task_vectors(make: object, k: int) -> None:
    base, models = make(count=4)  # type: ignore[operator]
    tau = deltas(base, models)
    scales = [0.2, 0.4, 0.6, 1.0]
    expected = {}
    for name, merged in ties(tau, 0.3).items():
        tasks = sum((t.abs() > s * (merged - t).abs()).int() for t, s in zip(tau[name], scales, strict=True))
        expected[name] = base[name] + 0.5 * merged * (tasks >= k)
    for chunk in (4096, 2**16):
        assert_close(merge(Consensus(k, scales, 0.5, "ties", 0.3), models, base, chunk), expected)


def test_two_tasks_by_ties() -> None:
    """The sums of (1, 0, 2, -1) and (1, 1, -1, 0) that agree are (2, 1, 2, -1): nothing is taken from the 2."""
    models, base = [{"w": A}, {"w": B}], {"w": torch.zeros(4)}
    for k, expected in ((0, [2, 1, 2, -1]), (1, [2, 1, 2, -1]), (2, [2, 0, 0, 0])):
        assert merge_state_dicts(Consensus(k, 0.4, 1, "ties", 1), models, base)["w"].tolist() == expected


def test_ends_of_ties() -> None:
    base, models = make_models()
    plain = merge_state_dicts(TIES(0.2, 0.3, merge_by="sum"), models, base)
    assert_same(merge_state_dicts(Consensus(0, vector="ties"), models, base), plain)
    assert_same(merge_state_dicts(Consensus(4, vector="ties"), models, base), base)
    assert_same(merge_state_dicts(Consensus(2, vector="ties", density=0), models, base), base)
    every = merge_state_dicts(Consensus(3, 0, vector="ties", density=[0.2, 0.3, 0.1]), models, base)
    assert_same(every, merge_state_dicts(TIES([0.2, 0.3, 0.1], 0.3, merge_by="sum"), models, base))


def test_ends() -> None:
    base, models = make_models()
    assert_same(merge_state_dicts(Consensus(0), models, base), merge_state_dicts(TaskArithmetic(0.3), models, base))
    assert_same(merge_state_dicts(Consensus(4), models, base), base)
    # The support of each task vector: nothing is dropped where every task moved every weight.
    assert_close(merge_state_dicts(Consensus(3, 0), models, base), merge_state_dicts(TaskArithmetic(0.3), models, base))


def test_disjoint_supports() -> None:
    models = [{"w": torch.tensor([1.0, 0, 0])}, {"w": torch.tensor([0, -2.0, 0])}]
    base = {"w": torch.zeros(3)}
    for scale in (0.2, 5.0):
        assert merge_state_dicts(Consensus(1, scale, 1), models, base)["w"].tolist() == [1, -2, 0]
        assert_same(merge_state_dicts(Consensus(2, scale, 1), models, base), base)


def test_larger_scales_and_more_tasks_keep_less() -> None:
    base, models = make_models(count=4)

    def kept(rule: Consensus) -> torch.Tensor:
        return merge_state_dicts(rule, models, base)["g"] != base["g"]

    for less, more in ((Consensus(2, 0.6), Consensus(2, 0.4)), (Consensus(3), Consensus(2)), (Consensus(2), Consensus(1))):
        assert not bool((kept(less) & ~kept(more)).any())
        assert int(kept(less).sum()) < int(kept(more).sum())


@pytest.mark.parametrize(
    "settings",
    [{"k": -1}, {"k": 1.5}, {"mask_scale": -0.1}, {"mask_scale": [0.4, float("inf")]}, {"vector": "mean"}, {"density": 1.1}],
)
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Consensus(**settings)  # type: ignore[arg-type]
