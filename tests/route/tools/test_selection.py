"""Selectors: by words, by vectors, both, modules first; and the feedback that improves them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from polytask.errors import InputError
from polytask.route.tools import (
    Centroids,
    Document,
    Embedding,
    Hit,
    Hybrid,
    Lexical,
    ModuleFirst,
    Registry,
    Selection,
    VectorIndex,
    fit_weights,
    learn_from_failures,
    reciprocal_rank,
)
from polytask.route.tools.selection import best

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def embed(texts: Sequence[str]) -> np.ndarray:
    """Texts by their words, each of which has a random direction of its own."""
    found = np.zeros((len(texts), 32), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().replace(".", " ").split():
            found[row] += np.random.default_rng(list(word.encode())).standard_normal(32)
    return found


def catalogue(count: int = 120, modules: int = 6) -> list[Document]:
    rng = np.random.default_rng(0)
    said = [" ".join(WORDS[i] for i in rng.integers(len(WORDS), size=5)) for _ in range(count)]
    return [Document(f"api_{i}", description=text, module=f"package{i % modules}") for i, text in enumerate(said)]


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.register_all(catalogue())
    return registry


@pytest.fixture
def embedding(registry: Registry, tmp_path: Path) -> Embedding:
    made = Embedding(registry, VectorIndex(tmp_path / "vectors", 32), embed, probe=None)
    assert made.refresh() == 120 and made.refresh() == 0
    return made


def test_an_apis_own_description_finds_it(registry: Registry, embedding: Embedding) -> None:
    arms = [Lexical(registry), embedding, Hybrid({"words": Lexical(registry), "meaning": embedding})]
    for one, document in zip(registry.ids(), catalogue(), strict=True):
        for arm in arms:
            assert arm.select(document.description, 3).ids[0] == one


def test_words_are_found_by_their_stems_and_in_names() -> None:
    registry = Registry()
    ids = registry.register_all([
        Document("getUserByID", description="Look somebody up."),
        Document("cities.list_all", description="Every town."),
        Document("other", description="A list of users in the city."),
    ])  # fmt: skip
    lexical = Lexical(registry)
    assert lexical.select("user id", 3).ids[0] == ids[0]
    assert set(lexical.select("listing CITY", 3).ids) == {ids[1], ids[2]}
    assert Lexical(registry, {"name": 10}).select("city list", 1).ids == [ids[1]]
    assert Lexical(registry, {"name": 0}).select("user", 1).ids == [ids[2]]
    for text in ("", "?!", "nothing here", '" OR name:*', "NEAR(user", "user*"):
        lexical.select(text, 3)
    assert lexical.select("", 3) == Selection((), 0)


def test_within_a_budget_the_rarest_words_decide() -> None:
    registry = Registry()
    texts = ["common shared rare" if i == 70 else "common shared" if i % 2 else "common" for i in range(100)]
    ids = registry.register_all(Document(f"a{i}", description=text + " more" * (i % 7)) for i, text in enumerate(texts))
    assert Lexical(registry, budget=10).select("common rare", 5).ids == [ids[70]]
    everything = Lexical(registry, budget=None).select("common rare", 5)
    assert everything.ids[0] == ids[70] and everything.scored == 101
    frequent = Lexical(registry, budget=10).select("common shared", 5)
    assert len(frequent.ids) == 5 and frequent.scored <= 10
    assert all(ids.index(one) % 2 or ids.index(one) == 70 for one in frequent.ids), "those with all the words"
    assert Lexical(registry, budget=10).select("common shared gone", 5) == frequent
    long, both = Lexical(registry, budget=200), Lexical(registry, budget=None)
    assert long.select("shared rare", 9).hits == both.select("shared rare", 9).hits


def test_modules_first(registry: Registry, embedding: Embedding) -> None:
    documents = catalogue()
    requests = [document.description for document in documents[::7]]
    centroids = Centroids(embedding)
    every = ModuleFirst(centroids, embedding, count=6)
    for request in requests:
        assert every.select(request, 10).hits == embedding.select(request, 10).hits, "all modules are no choice"
        few = ModuleFirst(centroids, embedding, count=2).select(request, 10)
        assert few.scored == 2 * 20 + 6
    for arm in (Lexical(registry), embedding):
        for one, document in zip(registry.ids(), documents, strict=True):
            noisy = " ".join(document.description.split()[:2]) + " ban ben"
            flat, given = arm.select(noisy, 5), arm.select(noisy, 5, [document.module])
            assert (one in flat.ids) <= (one in given.ids), "the right module never loses it"
            assert {registry.get([i])[0].module for i in given.ids} <= {document.module}
    one = Registry()
    one.register_all(document.but(module="only") for document in documents)
    single = Embedding(one, embedding.index, embed, probe=None)
    for request in requests:
        assert ModuleFirst(Centroids(single), single, 1).select(request, 9).hits == embedding.select(request, 9).hits
    with pytest.raises(InputError, match="no documents"):
        Centroids(Embedding(Registry(), embedding.index, embed))


def test_versions_that_are_gone_are_not_found(registry: Registry, embedding: Embedding) -> None:
    text = catalogue()[5].description
    before = embedding.select(text, 5)
    newer = registry.update(catalogue()[5].but(description="quite other words"))
    assert embedding.select(text, 5).ids != before.ids and before.ids[0] not in embedding.select(text, 5).ids
    assert len(embedding.select(text, 119).ids) == 119, "places of old versions are filled"
    assert embedding.refresh() == 1 and embedding.select("quite other words", 1).ids == [newer]
    registry.update(catalogue()[5])
    embedding.refresh()
    embedding.index.build(alive=set(registry.ids()))
    assert len(embedding.index) == 120
    assert [hit.score for hit in embedding.select(text, 5).hits] == pytest.approx(
        [hit.score for hit in before.hits], abs=1e-6
    )


def test_a_usage_example_has_a_vector_of_its_own(registry: Registry, embedding: Embedding) -> None:
    newer = registry.update(catalogue()[3].but(examples=("zap the zorg",)))
    embedding.refresh()
    assert embedding.select("zap the zorg", 1).hits[0].id == newer
    assert embedding.select(catalogue()[3].description, 1).hits[0].id == newer
    assert embedding.select("zap the zorg", 50).ids.count(newer) == 1


class Fixed:
    """A selector that always finds the same."""

    def __init__(self, *hits: tuple[int, float]) -> None:
        self.found = Selection(tuple(Hit(*hit) for hit in hits), len(hits))

    def select(self, request: str, k: int, modules: object = None) -> Selection:
        return self.found


def test_fusion_by_ranks_and_by_scores() -> None:
    arms = {"a": Fixed((1, 9.0), (2, 8.0), (3, 1.0)), "b": Fixed((3, 0.5), (1, 0.1))}
    ranks = Hybrid(arms, {"a": 1, "b": 2}, constant=10).select("x", 3)
    assert ranks.ids == [3, 1, 2]
    assert {hit.id: hit.score for hit in ranks.hits} == {
        1: pytest.approx(1 / 11 + 2 / 12), 2: pytest.approx(1 / 12), 3: pytest.approx(1 / 13 + 2 / 11)
    }  # fmt: skip
    scores = Hybrid(arms, {"a": 1, "b": 2}, by="score").select("x", 3)
    assert {hit.id: hit.score for hit in scores.hits} == {1: pytest.approx(1), 2: pytest.approx(7 / 8), 3: pytest.approx(2)}
    assert Hybrid({"a": arms["a"]}).select("x", 2).ids == [1, 2]
    for wrong in ({"a": 1}, {"a": 1, "b": -1}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(InputError, match="weights"):
            Hybrid(arms, wrong)


def test_weights_are_fitted_on_what_was_right() -> None:
    hybrid = Hybrid({"bad": Fixed((1, 1.0), (3, 0.5)), "good": Fixed((2, 1.0), (1, 0.5))})
    assert fit_weights(hybrid, [("x", 2), ("y", 2)]) == 1.0
    assert hybrid.weights["good"] > hybrid.weights["bad"] and hybrid.select("x", 1).ids == [2]
    assert reciprocal_rank(Selection((Hit(4, 1.0), Hit(2, 0.5)), 2), 2) == 0.5
    assert reciprocal_rank(Selection((), 0), 2) == 0.0
    with pytest.raises(InputError, match="no cases"):
        fit_weights(hybrid, [])


def test_failures_become_examples_of_what_was_right(registry: Registry) -> None:
    lexical = Lexical(registry)
    own = catalogue()[8]
    cases = [
        ("unheard words", "api_8", own.module),
        (own.description, "api_8", own.module),
        ("more unheard", "api_8", own.module),
    ]
    assert learn_from_failures(registry, lexical, cases) == 1
    one, document = registry.find("api_8", own.module)
    assert document.examples == ("unheard words", "more unheard"), "the one that was found is not needed"
    assert lexical.select("unheard", 1).ids == [one] and len(registry.versions("api_8", own.module)) == 2
    assert learn_from_failures(registry, lexical, cases) == 0
    assert list(registry.outcomes()) == [(own.module, "api_8", 2, 2)]


def test_the_best_are_the_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids, scores = rng.integers(0, 200, 600), rng.integers(0, 40, 600).astype(float)
        top: dict[int, float] = {}
        for one, score in zip(ids.tolist(), scores.tolist(), strict=True):
            top[one] = max(score, top.get(one, -1))
        want = sorted(top.items(), key=lambda pair: (-pair[1], pair[0]))[:7]
        assert [(hit.id, hit.score) for hit in best(ids, scores, 7)] == want
    assert best([], np.zeros(0), 3) == ()
