"""TALL-masks: what the paper's package adds to the masks themselves (tests/merge has their closed forms)."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with

from polytask.data.examples import Examples
from polytask.merge import TIES, Consensus, TaskArithmetic, TaskMasks, best_scales, merge_state_dicts
from polytask.merge.task_masks import Bytes
from polytask.paper import Scale
from polytask.papers._experts import Experts, Split, added, glyphs
from polytask.papers.tall_masks import PAPER, comparison, magnitude_masks, study
from polytask.papers.tall_masks import glyphs as claim
from polytask.papers.tall_masks.comparison import bytes_on_disk, masked_models, tall_masks, ties_vector


def made(tasks: int = 4, moved: float = 0.3) -> Experts:
    """Experts that label by their own weights, which are apart from the base's: each is right on its own task."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    encoder = glyphs.Encoder((16, 12, 8)).requires_grad_(False).eval()
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    names = [f"task {index}" for index in range(tasks)]
    heads = {task: torch.nn.Linear(8, 3).requires_grad_(False) for task in names}
    experts = {
        task: {name: theta + moved * torch.randn(theta.shape, generator=generator) for name, theta in base.items()}
        for task in names
    }
    data = {}
    for task in names:
        parts = []
        for size in (1, 40, 60):
            inputs = torch.randn(size, 1, 4, 4, generator=generator)
            logits = heads[task](torch.func.functional_call(encoder, experts[task], (inputs,)))
            parts.append(Examples(inputs, {task: logits.argmax(1)}))
        data[task] = Split(3, *parts)
    return Experts(encoder, heads, base, experts, data)


def test_magnitude_masks_hold_the_largest_changes_of_the_whole_model() -> None:
    experts = made()
    masks = TaskMasks.build(experts.base, experts.experts)
    densities = {task: masks.density(task) for task in experts.tasks}
    found = magnitude_masks(masks, experts.experts, densities)
    for task, vector in zip(experts.tasks, experts.vectors, strict=True):
        assert found.density(task) == densities[task]
        held = torch.cat([vector[name].abs()[found.mask(task, name)] for name in vector])
        left = torch.cat([vector[name].abs()[~found.mask(task, name)] for name in vector])
        assert held.min() >= left.max() and 0 < len(held) < len(held) + len(left)
        for name, theta in found.weights(task).items():
            assert torch.equal(
                theta, torch.where(found.mask(task, name), experts.base[name] + masks.vector[name], experts.base[name])
            )


def test_the_vector_of_ties_is_what_the_rule_adds_to_the_base() -> None:
    experts = made()
    for merge_by in ("sum", "mean"):
        plain = merge_state_dicts(TIES(scale=0.6, merge_by=merge_by), experts.models, experts.base)  # type: ignore[arg-type]
        for name, theta in added(experts.base, ties_vector(experts, merge_by), 0.6).items():
            torch.testing.assert_close(theta, plain[name])


def test_files_have_the_papers_ratio_of_bytes(tmp_path: Path) -> None:
    """(2 * 32 + T) / (32 * (T + 1)), but for the headers and what is left of a tensor's last byte."""
    experts = made(tasks=5)
    wide = {name: theta.repeat(*([40] * theta.ndim)) for name, theta in experts.base.items()}
    large = Experts(experts.encoder, {}, wide, dict.fromkeys(experts.tasks, wide), {})
    found = bytes_on_disk(TaskMasks.build(wide, large.experts), large)
    assert found == pytest.approx((2 * 32 + 5) / (32 * 6), rel=2e-3)


@pytest.mark.parametrize("scale", PAPER.scales, ids=lambda scale: scale.name)
def test_bytes_at_paper_scale(scale: Scale) -> None:
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in scale.build().parameters()]
    assert Bytes.of(sizes, tasks=20).ratio == pytest.approx(0.125, rel=1e-6)
    assert Bytes.of(sizes, tasks=8).ratio == pytest.approx((2 * 32 + 8) / (32 * 9), rel=1e-6)
    assert Bytes.of(sizes, tasks=20).separate == 21 * 4 * scale.parameters  # 28.8 GB for ViT-L/14


