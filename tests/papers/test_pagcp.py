"""PAGCP: the paper's network, its control arms, and its experiment at a tiny size (tests/shrink has the method's own)."""

from __future__ import annotations

import pytest
import torch
from tests.papers.real_data import folder_with
from tests.shrink.test_by_task import problem
from torch import nn

from polytask.cost import count, macs
from polytask.papers.pagcp import ARMS, PAPER, Encoder, YOLOv5
from polytask.papers.pagcp import digits as claim
from polytask.papers.pagcp.at_once import at_once, by_ratio, sensitivities, to_the_last_unit
from polytask.shrink import find_structure, masked, remove, uniform


@pytest.mark.parametrize(("size", "gflops"), [("m", 51.3), ("l", 115.4), ("x", 218.8)])
def test_yolo_has_the_operations_of_the_papers_table(size: str, gflops: float) -> None:
    with torch.device("meta"):
        network = YOLOv5(size)
    assert 2 * macs(network, torch.empty(1, 3, 640, 640)) / 1e9 == pytest.approx(gflops, rel=0.002)


def test_yolo_is_pruned_in_all_layers_but_its_outputs() -> None:
    torch.manual_seed(0)
    network, x = YOLOv5("s", classes=3).eval(), torch.randn(1, 3, 64, 64)
    with torch.device("meta"):
        assert count(YOLOv5("s"), torch.empty(1, 3, 640, 640)).total.parameters == 7_276_605  # as its authors print it
    structure = find_structure(network, x)
    assert set(structure.kept) == {f"detect.{i}" for i in range(3)}
    stage = structure["p3.4.cv1.0"]  # a backbone stage: the bottlenecks' second convolutions and the branch's first
    assert stage.layers == ("p3.4.cv1.0", *(f"p3.4.m.{i}.cv2.0" for i in range(3)))
    gone = uniform(network, structure, 0.3)
    small, mask = remove(network, structure, gone)(x), masked(network, structure, gone)(x)
    for a, b in zip(small, mask, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_control_arms_reach_the_target_to_the_last_unit() -> None:
    network, losses, x = problem()
    structure = find_structure(network, x[:2])

    def cost(n: nn.Module) -> float:
        return macs(n, x[:1])

    target = 0.6 * cost(network)
    arms = {
        "at once": at_once(network, structure, losses, cost, target),
        "uniform": by_ratio(lambda r: uniform(network, structure, r), network, structure, cost, target),
    }
    for removed in arms.values():
        exact = to_the_last_unit(removed, network, structure, cost, target)
        assert 0.95 * target < cost(remove(network, structure, exact)) <= target
        for name, units in exact.items():
            assert units == removed[name][: len(units)]
            assert cost(remove(network, structure, {**exact, name: units[:-1]})) > target


def test_sensitivities_are_those_of_the_unpruned_network() -> None:
    network, losses, x = problem()
    structure = find_structure(network, x[:2])
    found = sensitivities(network, structure, losses)
    order = network[4].weight.abs().sum(1).argsort(stable=True).tolist()
    expected = losses(masked(network, structure, {"4": order[:3]}))
    assert found["4"][3] == pytest.approx(expected, rel=1e-4) and found["4"][0] == losses(network)
    assert list(found["4"]) == sorted({int(0.05 * step * 12 + 1e-9) for step in range(20)})


def test_the_claims_network_has_a_residual_group() -> None:
    structure = find_structure(Encoder(), torch.randn(2, 1, 36, 36))
    assert [(group.name, group.units, len(group.layers)) for group in structure.groups] == [
        *(("0", 16, 1), ("4", 32, 2), ("7.body.0", 32, 1), ("8", 64, 1)),
    ]


@pytest.mark.soak
def test_a_tiny_run_measures_all_that_the_claims_and_the_plot_need(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(claim.FILES)
    whole = claim.load
    monkeypatch.setattr(claim, "load", lambda data, seed, size: whole(data, seed, size, test=100))
    found = claim.measure(0, folder, epochs=1, size=160)
    for arm in ARMS:
        assert claim.SHARE * 0.98 < found[f"{arm} macs"] <= claim.SHARE
    assert found["small macs"] <= claim.SMALL
    measured = {0: found, 1: {name: value + 0.1 * len(name) for name, value in found.items()}}
    assert all(stated.judge(measured) for stated in PAPER.claims)
    assert claim.plot(measured).axes
