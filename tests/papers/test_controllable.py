"""Controllable architectures: what the paper's package adds to slimmable networks, whose own tests have the closed forms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn

import polytask as pt
from polytask.papers._camvid import FILES, boundary
from polytask.papers.controllable import PAPER, Conditioned, scenes, stand_alone
from polytask.papers.controllable.control import assignments, control, preferences
from polytask.papers.controllable.models import scenes_decoder, scenes_encoder, scenes_supernet
from polytask.papers.controllable.picture import plot
from polytask.papers.controllable.resnet import at_scale, resnet18
from polytask.papers.controllable.values import Table, Unit, covered, mean
from polytask.share.slimmable import WIDTHS, Configuration, Costs, Supernet, macs

TASKS = [
    pt.Task.segmentation("classes", classes=11),
    pt.Task.pixel_binary("boundary"),
    pt.Task.pixel_regression("chroma", outputs=2, robust="mae", scale="standard", metric="mae"),
]


@pytest.fixture(scope="module")
def frames() -> pt.DataSet:
    """A few made-up frames with CamVid's tasks."""
    generator = torch.Generator().manual_seed(0)

    def part(size: int) -> pt.Examples:
        x = torch.randn(size, 1, 24, 32, generator=generator)
        classes = (2 * x[:, 0]).round().long().clamp(0, 10)
        return pt.Examples(x, {"classes": classes, "boundary": boundary(classes), "chroma": torch.cat([20 * x, -9 * x], 1)})

    return pt.DataSet("frames", TASKS, part(16), part(6), part(6), encoder=nn.Identity)


@pytest.fixture(scope="module")
def supernet(frames: pt.DataSet) -> Supernet:
    return scenes_supernet(frames.tasks, 0)


def test_a_configuration_becomes_a_model(supernet: Supernet, frames: pt.DataSet) -> None:
    chosen = Configuration(0.5, {"classes": 1.0, "boundary": 0.25, "chroma": 0.75})
    model, (x, targets) = stand_alone(supernet, chosen), frames.test[:]
    assert not model.training and not any(type(part).__name__.startswith("Slim") for part in model.modules())
    torch.testing.assert_close(model(x), supernet(x, chosen))
    torch.testing.assert_close(
        model.losses((x, targets))["chroma"], frames.tasks[2].loss(supernet(x, chosen)["chroma"], targets["chroma"])
    )
    assert {name: tuple(output.shape) for name, output in model(x).items()} == {
        "classes": (6, 11, 24, 32),
        "boundary": (6, 1, 24, 32),
        "chroma": (6, 2, 24, 32),
    }
    assert list(pt.evaluate(model, frames.test)) == ["classes", "boundary", "chroma"]


def test_batch_norms_of_what_is_cut_out_are_measured() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1))
    decoder = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 1, 1))
    supernet = Supernet(encoder, {"boundary": decoder}, TASKS[1:2], batch_norm="recalibrated")
    chosen, x = Configuration(0.25, {"boundary": 1.0}), 3 + 2 * torch.randn(40, 1, 9, 9)
    expected = supernet(x, chosen)["boundary"]  # by the statistics of this batch
    torch.testing.assert_close(stand_alone(supernet, chosen, [x])(x)["boundary"], expected, rtol=0.01, atol=0.01)
    assert not torch.allclose(stand_alone(supernet, chosen)(x)["boundary"], expected, atol=0.1)


