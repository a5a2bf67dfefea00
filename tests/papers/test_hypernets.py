"""The review of hypernetworks: its four ways by an independent implementation, and its experiments.

tests/share/hypernetwork has the closed forms: counts and operations, one chunk, linear generators, a constant context, the
order of chunks, flattening, gradients by finite differences, and how large weights are at first.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.errors import InputError
from polytask.model import Losses
from polytask.papers.hypernets import PAPER, STRATEGIES, Ensemble, HeadFromData, few_shot, noise, picture, reviewed, sharing
from polytask.papers.hypernets.glyphs import FILES, count, perceptron
from polytask.papers.hypernets.reviewed import at_scale
from polytask.share.hypernetwork import MLP, Example, HyperNetwork, Noise, Tasks, Values

TASKS = ["a", "b", "c"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


# The review's worked example


def target() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))


def as_the_review_has_it(
    network: HyperNetwork, strategy: str, task: int, layers: list[tuple[int, int]], x: Tensor
) -> Tensor:
    """Loops over ids as in the review's example, the flat vector cut by hand. Of layers it is a vector of the longest for
    each, in which slices jump by the maximum; of chunks the tail is left over."""
    weights = [layer.weight for layer in network.generator.modules() if isinstance(layer, nn.Linear)]
    biases = [layer.bias for layer in network.generator.modules() if isinstance(layer, nn.Linear)]
    sizes = [(i + 1) * o for i, o in layers]

    def through(e: Tensor, which: tuple[int, ...]) -> Tensor:
        for i in which[:-1]:
            e = (weights[i] @ e + biases[i]).clamp(min=0)
        return weights[which[-1]] @ e + biases[which[-1]]

    embeddings = network.context.embeddings[network.context.tasks[task]]
    jumps = sizes
    if strategy == "once":
        flat = through(embeddings, (0, 1, 2))
    elif strategy == "heads":  # body, two hidden layers, two last ones
        flat = torch.cat([through(embeddings, (0, 1, 3)), through(embeddings, (0, 2, 4))])
        assert len(flat) == 2 * math.ceil(sum(sizes) / 2)
    else:
        flat = torch.cat([through(e, (0, 1, 2)) for e in embeddings])
        if strategy == "layers":
            jumps = [max(sizes)] * len(sizes)
            assert len(flat) == len(sizes) * max(sizes)
        else:
            assert len(flat) == 100 * math.ceil(sum(sizes) / 100) >= sum(sizes)
    start = 0
    for place, ((i, o), jump) in enumerate(zip(layers, jumps, strict=True)):
        x = x @ flat[start : start + i * o].view(o, i).T + flat[start + i * o : start + (i + 1) * o]
        x = x.relu() if place < len(layers) - 1 else x
        start += jump
    return x


@every_strategy
def test_the_four_ways_are_those_of_an_independent_implementation(strategy: str) -> None:
    torch.manual_seed(0)
    network, x = reviewed(target(), Tasks(TASKS), strategy), torch.randn(4, 7)
    for parameter in network.generator.parameters():
        nn.init.normal_(parameter, std=0.2)  # biases too
    for i, task in enumerate(TASKS):
        with pt.task_scope(task):
            found = network(x)
        torch.testing.assert_close(found, as_the_review_has_it(network, strategy, i, [(7, 5), (5, 3)], x))


@every_strategy
def test_only_generator_and_embeddings_are_trained_through_what_they_make(strategy: str) -> None:
    torch.manual_seed(0)
    network = reviewed(target(), Tasks(TASKS), strategy)
    assert not list(network.target.parameters())
    x, optimizer = torch.randn(64, 7), torch.optim.Adam(network.parameters(), lr=1e-3)
    wanted = {task: torch.sin(x[:, i : i + 3]) for i, task in enumerate(TASKS)}
    losses = []
    for _ in range(50):
        loss = torch.stack([F.mse_loss(network.each(x, [task])[0], y) for task, y in wanted.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@every_strategy
def test_the_initial_logits_are_as_large_as_those_of_an_ordinary_network(strategy: str) -> None:
    """Embeddings of N(0, 1) and a Kaiming start of all layers would make them tens of times as large."""
    x, found = torch.rand(50, 1, 14, 14), []
    for seed in range(20):
        torch.manual_seed(seed)
        found.append(float(reviewed(perceptron(), Tasks(["a"]), strategy).each(x).detach().square().mean()))
    # Variances of 2 / d_j in each of two layers, and half of the squares behind the ReLU between them.
    expected = float(2 * x.square().mean())
    assert 0.3 * expected < sum(found) / len(found) < 3 * expected


def test_scales_conditions_and_names() -> None:
    assert [scale.parameters for scale in PAPER.scales] == [8_042_342, 7_940_364, 4_066_842, 95_396]
    with torch.device("meta"):
        assert [count(at_scale(name)) for name in STRATEGIES] == [scale.parameters for scale in PAPER.scales]
        # Six tasks need embeddings more, of 16 for each chunk, and not a weight more of the generator.
        six = reviewed(nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)), Tasks([*"abcdef"]), "chunks")
        assert count(six) - 95_396 == 4 * 100 * 16 and count(six) < 6 * 79_510 / 4
    for context, kind in ((Noise(3), "noise"), (Values(2), "task"), (Example(nn.Identity(), 7), "data")):
        for strategy in STRATEGIES:
            network = reviewed(target(), context, strategy)
            assert network.describe()["input"] == f"{kind}-conditioned"
            assert network.layout.numel == 58 and not list(network.target.parameters())
    with pytest.raises(InputError, match="unknown strategy 'chunk': did you mean 'chunks'"):
        reviewed(target(), Values(2), "chunk")


# Sharing


def test_a_mixed_batch_goes_through_each_tasks_own_module() -> None:
    torch.manual_seed(0)
    batch = {task: torch.randn(size, 1, 14, 14) for task, size in (("c", 3), ("a", 1), ("b", 2))}
    networks = {build.__name__: build(tuple(TASKS)) for build in (sharing.separate, sharing.hard)}
    for network in networks.values():
        outputs = sharing.Mixed(network).outputs(batch)
        for task, images in batch.items():
            own = network.own[TASKS.index(task)]
            torch.testing.assert_close(outputs[task], own(network.shared(images)))
    assert count(networks["separate"]) == 3 * 13_258
    assert count(networks["hard"]) == 196 * 64 + 64 + 3 * 650


def test_all_methods_have_as_many_trials_and_losses_by_task() -> None:
    trials = sharing.trials(tuple(TASKS))
    assert set(trials) == {"separate", "hard", *STRATEGIES} == set(picture.SHARING)
    assert {len(several) for several in trials.values()} == {3}
    x, y = torch.randn(4, 1, 14, 14), torch.tensor([1, 2, 3, 4])
    for several in trials.values():
        for build, _ in several:
            model = sharing.Mixed(build())
            losses = model.losses({"a": (x, y), "c": (x, y)})
            logits = model.outputs({"c": x})["c"]
            torch.testing.assert_close(losses["c"], F.cross_entropy(logits, y))
            assert isinstance(model, Losses) and list(losses) == ["a", "c"]
            assert model.accuracy({"c": (x, logits.argmax(1))}) == 100


# Noise


def test_an_ensemble_trains_all_its_members_and_adds_the_term() -> None:
    torch.manual_seed(0)
    network, x, y = noise.generator(0.01), torch.rand(5, 1, 14, 14), torch.arange(5)
    model = Ensemble(network, "digit")
    assert isinstance(model, Losses)
    torch.manual_seed(3)
    found = model.losses((x, {"digit": y}))["digit"]
    torch.manual_seed(3)
    (term,) = network.terms
    expected = term(network) + torch.stack([F.cross_entropy(logits, y) for logits in network.each(x, 4)]).mean()
    torch.testing.assert_close(found, expected)
    assert not noise.generator(0.0).terms
    plain = perceptron()
    torch.testing.assert_close(Ensemble(plain, "digit").losses((x, {"digit": y}))["digit"], F.cross_entropy(plain(x), y))


def test_an_ensembles_probabilities_are_the_mean_of_its_networks() -> None:
    torch.manual_seed(0)
    x, networks = torch.rand(5, 1, 14, 14), [perceptron() for _ in range(3)]
    mean = torch.stack([F.softmax(network(x), 1) for network in networks]).mean(0)
    torch.testing.assert_close(noise.probabilities(nn.ModuleList(networks), x, 0), mean.detach())
    generator = noise.generator(0.0)
    torch.manual_seed(7)
    weights = generator.weights(noise.NETWORKS)
    drawn = [torch.func.functional_call(generator.target, {k: w[i] for k, w in weights.items()}, x) for i in range(20)]
    torch.testing.assert_close(noise.probabilities(generator, x, 7), torch.stack(drawn).softmax(-1).mean(0).detach())
    torch.testing.assert_close(noise.probabilities(generator, x[:2], 7), noise.probabilities(generator, x, 7)[:2])


class Known(nn.Module):
    """Answers with the logits that it is given."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def test_likelihood_calibration_and_entropy_by_hand() -> None:
    p = torch.full((4, 10), 0.2 / 9)
    p[torch.arange(4), torch.tensor([0, 1, 2, 3])] = 0.8
    letters = torch.zeros(3, 10)  # even: the greatest entropy
    found = noise.judged(Known(), (p.log(), torch.tensor([0, 1, 2, 9])), letters, 0)
    assert found["nll"] == pytest.approx(-(3 * math.log(0.8) + math.log(0.2 / 9)) / 4, rel=1e-5)
    assert found["ece"] == pytest.approx(5, rel=1e-4) and found["accuracy"] == 75  # sure by 80 %, right in 75 %
    assert found["entropy on digits"] == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2 / 9), rel=1e-5)
    assert found["entropy on letters"] == pytest.approx(math.log(10), rel=1e-5) and found["auroc"] == 100
    assert (
        0
        < noise.judged(noise.generator(0.0), (torch.rand(4, 1, 14, 14), torch.arange(4)), torch.rand(3, 1, 14, 14), 0)[
            "spread"
        ]
        <= 101
    )  # of mean square; a sample's variance may be a little more


