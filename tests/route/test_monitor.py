"""The monitor: the sum in closed form, quiet where nothing changed, prompt where something did, and a way back."""

import numpy as np
import pytest

from polytask.errors import InputError
from polytask.route import Decision, Expert, Monitor, NGramFeatures, Router

NAMES = ("a", "b", "c")
TEXTS = [f"prompt {i}" for i in range(400)]
DECISION = Decision("a", "prompt", {"a": 1.0, "b": 2.0, "c": 3.0}, NAMES)


@pytest.fixture(scope="module")
def router() -> Router:
    losses = np.tile([1.0, 2.0, 3.0], (len(TEXTS), 1))
    return Router.fit(NGramFeatures(width=64), [Expert(name) for name in NAMES], TEXTS, losses)


def monitor(router: Router, **settings: float) -> Monitor:
    """Held-out losses that are 0.2 above the predictions, with a deviation of 0.5."""
    noise = np.random.default_rng(0).normal(size=(len(TEXTS), 3))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    return Monitor(router, TEXTS, router.predict(TEXTS) + 0.2 + 0.5 * noise, **settings)


def test_the_sum_is_that_of_its_formula(router: Router) -> None:
    watch = monitor(router)
    for count in range(1, 9):
        watch.observe(DECISION, "a", 1.0 + 0.2 + 0.75)  # one and a half deviations: 1 more than the slack
        assert watch.sums["a"] == pytest.approx(count, abs=1e-4)
    assert watch.sums["b"] == 0
    watch = monitor(router, slack=0.0, limit=2.9)
    for drifting in ((), (), ("b",)):
        watch.observe(DECISION, "b", 2.7)
        assert watch.drifting == drifting


def test_it_is_quiet_where_nothing_changed_and_prompt_where_something_did(router: Router) -> None:
    watch, draws = monitor(router), np.random.default_rng(1)
    for draw in draws.normal(size=2000):
        watch.observe(DECISION, "a", 1.2 + 0.5 * draw)
        assert watch.drifting == () and watch.choose(DECISION) == "a"
    needed = 0
    while not watch.drifting:
        watch.observe(DECISION, "a", 1.2 + 0.5 * (draws.normal() + 1.5))
        needed += 1
    assert needed < 30 and watch.choose(DECISION) == "b"
    while watch.drifting:
        watch.observe(DECISION, "a", 1.2)
    assert watch.choose(DECISION) == "a"


def test_failures_count_and_all_drifting_leaves_the_decision(router: Router) -> None:
    watch = monitor(router)
    for name in NAMES:
        for _ in range(2):
            watch.observe(DECISION, name, float("nan"))
    assert watch.drifting == NAMES and watch.choose(DECISION) == "a"
    backed_off = Decision("c", "prompt", DECISION.predicted, NAMES, abstained=True)
    assert monitor(router).choose(backed_off) == "c"


def test_what_it_needs_is_said(router: Router) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 2\), expected \(2, 3\)"):
        Monitor(router, TEXTS[:2], np.ones((2, 2)))
    with pytest.raises(InputError, match="expert 'b': 1 known, expected at least 2"):
        Monitor(router, TEXTS[:2], [[1.0, np.nan, 1.0], [1.0, 1.0, 1.0]])