def test_a_conditioned_network_starts_as_the_plain_one_and_answers_to_preferences(frames: pt.DataSet) -> None:
    supernet = scenes_supernet(frames.tasks, 1)
    told, x = Conditioned(stand_alone(supernet, supernet.largest)), frames.test[:][0]
    torch.testing.assert_close(told.at({"classes": 1, "boundary": 0, "chroma": 0})(x), supernet(x))
    losses = told.eval().losses(frames.test[:])
    plain = stand_alone(supernet, supernet.largest).losses(frames.test[:])
    torch.testing.assert_close(losses, plain)  # the even preference, times the number of tasks
    torch.manual_seed(0)
    drawn = told.train().losses(frames.test[:])
    shares = torch.stack([drawn[name] / plain[name] for name in plain])
    assert float(shares.sum()) == pytest.approx(3, rel=1e-4) and float(shares.std()) > 0.1
    pt.fit(told, frames.train, steps=3, batch_size=8, lr=1e-2)
    one, other = (told.at(dict(zip(told.tasks, p, strict=True)))(x) for p in ((1, 0, 0), (0, 0, 5)))
    assert all(not torch.equal(one[name], other[name]) for name in one)
    parts = {id(p) for p in told.shared_parameters()} | {
        id(p) for head in told.model.heads.values() for p in head.parameters()
    }
    assert {id(p) for p in told.parameters()} == parts


def test_preferences_are_all_subsets_and_assignments_all_orders() -> None:
    found = list(preferences(("a", "b", "c")))
    assert len(found) == 7 and all(sum(p.values()) == pytest.approx(1) for p in found)
    assert found[1] == {"a": 0.0, "b": 1.0, "c": 0.0} and found[-1] == dict.fromkeys("abc", 1 / 3)
    given = assignments({"a": 1.0, "b": 0.25, "c": 0.25})
    assert len(given) == 6 and sum(g["a"] for g in given) / 6 == 0.5


def test_values_are_shares_of_the_reference_and_skills_lie_between_a_constant_and_it(
    supernet: Supernet, frames: pt.DataSet
) -> None:
    reference = stand_alone(supernet, supernet.largest)
    unit = Unit(frames, reference)
    assert unit.values(reference, "validation") == pytest.approx(dict.fromkeys(supernet.tasks, 100.0))
    assert unit.skills(reference, "test") == pytest.approx(dict.fromkeys(supernet.tasks, 1.0))
    metrics = unit.metrics(reference, "test")
    whole = pt.evaluate(reference, frames.test)
    assert metrics == pytest.approx({name: whole[name][unit.tasks[name].metric] for name in metrics})
    half = unit.relative({"classes": metrics["classes"] / 2, "chroma": 2 * metrics["chroma"]}, "test")
    assert half == pytest.approx({"classes": 50.0, "chroma": 50.0})
    assert unit.skill(unit.constant) == pytest.approx(dict.fromkeys(supernet.tasks, 0.0))


def test_a_table_has_the_metrics_of_every_configuration(supernet: Supernet, frames: pt.DataSet) -> None:
    unit = Unit(frames, stand_alone(supernet, supernet.largest))
    table = Table(supernet, unit, "test")
    for widths in ((0.25, 1.0, 0.5), (1.0, 0.25, 0.25)):
        chosen = Configuration(0.5, dict(zip(supernet.tasks, widths, strict=True)))
        assert table(chosen) == pytest.approx(unit.values(stand_alone(supernet, chosen), "test"), rel=1e-4)
        assert table.skills(chosen) == pytest.approx(unit.skills(stand_alone(supernet, chosen), "test"), rel=1e-3, abs=1e-3)
    assert covered([{"a": 0.5, "b": 1.0}, {"a": -0.5, "b": 9.0}]) == pytest.approx(0.5)
    assert mean({"a": 1.0, "b": 2.0}) == mean([1.0, 2.0]) == 1.5


class Known(Table):
    """A table in which a value is the width of the task's decoder, and a tenth of the encoder's."""

    def __init__(self) -> None:
        self.asked: list[Configuration] = []

    def __call__(self, configuration: Configuration) -> dict[str, float]:
        self.asked.append(configuration)
        return {name: width + 0.1 * configuration.encoder for name, width in configuration.decoders.items()}  # type: ignore

    def skills(self, configuration: Configuration) -> dict[str, float]:
        return self(configuration)


