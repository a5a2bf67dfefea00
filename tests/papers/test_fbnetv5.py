"""FBNetV3 against the authors' table, the multi-path space, and small runs of the claims (tests/shrink has the search)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn

import polytask as pt
from polytask.cost import macs
from polytask.errors import InputError
from polytask.papers.fbnetv5 import FBNETV3_PATHS, PAPER, Costs, FBNetV3, InvertedResidual, MultiPath, ResolutionPath
from polytask.papers.fbnetv5 import cells as table_claim
from polytask.papers.fbnetv5 import digits as claim
from polytask.papers.fbnetv5.fbnetv3 import IMAGES, SqueezeExcite, rounded
from polytask.shrink.search import Distributions

# FBNetV3

WEIGHTS = {"A": 8_542_224, "B": 8.54e6, "C": 9.91e6, "D": 10.24e6, "E": 10.70e6, "F": 13.80e6, "G": 16.51e6}


def test_fbnetv3_has_the_weights_of_the_table() -> None:
    """Which counts those of convolutions and linear layers."""
    for size, expected in WEIGHTS.items():
        with torch.device("meta"):
            network = FBNetV3(size)
        weights = sum(weight.numel() for weight in network.parameters() if weight.ndim > 1)
        assert weights == (expected if size == "A" else pytest.approx(expected, abs=5e3)), size


def test_fbnetv3_a_has_the_operations_of_the_table() -> None:
    """Within a percent, and with those of pooling exactly."""
    with torch.device("meta"):
        network = FBNetV3("A").eval()
    image = torch.empty(1, 3, IMAGES["A"], IMAGES["A"], device="meta")
    operations = macs(network, image)
    assert operations == pytest.approx(356.6e6, rel=0.01)
    pooled: list[int] = []
    for module in network.modules():
        if isinstance(module, SqueezeExcite | nn.AdaptiveAvgPool2d):
            module.register_forward_hook(lambda _, inputs, __: pooled.append(inputs[0].numel()))
    network(image)
    assert round((operations + sum(pooled)) / 1e6, 1) == 356.6


def test_blocks_of_fbnetv3() -> None:
    assert [rounded(width) for width in (3, 6, 10, 18, 30, 46, 1344)] == [8, 8, 16, 24, 32, 48, 1344]
    block, x = InvertedResidual(16, 16, 5, 1, 3, True), torch.randn(2, 16, 9, 9)
    assert torch.equal(block(x), x)  # the last batch norm's scale is 0: an identity at first
    assert block.squeeze.reduce.out_channels == 8  # type: ignore[union-attr]
    assert InvertedResidual(16, 24, 3, 2).project[1].weight.min() == 1
    assert isinstance(InvertedResidual(16, 16).expand, nn.Identity)
    sides = [
        InvertedResidual(8, 8, kernel, 2, padding=padding)(torch.randn(2, 8, 28, 28)).shape[-1]
        for kernel, padding in ((5, None), (5, 1), (3, 0))
    ]
    assert sides == [14, 13, 13]
    with pytest.raises(InputError, match="unknown size 'H' of FBNetV3"):
        FBNetV3("H")


# The search space

TASKS = [
    pt.Task.classification("class", classes=3),
    pt.Task.pixel_binary("mask", metric="f1"),
    pt.Task.regression("size"),
]
PATHS = (ResolutionPath(8, blocks=2), ResolutionPath(16, 5, 2, True), ResolutionPath(24))


def network(modules: int = 2, tasks: Any = TASKS, paths: Any = PATHS) -> MultiPath:
    """With batch norms that are not those of a new network, in which blocks are identities."""
    torch.manual_seed(0)
    made = MultiPath(tasks, paths, modules=modules, channels=2, stem=1, width=12)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor += 0.3 * torch.rand_like(tensor) * (1 if "var" in name or "weight" in name else -1)
    return made.eval()


def images(side: int = 13, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(1))


def drawn(made: MultiPath, count: int, seed: int = 0) -> list[dict[str, Any]]:
    space = made.space
    return [space.configuration(row) for row in space.sample(count, np.random.default_rng(seed))]


def by_hand(made: MultiPath, x: torch.Tensor, configuration: dict[str, Any]) -> dict[int, torch.Tensor]:
    """The paths in the end, module after module, from the rules alone."""
    x = made.stem(x)
    sizes = [-(-x.shape[-1] // 2**path) for path in range(3)]
    there = {0: x}
    for module in range(2):
        for path in list(there):
            for block in range(2 if path == 0 else 1):
                name = f"m{module}_{path}" + (f"_{block}" if path == 0 else "")
                if configuration.get(name):
                    there[path] = made.parts[name].body(there[path])  # type: ignore[operator]
        new = dict(there)
        for source in there:
            for target in range(3):
                name = f"m{module}_{source}to{target}"
                if configuration.get(name):
                    given = made.parts[name].body(there[source])  # type: ignore[operator]
                    given = nn.functional.interpolate(given, size=(sizes[target],) * 2)
                    new[target] = new[target] + given if target in new else given
        there = new
    return there


def test_genes_are_blocks_and_exchanges_of_paths_that_can_be_there() -> None:
    names = list(network().space.genes)
    first = ["m0_0_0", "m0_0_1", "m0_0to1", "m0_0to2"]
    assert names[:4] == first
    exchanges = [f"m1_{source}to{target}" for source in range(3) for target in range(3) if source != target]
    assert names[4:] == ["m1_0_0", "m1_0_1", "m1_1", "m1_2", *exchanges]
    assert network(modules=1).space.genes == dict.fromkeys(first, (False, True))


@pytest.mark.parametrize("side", [13, 16, 22])
def test_paths_are_what_the_rules_say(side: int) -> None:
    made = network()
    for configuration in drawn(made, 6):
        expected = by_hand(made, images(side), configuration)
        assert made.used(configuration)[1] == sorted(expected)
        outputs = made(images(side), configuration)
        for task in TASKS:
            torch.testing.assert_close(outputs[task.name], made.heads[task.name](expected), rtol=1e-4, atol=1e-5)
    assert outputs["mask"].shape == (3, 1, -(-side // 2), -(-side // 2)) and outputs["class"].shape == (3, 3)


def test_what_is_extracted_is_smaller_and_computes_the_same() -> None:
    made = network()
    for configuration in drawn(made, 6, seed=3):
        small = made.extract(configuration)
        for name, output in made(images(), configuration).items():
            assert torch.equal(small(images())[name], output)
        one = made.extract(configuration, ["size"])
        assert list(one.parts) == made.used(configuration)[0] and list(one.heads) == ["size"]
        assert torch.equal(one(images())["size"], made(images(), configuration)["size"])
        assert len(list(one.parameters())) < len(list(small.parameters())) < len(list(made.parameters()))
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()  # copies
    assert made(images())["class"].abs().sum() > 0


def test_nothing_kept_is_the_stem_and_the_heads() -> None:
    made = network()
    nothing = dict.fromkeys(made.space.genes, False)
    small = made.extract(nothing)
    assert made.used(nothing) == ([], [0]) and not small.parts
    assert [list(head.merge) for head in small.heads.values()] == [["0"]] * 3
    # A path that no exchange leads to is not there, whatever else is kept on it.
    alone = {**nothing, "m1_1": True, "m1_1to2": True, "m1_2": True}
    assert made.used(alone) == ([], [0])
    assert torch.equal(made(images(), alone)["class"], made(images(), nothing)["class"])
    # An exchange of the last module makes a path that only heads see.
    late = {**nothing, "m1_0to2": True}
    assert made.used(late) == (["m1_0to2"], [0, 2])


def test_costs_are_those_of_the_extracted_networks() -> None:
    made = network()
    costs = Costs(made, images()[:1])
    for configuration in (*drawn(made, 2), None):
        found = costs(configuration)
        for task in TASKS:
            assert found[f"{task.name} macs"] == macs(made.extract(configuration, [task.name]), images()[:1])


def test_a_step_is_one_pass_through_the_paths_for_all_tasks() -> None:
    targets = {"class": torch.tensor([0, 1, 2]), "mask": torch.ones(3, 13, 13), "size": torch.ones(3, 1)}
    for names in (["class"], ["class", "mask"], ["class", "mask", "size"]):
        made = network(tasks=[task for task in TASKS if task.name in names]).train()
        passes: list[int] = []
        made.stem.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        losses = made.losses((images(), targets), drawn(made, 1)[0])
        assert list(losses) == names and len(passes) == 1
        sum(losses.values()).backward()  # type: ignore[union-attr]
    missing = {"class": torch.tensor([-100, 1, -100]), "mask": torch.full((3, 13, 13), torch.nan)}
    assert list(made.losses((images(), missing))) == ["class", "mask"]


def test_training_changes_what_is_used_and_nothing_else() -> None:
    made = network().train()
    configuration = drawn(made, 1, seed=5)[0]
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.losses((images(), {"class": torch.tensor([0, 1, 2])}), configuration)["class"].backward()
    used = made.used(configuration)[0]
    for name, part in made.parts.items():
        assert all((p.grad is not None) == (name in used) for p in part.parameters()), name
        norms = [n for n in before if n.startswith(f"parts.{name}.") and n.endswith("running_mean")]
        assert all(torch.equal(made.state_dict()[n], before[n]) == (name not in used) for n in norms)
    owned = {id(p) for p in made.shared_parameters()} | {id(p) for t in made.tasks for p in made.parameters_of(t)}
    assert owned == {id(p) for p in made.parameters()}


def test_an_extracted_network_is_fitted_and_evaluated_like_any_other() -> None:
    made = network()
    x = images(12, 64)
    data = pt.Examples(x, {"size": x.mean((1, 2, 3)), "mask": (x[:, 0] > 0).float()})
    small: Any = made.extract(drawn(made, 1)[0], ["size", "mask"])
    pt.fit(small, data, steps=4, batch_size=16)
    found = pt.evaluate(small, data)
    assert set(found) == {"size", "mask"} and 0 <= found["mask"]["f1"] <= 1
    assert small.predict(x, ["mask"])["mask"].shape == (64, 1, 6, 6)
    with pytest.raises(InputError, match="unknown task 'masks': did you mean 'mask'"):
        small(x, tasks=["masks"])


def test_the_space_at_the_papers_scale() -> None:
    with torch.device("meta"):
        made = MultiPath(TASKS, FBNETV3_PATHS)
    genes = made.space.genes
    blocks = [name for name in genes if "to" not in name]
    assert len(blocks) == 2 + 3 * 4 * 2 and len(genes) - len(blocks) == 3 + 3 * 12
    shapes = [made.parts[f"m1_{path}_0"].body.project[0].weight.shape[0] for path in range(4)]  # type: ignore[union-attr]
    assert shapes == [24, 40, 120, 184]
    assert len(Distributions(made.space, list(made.tasks)).most_probable()) == 3


# The claims, small


def test_the_table_and_its_regret() -> None:
    table = table_claim.Table(folder_with(table_claim.FILES))
    assert len(table.cells) == 15_625
    assert table.optima["cifar100"] == 71.63
    for task, goal in table.goals.items():
        feasible = [cell for cell in table.cells.values() if goal.fits(cell)]
        assert 0.29 < len(feasible) / 15_625 < 0.45  # many are as fast as one another
        assert table.optima[task] >= max(cell[goal.quality] for cell in feasible)
    best = max(table.cells, key=lambda arch: table.reward("cifar100", table.cells[arch]))
    assert table.regret("cifar100", dict(enumerate(best))) == 0  # type: ignore[arg-type]


def test_search_among_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(table_claim.FILES)
    monkeypatch.setattr(table_claim, "BUDGET", 60)
    found = table_claim.measure_cells(0, folder)
    assert found == table_claim.measure_cells(0, folder)
    assert all(value >= 0 for value in found.values())
    mean = np.mean([found[f"cells joint {task} best"] for task in table_claim.DEVICES])
    assert found["cells joint best"] == pytest.approx(mean)
    assert found["cells random"] == found["cells random best"]


def test_control_arms_are_what_they_say() -> None:
    goals = ["x", "y"]
    rows = table_claim.EDGES.sample(12, np.random.default_rng(0))
    rewards = np.stack([rows[:, 0], -rows[:, 0]], 1).astype(float)
    unweighed = table_claim.Unweighed(Distributions(table_claim.EDGES, goals))
    joint = table_claim.Joint(Distributions(table_claim.EDGES, goals))
    for _ in range(3):
        unweighed.update(rows, rewards)
        joint.update(rows, rewards)
    assert torch.equal(joint.distributions.logits[0], joint.distributions.logits[1])
    assert joint.distributions.logits.abs().max() < 1e-5  # opposite rewards
    assert (unweighed.ratios(rows) == 1).all()
    assert not torch.equal(unweighed.distributions.logits[0], unweighed.distributions.logits[1])


def test_random_networks_cost_as_much_and_are_others() -> None:
    made = claim.network(TASKS)
    costs = Costs(made, torch.empty(1, 1, 28, 28))
    for configuration in drawn(made, 3):
        others = claim.alike(costs, "size", configuration, np.random.default_rng(0))
        parts = {tuple(made.used(each)[0]) for each in (configuration, *others)}
        assert len(others) == 5 and len(parts) == 6
        share = [costs(each)["size macs"] / costs(configuration)["size macs"] for each in others]
        assert share == pytest.approx([1.0] * 5, abs=0.2)
    some = claim.alike(costs, "size", configuration, np.random.default_rng(1))
    assert some != others  # at random


@pytest.mark.soak
def test_a_tiny_run_measures_all_that_the_claims_and_the_plot_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = folder_with([*claim.FILES, *table_claim.FILES])
    for name, value in {"STEPS": 40, "WARM_UP": 16, "RETRAINED": 3, "TRAIN": 300, "HELD_OUT": 128, "TEST": 100}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "RANDOM", 1)
    monkeypatch.setattr(table_claim, "BUDGET", 45)
    parts = claim.measure_digits(0, folder), table_claim.measure_cells(0, folder)
    assert not set(parts[0]) & set(parts[1])  # the measurements of a seed are kept and drawn together
    found = {**parts[0], **parts[1]}
    assert found["whole macs"] == 1 and found["one run macs"] <= claim.SHARE
    for task in claim.TASKS:
        assert found[f"random {task} macs"] == pytest.approx(found[f"one run {task} macs"], rel=0.2)
    measured = {0: found, 1: {name: value + 0.1 * len(name) for name, value in found.items()}}
    assert all(stated.judge(measured) for stated in PAPER.claims)
    assert PAPER.plot is not None
    PAPER.plot(measured).savefig(tmp_path / "picture.png")
