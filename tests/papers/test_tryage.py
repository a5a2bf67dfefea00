"""Tryage: the experts' arithmetic, joint training, the transformer that learns losses, and a small run of the claims."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.papers.real_data import folder_with

import polytask as pt
from polytask.errors import InputError
from polytask.papers.tryage import (
    PAPER,
    CharacterModel,
    PerceptiveRouter,
    bert_small,
    comparison,
    domains,
    labelled,
    train_jointly,
)
from polytask.route import Example, choose, incurred, regret, selection_accuracy

# Characters


def test_witten_bell_by_hand() -> None:
    model = CharacterModel(2).fit(["abab", "ac"])
    start = bytes([0])
    grams = [start + b"a", b"ab", b"ba", b"ab", start + b"a", b"ac"]

    def chance(byte: bytes, before: bytes) -> float:
        ones = [gram[1:] for gram in grams]
        single = (ones.count(byte) + len(set(ones)) / 256) / (len(ones) + len(set(ones)))
        after = [gram[1:] for gram in grams if gram[:1] == before]
        if not after:
            return single
        return (after.count(byte) + len(set(after)) * single) / (len(after) + len(set(after)))

    expected = [chance(b"a", start), chance(b"c", b"a"), chance(b"x", b"c"), chance(b"a", b"x")]
    np.testing.assert_allclose(model.chances(["acxa"])[0], expected)
    assert model.size == len(set(grams)) + 3


@pytest.mark.parametrize("order", [1, 3, 5])
def test_chances_add_up_to_1(order: int) -> None:
    model = CharacterModel(order).fit(["the cat sat", "the hat"], np.array([1.0, 2.5]))
    for before in ("the ", "xyz", ""):
        last = [model.chances([before + chr(byte)])[0][-1] for byte in range(128)]
        after = model.chances([before + "é"])[0][len(before)]  # a byte above 127
        unseen = 127 * after  # all of these are alike
        assert math.fsum(last) + after + unseen == pytest.approx(1.0)


def test_texts_do_not_depend_on_their_neighbours_and_weights_are_counts() -> None:
    texts = ["one two", "", "thréé", "one"]
    model = CharacterModel(4).fit(texts)
    np.testing.assert_allclose(model.bits(texts), [model.bits([text])[0] for text in texts])
    assert model.bits([""])[0] == 0 and model.losses([Example("one")]) == [pytest.approx(model.bits(["one"])[0])]
    twice = CharacterModel(4).fit([*texts, "one"])
    np.testing.assert_allclose(twice.bits(texts), CharacterModel(4).fit(texts, np.array([1, 1, 1, 2])).bits(texts))
    left_out = CharacterModel(4).fit(texts, np.array([1, 1, 0, 1]))
    np.testing.assert_allclose(left_out.bits(texts), CharacterModel(4).fit(["one two", "one"]).bits(texts))
    assert CharacterModel(2).fit([]).bits(["ab"]) == pytest.approx(8)  # nothing known: a byte is 8 bits
    with pytest.raises(InputError, match="expected 1 to 7"):
        CharacterModel(8)


def test_a_longer_context_helps_on_what_was_seen() -> None:
    text = "to be, or not to be, that is the question " * 5
    bits = [CharacterModel(order).fit([text]).bits([text])[0] for order in (1, 2, 4)]
    assert bits == sorted(bits, reverse=True)


# Joint training


class Constant:
    """Loses less on what it was trained on most."""

    def __init__(self, start: str) -> None:
        self.weights = {start: 1.0}

    def fit(self, texts: list[str], weights: np.ndarray) -> None:
        self.weights = {text: float(weight) for text, weight in zip(texts, weights, strict=True)}

    def losses(self, examples: list[Example]) -> list[float]:
        return [1.0 - self.weights.get(example.prompt, 0.0) for example in examples]


def test_experts_divide_the_texts_between_them() -> None:
    experts = [Constant("a"), Constant("b")]
    texts = ["a", "b"]

    def fit_router(losses: np.ndarray):  # type: ignore[no-untyped-def]
        by_text = dict(zip(texts, losses, strict=True))
        return lambda many: np.array([by_text[text] for text in many])

    predict = train_jointly(experts, texts, texts, fit_router, rounds=1, temperature=0.5)  # type: ignore[arg-type]
    soft = 1 / (1 + math.exp(-2))
    assert experts[0].weights == {"a": pytest.approx(soft), "b": pytest.approx(1 - soft)}
    assert choose(predict(texts)).tolist() == [0, 1]
    train_jointly(experts, texts, texts, fit_router, rounds=2, temperature=0.01)  # type: ignore[arg-type]
    assert experts[0].weights == {"a": pytest.approx(1), "b": 0.0}  # a small weight counts as 0


# The perceptive router


def small(experts: list[str]) -> PerceptiveRouter:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return PerceptiveRouter(transformers.BertModel(config), experts)


class Numbers:
    """A tokenizer of words that are numbers."""

    def __call__(self, texts: list[str], **settings: object) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[int(word) for word in text.split()] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_transformer_learns_all_losses_and_leaves_out_what_is_not_known() -> None:
    model = small(["a", "b"])
    texts = [f"{2 + i % 2} {10 + i % 7}" for i in range(40)]
    losses = np.array([[1.0, 3.0], [3.0, 1.0]] * 20)
    holes = losses.copy()
    holes[5:9, 1] = np.nan
    examples = labelled(Numbers(), texts, holes, ["a", "b"])
    found = model.losses(examples[5:9])
    assert set(found) == {"a"}
    predicted = model(examples[:][0])
    torch.testing.assert_close(
        model.losses(examples[:5])["b"], (predicted[:5, 1] - torch.tensor(losses[:5, 1])).square().mean().float()
    )
    pt.fit(model, examples, steps=40, batch_size=20, lr=1e-2)
    with torch.no_grad():
        chosen = choose(model(examples[:][0]).numpy())
    assert selection_accuracy(losses, chosen) == 1 and regret(losses, chosen) == 0


def test_its_size_by_the_formula() -> None:
    """Embeddings and their normalisation, four layers, the pooler."""
    vocabulary, places, d, layers, f = 30522, 512, 512, 4, 2048
    embeddings = (vocabulary + places + 2) * d + 2 * d
    layer = 4 * (d**2 + d) + 2 * d * f + f + d + 4 * d
    assert (embeddings - 1024, layer, d**2 + d) == (15_890_432, 3_152_384, 262_656)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in bert_small().parameters())
    assert count == embeddings + layers * layer + d**2 + d == 28_763_648
    assert PAPER.scales[0].parameters == count + 11 * 513


# The claims


def test_experts_and_routers_see_different_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_with(domains.FILES)
    monkeypatch.setattr(domains, "embedded", lambda texts: torch.randn(len(texts), 384))
    sizes = {"experts": 20, "router": 15, "validation": 5, "test": 10}
    made, again, other = (domains.library(data, seed, sizes) for seed in (0, 0, 1))
    parts = [made.texts, *(part.texts for part in made.parts.values())]
    assert [len(part) for part in parts] == [140, 105, 35, 70]
    for i, part in enumerate(parts):
        assert all(not set(part) & set(later) for later in parts[i + 1 :])
    assert made.texts == again.texts != other.texts
    np.testing.assert_array_equal(made.parts["test"].losses, again.parts["test"].losses)
    held = made.parts["test"]
    assert np.isfinite(held.losses).all() and held.losses.shape == (70, 9)
    assert selection_accuracy(held.losses, held.domains) > 0.5  # of few passages
    assert [expert.name for expert in made.experts] == list(domains.CARDS) and made.experts[-1].costs["size"] < 300
    np.testing.assert_allclose(held.losses[:, 2], made.models[2].bits(held.texts))


@pytest.mark.soak
def test_a_small_run_of_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_with(domains.FILES)
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(domains, "embedded", lambda texts: torch.randn(len(texts), 384, generator=generator))
    whole = comparison.library
    sizes = {"experts": 20, "router": 20, "validation": 5, "test": 10}
    monkeypatch.setattr(comparison, "library", lambda data, seed: whole(data, seed, sizes))
    monkeypatch.setattr(comparison, "INVERSE_PENALTIES", (1.0,))
    monkeypatch.setattr(comparison, "HEADS", ({"l2": 0.3},))
    monkeypatch.setattr(comparison, "FEW", 100)
    measured = comparison.measure(0, data)
    assert all(math.isfinite(value) for value in measured.values())
    assert all({claim.method, claim.baseline} <= set(measured) for claim in PAPER.claims)
    assert measured["oracle regret"] == 0 and measured["oracle accuracy"] == 100
    assert measured["random accuracy"] == pytest.approx(100 / 9)
    assert measured["oracle hypervolume"] >= max(measured["router hypervolume"], measured["singles hypervolume"])
    costs = [measured[f"router cost at {i}"] for i in range(27)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0
    assert measured["router loss"] == pytest.approx(measured["router loss at 0"])
    best = min(measured[f"expert {name} loss"] for name in domains.CARDS)
    assert measured["single loss"] >= best - 1e-12
    assert PAPER.plot is not None and len(PAPER.plot({0: measured, 1: measured}).axes) == 2


def test_the_classifier_of_the_best_is_told_no_domain() -> None:
    """Labels are all that distinguishes the two classifiers."""
    losses = np.array([[1.0, 2.0], [2.0, 1.0]] * 10)
    part = domains.Part([f"{i % 2} text {i}" for i in range(20)], np.zeros(20, int), np.eye(20), losses)
    made = domains.Library((), (), [], np.empty((0, 20)), dict.fromkeys(("router", "validation", "test"), part), np.eye(2))

    def encoder(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(text[0]), 1.0] for text in texts])

    chosen = comparison.classified(made, {"own": encoder}, losses.argmin(1))  # type: ignore[dict-item]
    assert incurred(losses, chosen).tolist() == [1.0] * 20