# Few shots


def test_each_row_of_the_head_is_made_of_its_classs_examples() -> None:
    torch.manual_seed(0)
    model = HeadFromData(MLP((16,))).eval()
    support, queries = torch.rand(5, 5, 1, 14, 14), torch.rand(5, 10, 1, 14, 14)
    logits = model(support, queries)
    assert logits.shape == (50, 5)
    order, within = torch.tensor([3, 0, 4, 1, 2]), torch.randperm(5)
    torch.testing.assert_close(model(support[order], queries), logits[:, order])
    torch.testing.assert_close(model(support[:, within], queries), logits)
    features = model.encoder(queries.flatten(0, 1))
    for way in range(5):
        mean = model.encoder(support[way]).mean(0, keepdim=True)
        torch.testing.assert_close(model.head.network(mean)(features)[:, 0], logits[:, way])


def test_heads_that_are_fitted_together_are_those_that_are_fitted_by_themselves() -> None:
    torch.manual_seed(0)
    features, (support, queries) = few_shot.encoder(), (torch.rand(3, 5, n, 1, 14, 14) for n in (5, 10))
    with torch.no_grad():
        together = few_shot.fitted(features, 0.03)(support, queries)
    for i in range(3):
        head = nn.Linear(few_shot.WIDTH, 5)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
        known = features(support[i].flatten(0, 1)).detach()
        for _ in range(few_shot.HEAD_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(head(known), torch.arange(5).repeat_interleave(5), reduction="sum").backward()
            optimizer.step()
        torch.testing.assert_close(together[i], head(features(queries[i].flatten(0, 1))), atol=2e-3, rtol=2e-3)
        means = features(support[i].flatten(0, 1)).view(5, 5, -1).mean(1)
        distances = (features(queries[i].flatten(0, 1))[:, None] - means).square().sum(-1)
        assert torch.equal(few_shot.nearest(features)(support, queries)[i].argmax(1), distances.argmin(1))


def test_an_episode_has_no_image_twice_and_accuracy_counts_its_queries() -> None:
    random = torch.Generator().manual_seed(0)
    some = [100 * c + torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 14, 14) for c in range(7)]
    support, queries = few_shot.episode(some, random)
    each = torch.cat([support, queries], 1)[:, :, 0, 0, 0]
    assert each.shape == (5, 15) and len(each.unique()) == 75 and all(len((row // 100).unique()) == 1 for row in each)
    assert (
        few_shot.mean_accuracy(
            lambda s, q: -(q.flatten(1, 2)[:, :, 0, 0, :1] // 100 - s[:, :, 0, 0, 0, 0][:, None] // 100).abs(), some, 0
        )
        == 100
    )
    assert few_shot.mean_accuracy(lambda s, q: torch.eye(5)[0].expand(len(q), 50, 5), some, 0) == pytest.approx(20)


# Claims


@pytest.fixture
def folder() -> Path:
    return folder_with(FILES)


def test_classes_are_in_one_part_alone_and_drawn_by_the_seed(folder: Path) -> None:
    parts = few_shot.classes(folder, 0)
    assert {name: len(some) for name, some in parts.items()} == {"train": 80, "validation": 5, "test": 5}
    seen = {name: {image.numpy().tobytes() for images in some for image in images} for name, some in parts.items()}
    assert not seen["train"] & seen["test"] and not seen["validation"] & seen["test"]
    assert len(parts["train"][0]) != len(few_shot.classes(folder, 1)["train"][0])


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name, value in (
        (sharing, "SIZES", {"train": 50, "validation": 20, "test": 30}),
        (sharing, "EPOCHS", 1),
        (noise, "SIZES", {"train": 100, "validation": 50, "test": 60}),
        (noise, "LENGTHS", (2, 4)),
        (few_shot, "STEPS", 3),
        (few_shot, "EPISODES", 3),
        (few_shot, "HEAD_STEPS", 5),
    ):
        monkeypatch.setattr(module, name, value)

    each = {run: run(0, folder) for run in {claim.run: None for claim in PAPER.claims}}
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(each[claim.run])
    measured = {name: value for found in each.values() for name, value in found.items()}
    assert all(math.isfinite(value) for value in measured.values())
    assert noise.measure_noise(0, folder) == each[noise.measure_noise]
    assert measured["chunks parameters"] < measured["separate parameters"] == 6 * 13_258
    assert measured["heads parameters"] < 0.52 * measured["once parameters"]
    picture.plot({0: measured, 1: measured}).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