def test_control_is_what_decoders_do_for_the_preferred_task(supernet: Supernet) -> None:
    costs = Costs(supernet, torch.empty(1, 1, 24, 32))
    found = control(supernet, costs, Known(), Known())
    assert found["violations"] == 0
    for task in supernet.tasks:
        assert found[f"range {task}"] == pytest.approx(0.75)
        assert found[f"preferred {task}"] - found[f"random {task}"] == pytest.approx(0.5, abs=0.05)  # 1 less the mean width
    assert found["preferred"] == pytest.approx(mean([found[f"preferred {task}"] for task in supernet.tasks]))
    assert found["monotonicity"] > 0.9
    assert found["hypervolume"] >= found["static hypervolume"] > 0


def test_a_picture_of_what_is_measured(tmp_path: Path) -> None:
    names = [f"{side} {task}" for side in ("preferred", "not preferred", "random", "range") for task in ("a", "b")]
    names += [f"{kind} all {w}" for kind in ("separate", "plain", "outputs", "ci-kd") for w in ("0.5", "1")]
    names += ["cost 0.5", "cost 1", "hypervolume", "static hypervolume", "conditioned hypervolume"]
    plot({seed: dict.fromkeys(names, 1.0 + seed) for seed in range(2)}).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_resnet_18_has_its_parameters_and_its_operations() -> None:
    with torch.device("meta"):
        encoder = resnet18()
    assert sum(p.numel() for p in encoder[:-1].parameters()) == 11_176_512
    assert macs(encoder[:-1], torch.empty(1, 3, 224, 224)) == 1_813_561_344
    assert encoder(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, 256, 2, 3)


def test_at_the_papers_scale_operations_grow_with_the_square_of_the_width() -> None:
    with torch.device("meta"):
        supernet = at_scale()
    costs = Costs(supernet, torch.empty(1, 3, 480, 640))
    assert supernet.encoder.stages == 4 and list(supernet.tasks) == ["segmentation", "depth", "normals", "boundary"]
    for width in WIDTHS:
        # The stem and the projection grow with the width, all between them with its square.
        share = costs.encoder(width) / costs.encoder(1.0)
        assert width**2 <= share <= width**2 + 0.1 * width
        plain, _ = supernet.extract(Configuration(width, dict.fromkeys(supernet.tasks, width)))
        assert macs(plain, torch.empty(1, 3, 480, 640)) == costs.encoder(width)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = folder_with(FILES)
    real = scenes.camvid

    def few(data: Path, shrink: int) -> pt.DataSet:
        whole = real(data, shrink)
        parts: dict[str, Any] = {
            name: getattr(whole, name).subset(torch.arange(0, len(getattr(whole, name)), 25))
            for name in ("validation", "test")
        }
        return pt.DataSet("few", whole.tasks, whole.train.subset(torch.arange(0, 366, 11)), **parts, encoder=nn.Identity)

    monkeypatch.setattr(scenes, "camvid", few)
    monkeypatch.setattr(scenes, "EPOCHS", 1)
    return folder


@pytest.mark.soak
def test_the_claims_are_measured(short: Path) -> None:
    measured = scenes.measure(0, short)
    for claim in PAPER.claims:
        assert {claim.method, claim.baseline} <= set(measured)
    assert measured["separate all 1"] == pytest.approx(100)
    assert measured["cost 0.25"] < 0.15 * measured["cost 1"] and measured["violations"] == 0
    assert all(isinstance(value, float) and value == value for value in measured.values())
    plot({0: measured})


def test_the_networks_of_the_claims_are_what_they_say() -> None:
    encoder, x = scenes_encoder(), torch.zeros(2, 1, 24, 32)
    for task in TASKS:
        assert scenes_decoder(task)(encoder(x)).shape[2:] == (24, 32)
    one, other = scenes_supernet(TASKS, 3), scenes_supernet(TASKS, 3)
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(one.parameters(), other.parameters()))
