"""Multi-head adapter routing: the claims' tasks and protocol, and sizes (tests/share/test_mhr.py has closed forms)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn
from torch.nn import functional as F

from polytask import task_scope
from polytask.data.examples import Examples
from polytask.model import Losses
from polytask.papers._experts import Split
from polytask.papers._experts.glyphs import Encoder
from polytask.papers.mhr import MHR, NEW, PAPER, Polytropon, comparison, network, picture, questions, t5, transfer
from polytask.papers.mhr.network import Answering, adapted
from polytask.papers.mhr.questions import ANSWERS, COUNTS, SOURCES, seen
from polytask.share import insert

SIZES = {"train": 40, "validation": 8, "test": 30}
CLASSES = torch.tensor([[3, 1, 0, 2], [10, 12, 19, 11]])


@pytest.fixture
def small() -> Answering:
    torch.manual_seed(0)
    return Answering(Encoder((16, 8, 8, 8)), nn.Linear(8, 20)).requires_grad_(False)


@pytest.fixture(scope="module")
def sets() -> dict[str, Split]:
    """Made-up glyphs; a pixel says which image it is, another its class."""
    made = {}
    for number, name in enumerate(SOURCES):
        parts = []
        for size in (200, 80, 80):
            images = torch.zeros(size, 1, 16, 16)
            images[:, 0, 0, 1] = torch.arange(size) / size
            labels = torch.arange(size) % 10
            images[:, 0, 3, 5] = labels / 10
            images[:, 0, 7, 7] = number / 4
            parts.append(Examples(images, {"class": labels + 10 * (name == "notmnist")}))
        made[name] = Split(20, *parts)
    return made


# Tasks


def test_the_ways_of_seeing_differ_and_lose_nothing() -> None:
    images = torch.rand(2, 1, 6, 6)
    ways = [seen(images, way) for way in range(8)]
    assert torch.equal(ways[0], images)
    assert all(not torch.equal(ways[i], ways[j]) for i in range(8) for j in range(i))
    for found in ways:
        torch.testing.assert_close(found.flatten().sort()[0], images.flatten().sort()[0])
    torch.testing.assert_close(ways[2].flip(-1, -2), images)
    torch.testing.assert_close(seen(ways[4], 4), images)


def test_tasks_of_one_set_and_way_have_no_class_in_common(sets: dict[str, Split]) -> None:
    made = questions.questions(sets, 5, SIZES)
    assert {kind: len(found.names) for kind, found in made.items()} == COUNTS
    names = [name for found in made.values() for name in found.names]
    assert len(set(names)) == 48
    classes = torch.cat([found.classes for found in made.values()]).tolist()
    taken = [(name.split(":")[0], one) for name, four in zip(names, classes, strict=True) for one in four]
    assert len(set(taken)) == 48 * 4 and len({pair for pair, _ in taken}) == 24
    for found in made.values():
        for number, (name, classes) in enumerate(zip(found.names, found.classes, strict=True)):
            letters = name.startswith("notmnist")
            assert len(set(classes.tolist())) == ANSWERS and bool(((classes >= 10) == letters).all())
            inputs, targets = found.train[:]
            rows = inputs["task"] == number  # type: ignore[call-overload]
            assert int(rows.sum()) == 40
            way = int(name.split(":")[0].split()[1])
            back = inputs["images"][rows].rot90(-(way & 3), (-2, -1))  # type: ignore[call-overload]
            back = back.flip(-1) if way & 4 else back
            labels = (10 * back[:, 0, 3, 5]).round().long() + 10 * letters
            assert torch.equal(classes[targets["answer"][rows]], labels)
    again = questions.questions(sets, 5, SIZES)["test"]
    assert again.names == made["test"].names and torch.equal(again.classes, made["test"].classes)
    assert questions.questions(sets, 6, SIZES)["test"].names != again.names


# The network


def test_answers_are_the_logits_of_a_tasks_classes_and_losses_are_means_by_task(small: Answering) -> None:
    net, inserted = adapted(small, MHR(skills=3, heads=2), ["one", "two"], CLASSES)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    inputs = {"images": torch.rand(5, 1, 4, 4), "task": torch.tensor([1, 0, 1, 1, 0])}
    answer = torch.tensor([0, 3, 2, 1, 1])
    assert isinstance(net, Losses)
    losses = net.losses((inputs, {"answer": answer}))
    for number, task in enumerate(("one", "two")):
        rows = inputs["task"] == number
        with task_scope(task):
            named = net(inputs["images"][rows])
        torch.testing.assert_close(losses[task], F.cross_entropy(named[:, CLASSES[number]], answer[rows]))
    alone = {name: tensor[:1] for name, tensor in inputs.items()}
    assert list(net.losses((alone, {"answer": answer[:1]}))) == ["two"]
    own = set(net.shared_parameters())
    assert own == set(inserted.shared_parameters()) and len(own) == 6
    assert not any(p.requires_grad for name, p in net.named_parameters() if "task_parts" not in name)
    assert list(inserted.parts) == ["encoder.1", "encoder.3", "encoder.5"]
    assert not any("task_parts" in name for name, _ in small.named_parameters())


# Transfer


@pytest.mark.parametrize("trained", [("*.logits.new", "*.a", "*.b"), ("*.logits.new",)])
def test_tasks_are_learned_as_if_each_were_alone(small: Answering, trained: tuple[str, ...]) -> None:
    net, inserted = adapted(small, MHR(skills=3, heads=2), ["one"], CLASSES[:1])
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    inserted.add_tasks([NEW]).freeze(*trained)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images, answers = torch.rand(2, 6, 1, 4, 4), torch.randint(4, (2, 6))
    rates = {"*.logits.*": 0.1, "*": 1e-2}
    ask = transfer(net, images, CLASSES, answers, rates, steps=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    more = torch.rand(2, 9, 1, 4, 4)
    together = ask(more)
    for number in range(2):
        net.load_state_dict(before)
        named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        assert len(named) == (9 if len(trained) == 3 else 3)
        optimizer = torch.optim.Adam([{"params": [p], "lr": 0.1 if ".logits." in name else 1e-2} for name, p in named])
        for _ in range(5):
            optimizer.zero_grad()
            with task_scope(NEW):
                F.cross_entropy(net(images[number])[:, CLASSES[number]], answers[number]).backward()
            optimizer.step()
        with task_scope(NEW), torch.no_grad():
            alone = net(more[number])[:, CLASSES[number]]
        torch.testing.assert_close(together[number], alone, atol=1e-3, rtol=1e-3)
        assert not torch.allclose(together[number], ask(more)[1 - number], atol=1e-2)


def test_no_steps_leave_what_was_trained(small: Answering) -> None:
    net, inserted = adapted(small, Polytropon(skills=3), [NEW], CLASSES)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    x = torch.rand(2, 3, 1, 4, 4)
    ask = transfer(net, x, CLASSES, torch.zeros(2, 3, dtype=torch.long), {"*": 1.0}, steps=0)
    with task_scope(NEW):
        torch.testing.assert_close(ask(x)[1], net(x[1])[:, CLASSES[1]])


# The claims' protocol


def test_alignment_is_the_mean_cosine_of_two_tasks(sets: dict[str, Split]) -> None:
    torch.manual_seed(0)
    tasks = questions.questions(sets, 0, SIZES | {"train": comparison.LOOK})["validation"]
    start = Answering(Encoder((256, 8, 8)), nn.Linear(8, 20)).requires_grad_(False)
    net, inserted = adapted(start, MHR(skills=2, heads=2), tasks.names, tasks.classes)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    gradients = []
    for loss in net.losses(tasks.train[:]).values():
        found = torch.autograd.grad(loss, list(net.shared_parameters()), retain_graph=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    pairs = [float(F.cosine_similarity(a, b, dim=0)) for i, a in enumerate(gradients) for b in gradients[:i]]
    assert comparison._alignment(net, tasks) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_a_rate_is_chosen_by_the_first_tasks_and_the_others_are_reported(small: Answering) -> None:
    net, _ = adapted(small, MHR(skills=1, heads=1), [NEW], CLASSES)
    images = torch.rand(1, 16, 1, 4, 4)
    with task_scope(NEW), torch.no_grad():
        said = net(images[0])[:, CLASSES].argmax(2)
    few = [(images, (said[None, :, k] + 1) % 4, CLASSES[k : k + 1]) for k in range(2)]  # to learn what it does not say yet
    learned = [[(images[0], (said[:, k] + 1) % 4)] for k in range(2)]
    first, second = ((*few[k], learned[k]) for k in range(2))
    rates, steps = (0.0, 3e-2), 60
    found = comparison._learned("name", net, [first, second], rates=rates, steps=steps)
    assert found["name"] > 60 and found["name numbers"] == sum(p.numel() for p in net.parameters() if p.requires_grad)
    kept = (*few[0], [(images[0], said[:, 0])])  # by what the network said before it is best to learn nothing
    assert comparison._learned("name", net, [kept, second], rates=rates, steps=steps)["name"] == 0


@pytest.fixture
def folder() -> Path:
    return folder_with(questions.FILES)


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (comparison, "SIZES", {"train": 40, "validation": 10, "test": 20}),
        (comparison, "STEPS", 8),
        (comparison, "RATES", (1e-2,)),
        (comparison, "LOOK", 2),
        (comparison, "TRANSFER_STEPS", 3),
        (comparison, "TRANSFER_RATES", (1e-3, 1e-2)),
        (comparison, "ROUTING_RATES", (0.1,)),
        (network, "BASE_STEPS", 60),
    ):
        monkeypatch.setattr(module, name, value)
    measured = comparison.measure(0, folder)
    assert all(math.isfinite(value) for value in measured.values())
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(measured)
    counts = {"lora": 1088, "lora-big": 8 * 1088, "poly": 8 * 1088 + 24, "poly-z": 24, "poly-mu": 1088}
    counts |= {"mhr": 8 * 1088 + 384, "mhr-z": 384, "mhr-mu": 1088, "random": 1088}
    assert {name: measured[f"{name} numbers"] for name in counts} == counts
    assert measured["mhr cosine"] == pytest.approx(sum(measured[f"mhr cosine {step}"] for step in (2, 4, 6, 8)) / 4)
    assert len(picture.plot({0: measured, 1: measured}).axes) == 2


# The paper's size


def test_what_is_inserted_into_t5_xl() -> None:
    """Every matrix of self-attention, cross-attention and feed-forward blocks, in 24 layers on each side."""
    with torch.device("meta"):
        inserted = insert(t5.t5_xl(), MHR(skills=8, heads=64, rank=1), ["one", "two"])
    last = [place.rsplit(".", 1)[1] for place in inserted.parts]
    assert {name: last.count(name) for name in sorted(set(last))} == {
        "k": 72, "o": 72, "q": 72, "v": 72, "wi_0": 48, "wi_1": 48, "wo": 48,
    }  # fmt: skip
    layers = 288 * (2048 + 2048) + 144 * (2048 + 5120)
    counts = inserted.count()
    assert counts["shared"] == 8 * layers == 17_694_720
    assert counts["task one"] == 432 * 512 == 221_184
    assert counts["base"] == PAPER.scales[0].parameters
