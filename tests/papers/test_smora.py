"""SMoRA: what its language models count, who uses which rank, and six tasks that contradict one another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn

import polytask as pt
from polytask.data.examples import Examples
from polytask.papers._experts.glyphs import Encoder
from polytask.papers.smora import PAPER, active_parameters, glyphs, rank_use
from polytask.papers.smora.glyphs import ACTIVE, METHODS, RANK, SOURCES, TASKS, WIDTHS, Told
from polytask.papers.smora.llama import LLAMA, QWEN, llama, qwen
from polytask.papers.smora.picture import LINES, ROWS, plot
from polytask.share import HydraLoRA, LoRA, MoELoRA, SMoRA, insert, parts_of

# Language models


def counted(model: nn.Module) -> tuple[int, int, int]:
    """Parameters of factors and of routers, and the steps of biases."""
    parts: Any = list(parts_of(model))
    factors = sum(part.a.numel() + part.b.numel() for part in parts)
    routers = sum(part.router.weight.numel() for part in parts)
    return factors, routers, sum(part.router.steps.numel() for part in parts)


def test_llama_2_7b_has_its_counts() -> None:
    with torch.device("meta"):
        model = llama("7B")
    assert counted(model) == (159_907_840, 72_876_032, 14_336)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 232_783_872
    assert all(".task_parts.smora." in name for name in trained)
    assert active_parameters(model) == 19_988_480 + 72_876_032
    assert all(part.scaling == 2.0 for part in parts_of(model))  # type: ignore[attr-defined]
    assert not any(name.startswith("lm_head.task_parts") for name in model.state_dict())


@pytest.mark.parametrize(
    ("build", "config"), [(lambda: llama("13B"), LLAMA["13B"]), (qwen, QWEN)], ids=["Llama-2-13B", "Qwen2.5-7B"]
)
def test_others_have_those_of_the_formula(build: Any, config: dict[str, int]) -> None:
    with torch.device("meta"):
        factors, routers, steps = counted(build())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    keys = width // heads * config.get("num_key_value_heads", heads)
    assert factors == 64 * layers * (2 * 2 * width + 2 * (width + keys) + 3 * (width + inner))
    assert routers == 64 * layers * (6 * width + inner)
    assert steps == 64 * 7 * layers


# Who uses which rank


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("method", "experts", "chosen"),
    [(SMoRA(12, 4), 12, 4), (SMoRA(12, 6, partition=3), 4, 2), (MoELoRA(5, 2, 2), 5, 2), (HydraLoRA(3, 2), 3, 3)],
)
def test_use_is_what_tokens_choose(method: Any, experts: int, chosen: int) -> None:
    model = network()
    parts: Any = insert(model, method, ["all"]).parts
    x = torch.randn(2, 7, 6)
    with rank_use(model) as use:
        model(x[:1])
        model(x[1:])
    assert list(use) == ["0", "2"]
    scores = x.view(14, 6) @ parts["0"].router.weight.T  # sigmoid and softmax keep the order
    wanted = torch.zeros(14, experts).scatter_(1, scores.topk(chosen, 1).indices, 1).sum(0)
    assert torch.equal(use["0"], wanted.long()) and use["2"].sum() == 14 * chosen
    before = {place: counts.clone() for place, counts in use.items()}
    model(x)
    assert all(torch.equal(counts, before[place]) for place, counts in use.items())


def test_what_a_token_costs() -> None:
    """Of all factors those of chosen experts, and whole routers; a factor that all share is always used."""
    for method, wanted in (
        (SMoRA(12, 4), 4 * (6 + 8) + 4 * (8 + 5) + 12 * (6 + 8)),
        (SMoRA(12, 6, partition=3), 6 * (6 + 8) + 6 * (8 + 5) + 4 * (6 + 8)),
        (SMoRA(12, 12, partition=12), 12 * (6 + 8) + 12 * (8 + 5) + 6 + 8),
        (MoELoRA(5, 2, 2), 4 * (6 + 8) + 4 * (8 + 5) + 5 * (6 + 8)),
        (HydraLoRA(3, 2), 2 * (6 + 3 * 8) + 2 * (8 + 3 * 5) + 3 * (6 + 8)),
    ):
        model = network()
        insert(model, method, ["all"])
        assert active_parameters(model) == wanted


def test_nothing_is_counted_where_nothing_chooses() -> None:
    model = network()
    with rank_use(model) as use:
        model(torch.randn(3, 6))
    assert use == {} and active_parameters(model) == 0


# The comparison


def told(method: Any) -> pt.Model:
    torch.manual_seed(0)
    model = pt.Model(Told(Encoder(WIDTHS)), [pt.Task.classification("label", classes=10)], method)
    return model.eval()


def made_up(size: int = 96) -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.rand(size, 196, generator=generator), "task": torch.arange(size) % len(TASKS)}
    return Examples(inputs, {"label": torch.arange(size) % 10})


def test_methods_are_compared_at_equal_ranks() -> None:
    """As many active, and in all, of factors; and what the same network gives is at first the same for each."""
    per_rank = sum(before + after for before, after in itertools.pairwise(WIDTHS))
    outputs = []
    for name, method in METHODS.items():
        model = told(method)
        with pt.task_scope("label"):
            outputs.append(model.encoder(made_up().inputs))
        if isinstance(method, LoRA):
            assert model.inserted is not None and model.inserted.count()["inserted"] == method.rank * per_rank
            assert method.rank == (ACTIVE if name == "lora 4" else RANK) and method.scaling == 2
            continue
        parts: Any = list(parts_of(model))
        routers = sum(part.router.weight.numel() for part in parts)
        assert sum(part.a.numel() + part.b.numel() for part in parts) == RANK * per_rank
        assert active_parameters(model) - routers == ACTIVE * per_rank
        assert all(part.scaling == 2 for part in parts)
    for output in outputs:
        torch.testing.assert_close(output, outputs[0])


def test_the_task_is_told_by_a_vector_that_is_added() -> None:
    model, (inputs, _) = told(None), made_up()[:]
    assert isinstance(inputs, Mapping)
    encoder: Any = model.encoder
    rows = zip(inputs["x"], inputs["task"], strict=True)
    by_hand = torch.cat([encoder.pretrained((x + encoder.told.weight[task])[None]) for x, task in rows])
    torch.testing.assert_close(encoder(inputs), by_hand)
    assert not torch.equal(encoder({"x": inputs["x"][:1], "task": torch.tensor([0])}), encoder.pretrained(inputs["x"][:1]))


def test_only_what_is_inserted_and_the_tasks_vectors_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "STEPS", 2)
    torch.manual_seed(0)
    base = pt.Model(Encoder(WIDTHS), [pt.Task.classification("label", classes=10)])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found = glyphs.adapted(base, METHODS["smora"], made_up(), lr=1e-2, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    after = {name.replace(".pretrained", ""): tensor for name, tensor in found.state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    again = glyphs.adapted(base, METHODS["smora"], made_up(), lr=1e-2, seed=0)
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    trained = [name for name, parameter in found.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"told", "pretrained"}
    assert all(".task_parts." in name for name in trained if "pretrained" in name)


def test_loads_and_use_by_task() -> None:
    model, examples = told(METHODS["smora"]), made_up()
    load = glyphs.loads(model, examples)
    assert load.shape == (3, RANK)
    torch.testing.assert_close(load.mean(1), torch.ones(3).double())
    use = glyphs.use_by_task(model, examples)
    shares = torch.tensor(list(use.values())).view(len(TASKS), RANK).double()
    assert list(use)[RANK] == f"{TASKS[1]}/0" and ((shares >= 0) & (shares <= 1)).all()
    torch.testing.assert_close(shares.sum(1), torch.full((len(TASKS),), float(ACTIVE)).double())
    torch.testing.assert_close(shares.mean(0) * RANK / ACTIVE, load[-1])  # as many examples of each task


def test_a_picture_of_what_is_measured(tmp_path: Path) -> None:
    names = [*ROWS, *(f"{name} load {i}" for name in LINES for i in range(4))]
    names += [f"use {task}/{rank}" for task in TASKS for rank in range(4)]
    plot({seed: dict.fromkeys(names, 0.5 + seed) for seed in range(2)}).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def folder() -> Path:
    return folder_with(glyphs.FILES)


def test_tasks_have_the_same_images_and_other_labels(folder: Path) -> None:
    classes, conflicting = glyphs.parts(folder, 0)
    maps = {}
    for part, examples in conflicting.items():
        inputs, targets = examples[:]
        assert isinstance(inputs, Mapping)
        images, labels = classes[part][:]
        assert isinstance(images, torch.Tensor) and images.shape[1] == 196
        assert torch.equal(inputs["x"], torch.cat([images, images]))
        kinds = torch.cat([labels["label"]] * 2)
        for number in range(len(TASKS)):
            own = inputs["task"] == number
            pairs = set(zip(kinds[own].tolist(), targets["label"][own].tolist(), strict=True))
            assert len(pairs) == len({new for _, new in pairs}) == 10  # a permutation
            assert maps.setdefault(number, pairs) == pairs  # in all parts
            assert own.sum() == len(images) // len(SOURCES)
    for number in range(len(SOURCES)):
        assert maps[number] != maps[number + len(SOURCES)]


@pytest.mark.soak
def test_the_claims_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "STEPS", 3)
    monkeypatch.setattr(glyphs, "RATES", (1e-2,))
    monkeypatch.setattr(glyphs, "BASE", glyphs.BASE | {"epochs": 1})
    measured = glyphs.measure(0, folder)
    for claim in PAPER.claims:
        assert {claim.method, claim.baseline} <= set(measured)
    assert measured["base"] > 70
    assert all(isinstance(value, float) and value == value for value in measured.values())
    plot({0: measured})