@pytest.mark.parametrize(("text", "width", "layers", "patch", "shared"), [(512, 768, 12, 32, 512), (768, 1024, 24, 14, 768)])
def test_clip_counted_by_formula(text: int, width: int, layers: int, patch: int, shared: int) -> None:
    block = 12 * width**2 + 13 * width  # attention 4 w^2 + 4 w, MLP 8 w^2 + 5 w, two normalisations 4 w
    positions = (224 // patch) ** 2 + 1
    vision = layers * block + 3 * patch**2 * width + width + positions * width + 4 * width
    words = (49408 + 77) * text + 2 * text + text * shared
    total = vision + width * shared + words + 1
    assert {12: 87_456_000, 24: 303_179_776}[layers] == vision
    assert total == next(scale.parameters for scale in PAPER.scales if f"/{patch}" in scale.name)


# The claims' protocol.


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    return study(made())


def test_a_study_has_what_the_claims_compare(measured: dict[str, float]) -> None:
    assert all(value == value for value in measured.values())
    names = {*measured, *(f"text {name}" for name in masked_models(made(), tall_masks(made())))}
    for one in PAPER.claims:
        assert set(one.pair) <= names
    assert measured["individual"] == measured["individual mean"] == 100  # the labels are the experts' own
    assert measured["base"] == measured["base mean"] < 90
    for start in ("used by", "ties used by"):
        assert sum(measured[f"{start} {count}"] for count in range(5)) == pytest.approx(100)
    assert 31 < measured["bytes"] < 100


def test_what_is_reported_is_the_rules_own_model(measured: dict[str, float]) -> None:
    experts = made()
    found = TaskArithmetic(measured["task arithmetic scale"])
    assert measured["task arithmetic"] == pytest.approx(experts.mean(merge_state_dicts(found, experts.models, experts.base)))
    assert (measured["k = 0"], measured["k = 2"]) == (measured["task arithmetic"], measured["consensus"])
    scales = best_scales(experts.base, experts.experts, lambda task, w: experts.accuracy(w, task, "validation"))
    one = Consensus(2, list(scales.values()), measured["consensus scale"])
    assert measured["consensus"] == pytest.approx(experts.mean(merge_state_dicts(one, experts.models, experts.base)))
    masks = TaskMasks.build(experts.base, experts.experts, scales)
    own = [experts.accuracy(masks.weights(task), task) for task in experts.tasks]
    assert measured["tall"] == pytest.approx(sum(own) / len(own))


def test_test_data_chooses_nothing(measured: dict[str, float]) -> None:
    """With other test labels all that was chosen is the same; with other validation labels it is not."""

    def shifted(part: str) -> dict[str, float]:
        experts = made()
        for task, split in experts.data.items():
            labels = getattr(split, part).targets[task]
            labels[::2] = (labels[::2] + 1) % 3
        return study(experts)

    def chosen(found: Mapping[str, float]) -> dict[str, float]:
        return {
            name: value for name, value in found.items() if name.endswith("scale") or "used by" in name or name == "density"
        }

    other = shifted("test")
    assert chosen(other) == chosen(measured) and other["tall mean"] != measured["tall mean"]
    assert chosen(shifted("validation")) != chosen(measured)


@pytest.mark.soak
def test_a_seed_on_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(claim.FILES)
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "SIZES", {"train": 300, "validation": 50, "test": 100})
    monkeypatch.setitem(glyphs.BASE, "epochs", 2)
    monkeypatch.setitem(glyphs.TUNING, "epochs", 2)
    monkeypatch.setattr(comparison, "ALPHAS", (0.2,))
    found = claim.measure(0, folder)
    assert found["base"] < found["individual"] == 100
    assert found["bytes"] == pytest.approx(100 * (2 * 32 + 6) / (32 * 7), rel=5e-3)
    figure = claim.plot({0: found, 1: found})
    assert len(figure.axes) == 3
