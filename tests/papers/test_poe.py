"""A panel of experts: its oracles one by one, pairs that a machine can label, agreement with people, the claims' data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from tests.papers.real_data import folder_with
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.model import Losses
from polytask.papers.poe import (
    LABELS,
    Exchange,
    FirstToken,
    NearestDomain,
    Panel,
    WithMaskedLM,
    agreement,
    comparison,
    dialogues,
    pairs,
    picture,
    pseudo_labels,
    spoiled,
)
from polytask.papers.poe.text import hide
from polytask.share import Adapter
from polytask.task import MISSING

DOMAINS = ("chat", "advice", "news")


def panel(domains: tuple[str, ...] = DOMAINS, start: Any = "bert", dropout: float = 0.0) -> tuple[Panel, Tensor]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU())
    made = Panel.build(encoder, domains, Adapter(3, start=start), width=8)
    if start == "bert":
        for parameter in made.inserted.parameters():
            nn.init.normal_(parameter)
    return made, torch.randn(20, 4)


# Experts


def test_with_adapters_of_zero_experts_differ_by_their_heads_alone() -> None:
    made, x = panel(start="zero")
    every = [made.score(x, domain) for domain in DOMAINS]
    assert not torch.allclose(made.score(x), every[0], atol=1e-3)
    with torch.no_grad():
        features = made.model.encoder
        with pt.task_scope("chat"):
            one = features(x)
        with pt.task_scope("news"):
            assert torch.equal(features(x), one)
    for domain in DOMAINS[1:]:
        made.model.heads[domain].load_state_dict(made.model.heads["chat"].state_dict())
    for combine in ("mean", "logits", "max"):
        torch.testing.assert_close(made.score(x, combine=combine), every[0])  # type: ignore[arg-type]
    for domain in DOMAINS:
        assert torch.equal(made.score(x, domain), every[0])


def test_a_domains_loss_reaches_the_encoder_and_its_own_expert_alone() -> None:
    made, x = panel()
    labels = torch.arange(20) % 3
    made.model.losses({"advice": (x, labels)})["advice"].backward()
    own = set(made.model.parameters_of("advice"))
    others = {p for domain in ("chat", "news") for p in made.model.parameters_of(domain)}
    assert len(own) == 8 + 2 and len(others) == 2 * len(own)
    assert all(p.grad is None or not p.grad.any() for p in others)
    assert all(p.grad is not None and p.grad.any() for p in own)
    assert all(p.grad is not None and p.grad.any() for p in made.model.shared_parameters())


def test_one_domain_is_ordinary_fine_tuning_with_an_adapter() -> None:
    """The same network written out, under the same optimizer, ends with the same scores."""
    made, x = panel(("chat",))
    labels = torch.arange(20) % 3
    encoder = made.model.encoder
    values = {name: p.detach().clone().requires_grad_(True) for name, p in made.model.named_parameters()}

    def written_out() -> Tensor:
        h = x
        for layer in ("0", "3"):
            of = {name.split(f"encoder.{layer}.", 1)[1]: p for name, p in values.items() if f"encoder.{layer}." in name}
            adapter = {name.split("bottlenecks.")[-1].split(".", 1)[-1]: p for name, p in of.items() if "bottleneck" in name}
            a = F.linear(h, of["weight"], of["bias"])
            down = F.gelu(F.linear(a, adapter["down.weight"], adapter["down.bias"]))
            h = F.relu(a + F.linear(down, adapter["up.weight"], adapter["up.bias"]))
        head = {name.rsplit(".", 1)[1]: p for name, p in values.items() if "heads" in name}
        return F.linear(h, head["weight"], head["bias"])

    ordinary = torch.optim.SGD(list(values.values()), lr=0.1)
    ours = torch.optim.SGD(made.model.parameters(), lr=0.1)
    for _ in range(5):
        for optimizer, loss in (
            (ours, lambda: made.model.losses({"chat": (x, labels)})["chat"]),
            (ordinary, lambda: F.cross_entropy(written_out(), labels)),
        ):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    torch.testing.assert_close(made.score(x), written_out().softmax(1)[:, 2].detach())
    assert made.score(x).shape == (20,) and encoder is made.model.encoder


def test_how_experts_make_one_score() -> None:
    made, x = panel()
    logits = torch.stack([made.model(x, [domain])[domain] for domain in DOMAINS], 1).detach()
    good = logits.softmax(-1)[..., 2]
    torch.testing.assert_close(made.score(x), good.mean(1))
    torch.testing.assert_close(made.score(x, combine="logits"), logits.mean(1).softmax(-1)[..., 2])
    torch.testing.assert_close(made.score(x, combine="max"), good.amax(1))
    torch.testing.assert_close(made.score(x, "advice"), good[:, 1])
    weights = torch.rand(20, 3)
    torch.testing.assert_close(made.score(x, combine=lambda inputs: weights), (weights * good).sum(1))
    with pytest.raises(InputError, match="unknown domain 'chatt': did you mean 'chat'"):
        made.score(x, "chatt")


def test_the_mean_of_probabilities_ranks_otherwise_than_that_of_logits() -> None:
    """Two experts at 0.45 each, and one that is sure at 0.99 beside one that is as sure of the contrary."""
    logits = torch.logit(torch.tensor([[0.45, 0.45], [0.99, 0.005]], dtype=torch.float64))
    probabilities = logits.sigmoid()
    assert probabilities.mean(1).argmax() == 1 and logits.mean(1).argmax() == 0


def test_the_nearest_domains_expert() -> None:
    torch.manual_seed(0)
    centres = {"chat": torch.tensor([5.0, 0.0]), "advice": torch.tensor([-5.0, 0.0]), "news": torch.tensor([0.0, 5.0])}
    inputs = {domain: centre + torch.randn(50, 2) for domain, centre in centres.items()}
    for temperature, least, most in ((0.1, 0.99, 1.0), (1e6, 0.0, 0.34)):
        gate = NearestDomain(inputs, temperature=temperature)
        for i, domain in enumerate(centres):
            weights = gate(inputs[domain])
            torch.testing.assert_close(weights.sum(1), torch.ones(50))
            assert least <= float(weights[:, i].mean()) <= most
    gate = NearestDomain(inputs, read=lambda x: x[:, :1])
    torch.testing.assert_close(gate(inputs["chat"]), gate(inputs["chat"] + torch.tensor([0.0, 99.0])))
    with pytest.raises(InputError, match="temperature 0, expected above 0"):
        NearestDomain(inputs, temperature=0)


def test_a_further_domain_is_trained_alone_from_the_mean() -> None:
    made, x = panel()
    before = {domain: made.score(x, domain) for domain in DOMAINS}
    wider = made.add("late")
    copy = made.add("copy", of=["news"])
    torch.testing.assert_close(copy.score(x, "copy"), before["news"])
    heads = [made.model.heads[domain].state_dict() for domain in DOMAINS]
    for key, value in wider.model.heads["late"].state_dict().items():
        torch.testing.assert_close(value, torch.stack([head[key] for head in heads]).mean(0))
    wider = made.add("again")
    assert wider.domains == (*DOMAINS, "again") and made.domains == DOMAINS
    own = set(wider.model.parameters_of("again"))
    assert {p for p in wider.model.parameters() if p.requires_grad} == own
    labels = torch.arange(20) % 3
    start = wider.score(x, "again")
    pt.fit(wider.model, {"again": Examples(x, {"again": labels})}, steps=10, lr=1e-2, batch_size=20)
    assert not torch.allclose(wider.score(x, "again"), start, atol=1e-3)
    for domain in DOMAINS:
        assert torch.equal(wider.score(x, domain), before[domain])
    with pytest.raises(InputError, match="unknown domain 'newss': did you mean 'news'"):
        made.add("more", of=["newss"])


# Text


@pytest.fixture
def roberta() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    return transformers.RobertaForMaskedLM(config)


def test_a_panel_in_a_transformer_with_a_masked_language_model(roberta: Any) -> None:
    encoder = FirstToken(roberta.roberta)
    adapter = Adapter(2, "norm", "relu", start="bert")
    made = Panel.build(encoder, DOMAINS[:2], adapter, "*[0-9].output.LayerNorm")
    assert list(made.inserted.parts) == [f"encoder.encoder.layer.{i}.output.LayerNorm" for i in range(2)]
    ids = torch.randint(4, 50, (6, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = WithMaskedLM(made.model, roberta.lm_head, mask=4, special=(0, 1, 2, 3), vocabulary=50)
    assert isinstance(model, Losses)
    batch = {"chat": (inputs, torch.arange(6) % 3)}
    found = model.losses(batch)
    assert list(found) == ["chat", "masked lm"]
    found["masked lm"].backward()
    assert all(p.grad is None or not p.grad.any() for p in made.model.parameters_of("advice"))
    assert any(p.grad is not None and p.grad.any() for p in made.inserted.parameters_of("chat"))
    untrained = WithMaskedLM(made.model, roberta.lm_head, 4, (0, 1, 2, 3), 50, share=0.0)
    assert float(untrained.losses(batch)["masked lm"].detach()) == 0
    data = pt.Mixture({"chat": Examples(inputs, {"chat": torch.arange(6) % 3})}, batch_size=6)
    fitted = pt.fit(model, data, steps=2)
    assert fitted.steps == 2
    made.model.eval()
    assert torch.equal(made.score(inputs, "chat"), made.score(inputs, "chat"))


def test_features_are_the_first_token_with_dropout(roberta: Any) -> None:
    encoder = FirstToken(roberta.roberta, dropout=0.5)
    inputs = {"input_ids": torch.randint(4, 50, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    encoder.eval()
    torch.testing.assert_close(encoder(inputs), roberta.roberta(**inputs).last_hidden_state[:, 0])
    encoder.train()
    roberta.roberta.eval()
    assert 0.2 < float((encoder({k: v.repeat(20, 1) for k, v in inputs.items()}) == 0).float().mean()) < 0.8


def test_which_tokens_are_hidden() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 1000, (200, 100))
    ids[:, 0] = 2
    hidden, targets = hide(ids, mask=4, special=(0, 1, 2, 3, 4), vocabulary=1000, share=0.15)
    chosen = targets >= 0
    assert not chosen[:, 0].any() and float(chosen[:, 1:].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(targets[chosen], ids[chosen]) and torch.equal(hidden[~chosen], ids[~chosen])
    assert float((hidden[chosen] == 4).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((hidden[chosen] == ids[chosen]).float().mean()) == pytest.approx(0.1, abs=0.02)


# Pairs


def test_pairs_of_three_kinds() -> None:
    exchanges = [
        spoiled(
            Exchange(f"hello {i} how are you", "how are you", f"i am number {i} and fine today"), np.random.default_rng(i)
        )
        for i in range(30)
    ]
    for exchange in exchanges:
        shuffled, changed, copy = exchange.wrong
        assert sorted(shuffled.split()) == sorted(exchange.response.split()) and copy == exchange.last
        assert changed != exchange.response and set(changed.split()) <= set(exchange.response.split())
    for seed in range(20):  # nothing true is called wrong, even where there is one word to spoil
        assert spoiled(Exchange("a b", "b", "yes"), np.random.default_rng(seed)).wrong == ("yes yes", "yes yes", "b")
    others = ["elsewhere", "far away"]
    made = pairs(exchanges, others, np.random.default_rng(0))
    assert made == pairs(exchanges, others, np.random.default_rng(0)) != pairs(exchanges, others, np.random.default_rng(1))
    by_kind = {label: made[label::3] for label in range(3)}
    assert all(pair.label == label for label, some in by_kind.items() for pair in some)
    own = {exchange.context: exchange for exchange in exchanges}
    strange = sum(pair.response in others for pair in by_kind[LABELS.index("random")])
    assert 5 < strange < 25
    for pair in by_kind[LABELS.index("random")]:
        assert pair.response != own[pair.context].response
    for pair in by_kind[LABELS.index("adversarial")]:
        assert pair.response in own[pair.context].wrong
    for pair in by_kind[LABELS.index("original")]:
        assert pair.response == own[pair.context].response
    assert not any(pair.response in others for pair in pairs(exchanges, [], np.random.default_rng(0)))


def test_a_teachers_labels_where_it_is_sure() -> None:
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [0.0, 0.3, 0.7]])
    assert pseudo_labels(probabilities, 0.7).tolist() == [0, MISSING, 2]
    made, x = panel()
    loss = made.model.losses({"chat": (x[:3], pseudo_labels(probabilities, 0.7))})["chat"]
    both = made.model.losses({"chat": (x[[0, 2]], torch.tensor([0, 2]))})["chat"]
    torch.testing.assert_close(loss, both)  # what is missing counts nothing


# Agreement


def test_agreement_is_of_ranks_and_the_same_under_any_increasing_map() -> None:
    random = np.random.default_rng(0)
    ratings = [list(map(float, random.integers(1, 6, int(random.integers(1, 6))))) for _ in range(60)]
    means = np.array([np.mean(row) for row in ratings])
    scores = means + random.normal(size=60)
    found = agreement.turn_level(scores, ratings)
    assert found == pytest.approx(np.corrcoef(rankdata(scores), rankdata(means))[0, 1])
    assert agreement.turn_level(np.exp(3 * scores) - 7, ratings) == pytest.approx(found)
    assert agreement.turn_level(1 / (1 + np.exp(-scores)), ratings) == pytest.approx(found)
    assert agreement.turn_level(-scores, ratings) == pytest.approx(-found)
    shown = agreement.interval(scores, ratings, resamples=500)
    assert shown.mean == pytest.approx(found) and shown.low < found < shown.high
    assert shown == agreement.interval(scores, ratings, resamples=500)


def test_a_constant_score_agrees_with_nobody() -> None:
    with pytest.warns(UserWarning, match="counted as 0"):
        assert agreement.turn_level([1.0, 1.0, 1.0], [[1.0], [2.0], [3.0]]) == 0.0


def test_systems_apart_are_not_systems_together() -> None:
    """Within each system the score is wrong, yet the better system has the higher scores."""
    ratings, systems = [[1.0], [2.0], [11.0], [12.0]], ["a", "a", "b", "b"]
    scores = [2.0, 1.0, 12.0, 11.0]
    assert agreement.turn_level(scores, ratings) == pytest.approx(0.6)
    assert agreement.by_system(scores, ratings, systems) == pytest.approx(-1)
    assert agreement.by_system([*scores, 5.0], [*ratings, [3.0]], [*systems, "c"]) == pytest.approx(-1)


def test_what_one_person_reaches() -> None:
    alike = [[float(i)] * 3 for i in range(6)]
    assert agreement.ceiling(alike) == pytest.approx(1)
    contrary = [[float(i), -float(i)] for i in range(6)]
    assert agreement.ceiling([*contrary, [3.0]]) == pytest.approx(-1)


# The claims' data


@pytest.fixture
def folder() -> Path:
    return folder_with(dialogues.FILES)


def test_facts_about_the_rated_sets(folder: Path) -> None:
    rated = dialogues._rated(folder)
    assert {name: len(items) for name, items in rated.items()} == {
        "GRADE ConvAI2": 600,
        "GRADE DailyDialog": 300,
        "GRADE Empathetic": 300,
        "USR TopicalChat": 360,
        "USR PersonaChat": 300,
        "FED": 375,
    }
    levels = [row["level"] for row in dialogues._lines(folder / dialogues.FILES[4])]
    assert levels.count("turn") == 375 and levels.count("dialogue") == 125
    assert not any(item.context.startswith(("User:", "System:")) for item in rated["FED"])
    assert all(isinstance(rating, float) for items in rated.values() for item in items for rating in item.ratings)


def test_the_length_of_a_response_against_its_rating(folder: Path) -> None:
    """On GRADE's DailyDialog and ConvAI2: -0.234 and 0.000."""
    rated = dialogues._rated(folder)
    for name, expected in (("GRADE DailyDialog", -0.234), ("GRADE ConvAI2", 0.0)):
        lengths = [len(item.response.split()) for item in rated[name]]
        assert agreement.turn_level(lengths, [item.ratings for item in rated[name]]) == pytest.approx(expected, abs=0.02)


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dialogues.Dialogues:
    """The dialogues, with embeddings that are random directions."""

    def embedded(texts: list[str]) -> Tensor:
        return F.normalize(torch.randn(len(texts), 384, generator=torch.Generator().manual_seed(0)))

    monkeypatch.setattr(dialogues, "embedded", embedded)
    return dialogues.load(folder, 0)


