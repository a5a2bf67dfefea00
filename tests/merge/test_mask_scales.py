"""Scales of masks by validation."""

from __future__ import annotations

from math import nan
from typing import Literal

import pytest
import torch
from tests.merge.small_models import A, Network, models, same, tuned
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.mask_scales import best_scales
from polytask.merge.masks import SCALES
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.consensus import Consensus
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES
from polytask.merge.task_masks import TaskMasks


def test_best_scales_asks_for_each_masked_model_once() -> None:
    base, experts = models()
    seen: list[tuple[str, dict[str, Tensor]]] = []
    wanted = {"task 0": 0.3, "task 1": 0.6, "task 2": 0.2}

    def evaluate(task: str, weights: dict[str, Tensor]) -> float:
        scale = SCALES[len(seen) % len(SCALES)]
        assert same(weights, TaskMasks.build(base, experts, scale).weights(task))
        seen.append((task, weights))
        return -abs(scale - wanted[task])

    assert best_scales(base, experts, evaluate) == wanted
    assert [task for task, _ in seen] == [task for task in experts for _ in SCALES]


def test_best_scales_finds_the_masks_nearest_to_the_experts() -> None:
    base, experts = models(tasks=5)

    def evaluate(task: str, weights: dict[str, Tensor]) -> float:
        return -sum(float((weights[name] - experts[task][name]).abs().sum()) for name in base)

    # The mask at scale 1 minimises the distance in each coordinate, so that no other scale may win.
    assert set(best_scales(base, experts, evaluate, (0.2, 0.6, 1.0, 3.0)).values()) == {1.0}


def test_best_scales_keeps_statistics_and_takes_a_vector() -> None:
    network = Network().eval()
    experts = {"a": tuned(network, 1), "b": tuned(network, 2)}
    vector = {name: torch.ones_like(parameter) for name, parameter in network.named_parameters()}

    def evaluate(task: str, weights: dict[str, Tensor]) -> float:
        assert same(weights, TaskMasks.build(network.state_dict(), experts, 0.5, vector).weights(task))
        weights["norm.running_mean"].zero_()
        return 1.0

    assert best_scales(network.state_dict(), experts, evaluate, [0.5], vector) == {"a": 0.5, "b": 0.5}
    assert experts["a"]["norm.running_mean"].any()


def test_of_equal_scores_the_first_scale_wins() -> None:
    assert best_scales({"w": torch.zeros(4)}, {"a": {"w": A}}, lambda *_: 0.5) == {"a": 0.2}


def test_a_search_that_cannot_choose() -> None:
    base, experts = {"w": torch.zeros(4)}, {"a": {"w": A}}
    with pytest.raises(InputError, match=r"task 'a' scores nan at scale 0\.2"):
        best_scales(base, experts, lambda *_: nan)
    with pytest.raises(InputError, match="no scales"):
        best_scales(base, experts, lambda *_: 0.0, [])
    with pytest.raises(InputError, match=r"scale -0\.5"):
        best_scales(base, experts, lambda *_: 0.0, [0.5, -0.5])


# From validation to one model


@pytest.mark.parametrize("vector", ["sum", "ties"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_consensus_of_the_chosen_masks(vector: Literal["sum", "ties"], k: int) -> None:
    """What validation chose for each task is what the merged model's masks have, whichever way that model is made."""
    torch.manual_seed(0)
    base = {"w": torch.randn(30, 10).double(), "b": torch.randn(10).double()}
    experts = {task: {name: theta + torch.randn_like(theta) for name, theta in base.items()} for task in ("a", "b", "c")}
    deltas = [{name: expert[name] - base[name] for name in base} for expert in experts.values()]
    zeros = {name: torch.zeros_like(theta) for name, theta in base.items()}
    rule = TIES(0.5, merge_by="sum") if vector == "ties" else TaskArithmetic(1)
    merged = merge_state_dicts(rule, deltas, zeros, torch.float64)
    wanted = {"a": 0.2, "b": 0.6, "c": 0.4}

    def evaluate(task: str, weights: dict[str, Tensor]) -> float:
        return float(same(weights, TaskMasks.build(base, experts, wanted[task], merged).weights(task)))

    scales = best_scales(base, experts, evaluate, vector=merged)
    assert scales == wanted
    tau = TaskMasks.build(base, experts, scales, merged).consensus(k)
    one = Consensus(k, list(scales.values()), 0.7, vector, density=0.5)
    found = merge_state_dicts(one, list(experts.values()), base, torch.float64)
    for name, theta in base.items():
        torch.testing.assert_close(found[name], theta + 0.7 * tau[name], rtol=1e-12, atol=1e-14)
