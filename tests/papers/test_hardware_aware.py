"""Once-for-All's MobileNetV3 against the published log, its super-network, and small runs of the claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.papers.real_data import folder_with
from torch.utils.flop_counter import FlopCounterMode

from polytask.errors import InputError
from polytask.papers._nasbench201 import EDGES
from polytask.papers.hardware_aware import (
    PAPER,
    SPACE,
    Architecture,
    MobileNetV3,
    SuperNetwork,
    cells,
    once_for_all,
    prediction,
)
from polytask.papers.hardware_aware.architecture import rounded
from polytask.papers.hardware_aware.data import EVALUATIONS, REFERENCE, evaluations, latencies, networks, run
from polytask.papers.hardware_aware.once_for_all import trees
from polytask.pareto import hypervolume
from polytask.share.slimmable import recalibrate
from polytask.shrink.search import LINAS, NSGA2, Random


def counted(architecture: Architecture, size: int = 224) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the network itself, on the meta device."""
    with torch.device("meta"):
        network = MobileNetV3(architecture).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, size, size))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize(("width", "size"), [(1.0, 224), (1.2, 130), (0.35, 97)])
def test_the_cost_is_what_the_network_costs(width: float, size: int) -> None:
    random = np.random.default_rng(0)
    for row in SPACE.sample(2, random):
        architecture = Architecture.of(SPACE.configuration(row), width)
        assert architecture.cost(size) == counted(architecture, size)


def test_parameters_and_operations_of_all_rows_of_the_log() -> None:
    table = evaluations(folder_with([EVALUATIONS]))
    rows = table.select("ks", "e", "d", "params", "macs").rows()
    assert len(rows) == 2373
    assert [Architecture.parse(*row[:3]).cost() for row in rows] == [row[3:] for row in rows]
    for *digits, parameters, macs in rows[::800]:
        assert counted(Architecture.parse(*digits)) == (parameters, macs)


def test_hypervolumes_of_the_log() -> None:
    table = evaluations(folder_with([EVALUATIONS]))
    linas, evolved = (run(table, name) for name in ("linasnsga2_acc_macs", "evonsga2_acc_macs"))
    points = (100, 150, 250)
    assert [linas.hypervolume(REFERENCE, n) / 1e8 for n in points] == pytest.approx([27.575, 29.172, 29.397], abs=5e-4)
    assert [evolved.hypervolume(REFERENCE, n) / 1e8 for n in points] == pytest.approx([26.541, 27.748, 28.554], abs=5e-4)
    assert linas.hypervolume(REFERENCE, 150) > evolved.hypervolume(REFERENCE, 250)
    best = {name: max(t.values["top1"] for t in run(table, name).trials[:100]) for name in ("evoga_acc", "linasga_acc")}
    assert best == {"evoga_acc": 76.894, "linasga_acc": 77.294}
    rows, top1, macs = networks(table)
    assert len(rows) == len(top1) == 2162
    measured = [Architecture.of(SPACE.configuration(row)).cost()[1] for row in rows[:50]]
    assert macs[:50].tolist() == measured


def test_how_many_evaluations_a_hypervolume_takes() -> None:
    found = run(evaluations(folder_with([EVALUATIONS])), "linasnsga2_acc_macs")
    goal = found.hypervolume(REFERENCE, 60)
    first = once_for_all.evaluations_to(found, goal)
    assert found.hypervolume(REFERENCE, first - 1) < goal <= found.hypervolume(REFERENCE, first)
    assert once_for_all.evaluations_to(found, 1e12) == len(found.trials) + 1


def test_the_space_has_120_features_and_all_architectures() -> None:
    rows = SPACE.sample(20, np.random.default_rng(0))
    assert SPACE.features(rows).shape == (20, 120)
    assert SPACE.size == (9**2 + 9**3 + 9**4) ** 5
    for row in rows:
        architecture = Architecture.of(SPACE.configuration(row))
        assert SPACE.canonical(row[None])[0].tolist() == SPACE.row(architecture.configuration).tolist()
        depths = [len(stage) for stage in architecture.kernels]
        assert SPACE.features(row[None]).sum() == 2 * sum(depths)