def test_no_rated_context_is_learned(small: dialogues.Dialogues) -> None:
    learned = {dialogues._key(e.context) for part in (small.train, small.validation) for pool in part.values() for e in pool}
    rated = {dialogues._key(item.context) for items in small.rated.values() for item in items}
    assert not learned & rated
    assert all(len(items) >= 100 and all(item.ratings for item in items) for items in small.rated.values())
    for domain in dialogues.DOMAINS:
        train, held = ({e.context for e in part[domain]} for part in (small.train, small.validation))
        assert len(train) > 4 * len(held) > 0 and len(train & held) <= 0.02 * len(train)


def test_features_of_pairs(small: dialogues.Dialogues) -> None:
    examples = small.examples(small.train, ["woz", "convai2"])
    assert list(examples) == ["woz", "convai2"] and len(examples["woz"]) == 3 * len(small.train["woz"])
    row = examples["woz"].inputs[2]  # type: ignore[index]
    c, r = row[:384], row[384:768]
    torch.testing.assert_close(row[768:], torch.cat([(c - r).abs(), c * r]))
    assert float(c.square().mean()) == pytest.approx(1, rel=1e-4)
    exchange = small.train["woz"][0]
    torch.testing.assert_close(r, small.vectors[exchange.response] * 384**0.5)
    assert examples["woz"].targets["woz"].bincount().tolist() == [len(small.train["woz"])] * 3


def test_the_protocol(small: dialogues.Dialogues, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short runs: what is measured, and that one model for all sees every domain under one head."""
    monkeypatch.setattr(comparison, "STEPS", 10)
    monkeypatch.setattr(comparison, "FEW_STEPS", 3)
    monkeypatch.setattr(comparison, "load", lambda folder, seed: small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = comparison.measure(0, Path())
    assert all(-1 <= value <= 1 for value in measured.values())
    sets = list(dialogues.RATED)
    assert measured["panel"] == pytest.approx(np.mean([measured[f"panel on {name}"] for name in sets]))
    assert measured["panel few"] == pytest.approx(np.mean([measured[f"panel few on {name}"] for name in sets[:-1]]))
    assert measured["expert on FED"] == measured["panel on FED"] and "panel unseen on FED" not in measured
    assert json.loads(json.dumps(measured)) == measured
    pooled = comparison._shared(comparison._encoder(), ["woz", "convai2"])
    assert pooled.heads["woz"] is pooled.heads["convai2"]
    assert len(picture.plot({0: measured, 1: measured}).axes) == 2
