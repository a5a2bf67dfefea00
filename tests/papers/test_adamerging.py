"""AdaMerging: the claims' protocol, and coefficients at scale (tests/merge has the closed forms of the method)."""

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor
from torch.nn.functional import cross_entropy

from polytask.data.examples import Examples
from polytask.merge import TIES, TaskArithmetic, merge_state_dicts
from polytask.papers._experts import Experts, Split
from polytask.papers._experts.glyphs import Encoder
from polytask.papers.adamerging import PAPER, Coefficients, glyphs, protocol, trim_and_elect
from polytask.papers.adamerging.picture import plot

TASKS = ("one", "two", "three")


@pytest.fixture
def experts() -> Experts:
    """Three tasks of two classes, each with an expert that was made by hand: a few steps from a random base."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    encoder = Encoder((4, 8, 6))
    heads = {task: torch.nn.Linear(6, 2).requires_grad_(False) for task in TASKS}
    data, tuned = {}, {}
    for number, task in enumerate(TASKS):
        parts = []
        for size in (200, 64, 97):
            inputs = torch.randn(size, 1, 2, 2, generator=generator)
            labels = (inputs.flatten(1)[:, number] + 0.3 * inputs.flatten(1)[:, 3] > 0).long()
            parts.append(Examples(inputs, {task: labels}))
        data[task] = Split(2, *parts)
        one = Encoder((4, 8, 6))
        one.load_state_dict(encoder.state_dict())
        optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
        inputs, targets = parts[0][:]
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(heads[task](one(inputs)), targets[task]).backward()
            optimizer.step()
        tuned[task] = {name: tensor.detach().clone() for name, tensor in one.state_dict().items()}
    base = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    return Experts(encoder.eval().requires_grad_(False), heads, base, tuned, data)


def test_coefficients_at_scale() -> None:
    """8 task-wise; 8 for each tensor of the vision encoder layer-wise, and no memory for a model on the meta device."""
    for scale, tensors in zip(PAPER.scales, (199, 391), strict=True):
        with torch.device("meta"):
            model = scale.build()
        vectors = [dict(model.named_parameters())] * 8
        assert Coefficients(model, vectors, "task").raw.shape == (8, 1)
        assert Coefficients(model, vectors).raw.shape == (8, tensors)


def test_batches_are_of_the_rows_alone_without_labels_and_come_in_a_new_order(experts: Experts) -> None:
    test = experts.data["one"].test
    batches = protocol.Unlabelled(test, protocol.EVEN, seed=0)
    first, second = (torch.cat(list(batches)) for _ in range(2))  # type: ignore[arg-type]
    assert first.shape == (32, 1, 2, 2) and not torch.equal(first, second)  # 49 rows: one whole batch
    even = {tuple(row.flatten().tolist()) for row in test[protocol.EVEN][0]}
    odd = {tuple(row.flatten().tolist()) for row in test[protocol.ODD][0]}
    assert not even & odd and len(even | odd) == 97
    assert {tuple(row.flatten().tolist()) for row in torch.cat([first, second])} <= even
    again = protocol.Unlabelled(test, protocol.EVEN, seed=0)
    assert torch.equal(torch.cat(list(again)), first)  # type: ignore[arg-type]


def test_adaptation_uses_no_label_and_no_other_rows(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STEPS", 5)
    vectors = experts.vectors
    found = protocol.adapt(experts, vectors, "tensor", 0, rows=protocol.EVEN)
    for task in TASKS:
        inputs, targets = experts.part(task, "test")
        targets.copy_(1 - targets)
        assert isinstance(inputs, Tensor)
        inputs[protocol.ODD] = 9.0
    again = protocol.adapt(experts, vectors, "tensor", 0, rows=protocol.EVEN)
    assert torch.equal(found.raw, again.raw) and bool((found.raw != 0.3).any())
    inputs[protocol.EVEN] = torch.randn(49, 1, 2, 2)
    assert not torch.equal(found.raw, protocol.adapt(experts, vectors, "tensor", 0, rows=protocol.EVEN).raw)


def test_baselines_are_the_rules(experts: Experts) -> None:
    """Task arithmetic, TIES with sums, and the average are what `polytask.merge` makes of the models."""
    vectors = protocol.moved(experts.vectors)
    for rule, found in (
        (TaskArithmetic(0.3), protocol.arithmetic(experts.base, vectors, 0.3)),
        (TaskArithmetic(1 / 3), protocol.arithmetic(experts.base, vectors, 1 / 3)),
        (TIES(0.2, 0.3, merge_by="sum"), protocol.arithmetic(experts.base, trim_and_elect(vectors), 0.3)),
    ):
        merged = merge_state_dicts(rule, experts.models, experts.base)
        assert found.keys() == merged.keys()
        for name, tensor in merged.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_tensors_that_nobody_moves_have_no_coefficient(experts: Experts) -> None:
    for expert in experts.experts.values():
        expert["1.bias"] = experts.base["1.bias"]
    vectors = protocol.moved(experts.vectors)
    assert "1.bias" not in vectors[0] and len(vectors[0]) == len(experts.base) - 1
    assert torch.equal(protocol.arithmetic(experts.base, vectors, 0.3)["1.bias"], experts.base["1.bias"])


def test_validation_chooses_the_scale(experts: Experts) -> None:
    vectors = experts.vectors
    scores = [experts.mean(protocol.arithmetic(experts.base, vectors, s), "validation") for s in protocol.SCALES]
    assert protocol.best_scale(experts, vectors) == protocol.SCALES[scores.index(max(scores))]
    for task in TASKS:
        experts.part(task, "test")[1].fill_(0)
    assert protocol.best_scale(experts, vectors) == protocol.SCALES[scores.index(max(scores))]


def test_the_correlation_of_ranks(experts: Experts) -> None:
    """Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)) of the ranks."""
    each = []
    for task in TASKS:
        inputs, labels = experts.part(task, "test")
        logits = experts.logits(experts.base, task, inputs).double()
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        ranks = [values.argsort().argsort() for values in (entropies, cross_entropy(logits, labels, reduction="none"))]
        n = len(labels)
        each.append(1 - 6 * float((ranks[0] - ranks[1]).square().sum()) / (n * (n**2 - 1)))
    assert protocol.spearman(experts, experts.base) == pytest.approx(sum(each) / 3)


def test_a_comparison_measures_what_the_claims_compare(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STEPS", 10)
    measured = protocol.compare(experts, seed=0)
    assert protocol.compare(experts, seed=0) == measured
    glyph_only = {claim.name for claim in PAPER.claims if not set(claim.pair) <= set(measured)}
    assert glyph_only == {"noise"}
    assert measured["individual"] > 80 and measured["individual"] > measured["arithmetic"]
    assert measured["tuned"] == protocol.accuracy(
        experts, protocol.arithmetic(experts.base, experts.vectors, measured["scale"]), TASKS
    )
    names = [f"lambda {task}/{name}" for task in TASKS for name in experts.base]
    assert [name for name in measured if name.startswith("lambda")] == names
    assert all(0 <= measured[name] <= 1 for name in names) and any(measured[name] != pytest.approx(0.3) for name in names)
    figure = plot({0: measured, 1: measured})
    assert len(figure.axes) == 3  # with the colours' scale
    halves = [protocol.accuracy(experts, experts.base, TASKS, rows) for rows in (protocol.EVEN, protocol.ODD)]
    assert 49 * halves[0] + 48 * halves[1] == pytest.approx(97 * measured["base"])


def test_noise_is_on_test_images_alone(experts: Experts) -> None:
    noisy = glyphs.with_noise(experts, seed=0)
    for task in TASKS:
        images, labels = noisy.part(task, "test")
        assert isinstance(images, Tensor)
        assert torch.equal(labels, experts.part(task, "test")[1])
        assert float(images.min()) == 0 and float(images.max()) == 1
        assert not torch.equal(images, experts.part(task, "test")[0])
        assert noisy.data[task].validation is experts.data[task].validation
    assert torch.equal(noisy.part("one", "test")[0], glyphs.with_noise(experts, seed=0).part("one", "test")[0])


@pytest.mark.soak
def test_a_seed_of_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(glyphs.FILES)
    monkeypatch.setattr(protocol, "STEPS", 2)
    monkeypatch.setattr(protocol, "SCALES", (0.1, 0.3))
    measured = glyphs.measure(0, folder)
    assert all(value == value and abs(value) <= 100 for value in measured.values())
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(measured)
    assert measured["individual"] > 85 > measured["arithmetic"] > 20