def test_digits_beyond_the_depth_do_not_count() -> None:
    one = Architecture.parse("3537" * 5, "3463" * 5, "23432")
    other = Architecture.parse("3533" + "3537" * 3 + "3557", "3463" * 5, "23432")
    assert one == other and one.cost() == other.cost()
    assert [rounded(width) for width in (1, 12, 19.2, 28.8, 48, 1536)] == [8, 16, 24, 32, 48, 1536]


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        (("3" * 19, "3" * 20, "22222"), "expected 20, 20 and 5 digits"),
        (("3" * 20, "3" * 20, "2222x"), "expected 20, 20 and 5 digits"),
        (("3" * 20, "3" * 20, "12222"), "expected 5 stages"),
        (("4" * 20, "3" * 20, "22222"), r"4, expected some of \(3, 5, 7\)"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(digits: tuple[str, str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Architecture.parse(*digits)


# The super-network

WIDTH = 0.25


def supernetwork() -> SuperNetwork:
    """With maps that are not the identity, and statistics that are not those of a new network."""
    torch.manual_seed(0)
    network = SuperNetwork(WIDTH, classes=4)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "maps" in name or "running" in name or name.endswith("1.weight"):
                tensor += 0.2 * torch.rand_like(tensor)
    return network


def some(count: int) -> list[Architecture]:
    rows = SPACE.sample(count, np.random.default_rng(1))
    return [Architecture.of(SPACE.configuration(row), WIDTH) for row in rows]


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_what_is_extracted_computes_the_same_and_is_of_the_published_size() -> None:
    network = supernetwork().eval()
    for architecture in some(4):
        plain = network.extract(architecture)
        assert torch.equal(network(images(), architecture), plain(images()))
        sizes = [sum(p.numel() for p in each.parameters()) for each in (plain, MobileNetV3(architecture, 4))]
        assert sizes[0] == sizes[1]
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.zero_()  # copies: the super-network stays as it is
        assert network(images(), architecture).abs().sum() > 0


def test_a_smaller_kernel_is_the_middle_of_the_larger_through_the_maps() -> None:
    block: Any = supernetwork().stages[0][0]  # type: ignore[index]
    weight = block.whole.depthwise[0].weight
    found = block.tensors(3, 6)["depthwise.0.weight"]
    five, three = (block.maps[size].detach().numpy() for size in ("5", "3"))
    for channel in (0, 5):
        kernel = weight[channel, 0].detach().numpy()
        middle = (five @ kernel[1:6, 1:6].ravel()).reshape(5, 5)
        smallest = (three @ middle[1:4, 1:4].ravel()).reshape(3, 3)
        assert found[channel, 0].detach().numpy() == pytest.approx(smallest, abs=1e-6)
    fresh: Any = SuperNetwork(WIDTH).stages[0][0]  # type: ignore[index]
    kernels = fresh.whole.depthwise[0].weight
    assert torch.allclose(fresh.tensors(5, 3)["depthwise.0.weight"], kernels[:24, :, 1:6, 1:6], atol=1e-7)


def test_training_changes_what_is_used_and_nothing_else() -> None:
    network = supernetwork().train()
    smallest = Architecture.parse("3" * 20, "3" * 20, "2" * 5, WIDTH)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(images(), smallest).square().mean().backward()
    block: Any = network.stages[1][1]  # type: ignore[index]
    gradient = block.whole.project[0].weight.grad
    assert gradient[:, : block.after * 3].abs().sum() > 0 and gradient[:, block.after * 3 :].abs().sum() == 0
    assert all(size.grad is not None and size.grad.abs().sum() > 0 for size in block.maps.values())
    mean = "whole.depthwise.1.running_mean"
    now, then = block.state_dict()[mean], before[f"stages.1.1.{mean}"]
    assert (now[: block.after * 3] != then[: block.after * 3]).all()
    assert torch.equal(now[block.after * 3 :], then[block.after * 3 :])
    unused: Any = network.stages[1][3]  # type: ignore[index]
    assert all(parameter.grad is None for parameter in unused.parameters())
    assert torch.equal(unused.state_dict()[mean], before[f"stages.1.3.{mean}"])


def test_an_extracted_network_is_recalibrated() -> None:
    network = supernetwork().eval()
    plain = network.extract(some(1)[0])
    before = plain(images(16))
    recalibrate(plain, [images(16)])
    assert not torch.equal(plain(images(16)), before)
    assert network.first[1].running_mean is not None and not plain.training


# The claims, small


def test_search_among_sub_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(once_for_all.FILES)
    few: dict[str, Any] = {"random": Random(10), "nsga2": NSGA2(10), "linas": LINAS(10, 10)}
    monkeypatch.setattr(once_for_all, "STRATEGIES", few)
    monkeypatch.setattr(once_for_all, "BUDGET", 30)
    monkeypatch.setattr(once_for_all, "VISITED", 400)
    monkeypatch.setattr(once_for_all, "trees", lambda: trees().set_params(max_iter=30))
    once_for_all.surrogate.cache_clear()
    found = once_for_all.measure_search(0, folder)
    assert found["linas at 50"] == found["linas at 250"] >= 0
    assert found["nsga2 evaluations"] <= 30 and found["linas evaluations"] <= 31
    found = once_for_all.measure_popdb(0, folder)
    assert found["reduced size"] < found["whole size"] == pytest.approx(19.3, abs=0.05)
    evaluate = once_for_all.surrogate(folder)
    known = evaluations(folder).row(0, named=True)
    first = evaluate(Architecture.parse(known["ks"], known["e"], known["d"]).configuration)
    assert first["macs"] == known["macs"] and first["top1"] == pytest.approx(known["top1"], abs=0.1)
    once_for_all.surrogate.cache_clear()


def test_search_among_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(cells.FILES)
    few: dict[str, Any] = {"random": Random(10), "nsga2": NSGA2(10), "linas": LINAS(10, 10)}
    monkeypatch.setattr(cells, "STRATEGIES", few)
    monkeypatch.setattr(cells, "BUDGET", 30)
    found = cells.measure_cells(0, folder)
    assert all(0 <= value <= 1 for value in found.values()) and found == cells.measure_cells(0, folder)
    mean = np.mean([found[f"{device} linas at 100"] for device in cells.DEVICES])
    assert found["cells linas at 100"] == pytest.approx(mean)


def test_the_whole_table_covers_all_of_itself() -> None:
    device = cells.Device(cells.cells(folder_with(cells.FILES)), "eyeriss")
    points = np.array([[accuracy, -latency] for accuracy, latency in device.cells.values()])
    assert hypervolume(points, [0.0, -device.reference["latency"]]) == pytest.approx(device.whole)
    assert len(device.cells) == EDGES.size == 15_625
    assert device(dict(zip(EDGES.names, "333133", strict=True)))["accuracy"] == 73.513


def test_predictors_of_real_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(prediction.FILES)
    monkeypatch.setattr(prediction, "SAMPLES", (60, 100))
    monkeypatch.setattr(prediction, "BATCHES", (64,))
    found = prediction.measure_prediction(0, folder)
    assert 0 < found["top1 error 100"] < 0.5 and 0.5 < found["chosen tau 100"] < 1
    assert found["least tau at batch 64"] == min(found[f"{gpu}_64 tau"] for gpu in prediction.GPUS)
    features, times = latencies(folder)
    assert features.shape == (5000, 145) and len(times) == 12
    assert (features[:, 120:].sum(1) == 1).all()


def test_no_two_runs_measure_by_the_same_name() -> None:
    """The measurements of a seed are kept and drawn together."""
    runs = {claim.run for claim in PAPER.claims}
    assert len({run.__name__ for run in runs}) == len(runs) == 4
    assert all(
        name.startswith(("cells ", *cells.DEVICES)) for claim in PAPER.claims for name in claim.pair if "cells" in claim.name
    )


def test_the_picture(tmp_path: Path) -> None:
    names = [f"{s} at {n}" for s in cells.STRATEGIES for n in (*once_for_all.POINTS, *cells.POINTS)]
    names += [f"{d} {s} at {n}" for d in cells.DEVICES for s in cells.STRATEGIES for n in cells.POINTS]
    names += [f"{s} tau {n}" for s in ("top1", "chosen") for n in prediction.SAMPLES]
    assert PAPER.plot is not None
    figure = PAPER.plot({seed: dict.fromkeys(names, 0.9 + seed / 100) for seed in range(2)})
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
