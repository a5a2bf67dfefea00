"""Breadcrumbs: the protocol of the claims (tests/merge/rules/test_breadcrumbs.py has the rule's closed forms)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from polytask.data.examples import Examples
from polytask.merge import Breadcrumbs, TaskArithmetic, merge_state_dicts
from polytask.papers._experts import Experts, Split
from polytask.papers.breadcrumbs import PAPER, growing
from polytask.papers.breadcrumbs.growing import SCALES, Bench, grow

TASKS = ("a", "b", "c", "d", "e", "f")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def examples(task: str, expert: nn.Module, head: nn.Module, seed: int) -> Examples:
    """Inputs, and what the expert says of them nine times in ten."""
    inputs = draw(60, 6, seed=seed)
    with torch.no_grad():
        labels = head(expert(inputs)).argmax(1)
    labels[::10] = (labels[::10] + 1) % 3
    return Examples(inputs, {task: labels})


@pytest.fixture
def experts() -> Experts:
    """A linear encoder, six of its relatives, and what they know."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5)
    heads, tuned, data = {}, {}, {}
    for k, task in enumerate(TASKS):
        expert, head = nn.Linear(6, 5), nn.Linear(5, 3).requires_grad_(False)
        with torch.no_grad():
            for own, start in zip(expert.parameters(), base.parameters(), strict=True):
                own.copy_(start + 0.7 * torch.randn_like(start))
        parts = [examples(task, expert, head, 10 * k + part) for part in range(3)]
        heads[task], data[task] = head, Split(3, *parts)
        tuned[task] = {name: tensor.detach().clone() for name, tensor in expert.state_dict().items()}
    start = {name: tensor.detach().clone() for name, tensor in base.state_dict().items()}
    return Experts(base.eval().requires_grad_(False), heads, start, tuned, data)


def test_a_merge_at_a_scale_is_the_rule_with_that_scale(experts: Experts) -> None:
    bench = Bench(experts)
    for rule in (Breadcrumbs(0.4, 0.1, scale=1), TaskArithmetic(scale=1)):
        found = bench.at(bench.delta(rule, "abc"), 0.3)
        want = merge_state_dicts(rule.but(scale=0.3), [experts.experts[task] for task in "abc"], experts.base)
        for name, tensor in want.items():
            torch.testing.assert_close(found[name], tensor)


def test_validation_chooses_and_the_test_is_not_looked_at(experts: Experts) -> None:
    rules = growing.METHODS["breadcrumbs"]
    chosen = Bench(experts).choose(rules, "bd")

    def score(rule: Breadcrumbs, scale: float) -> float:
        merged = merge_state_dicts(rule.but(scale=scale), [experts.experts[task] for task in "bd"], experts.base)
        own = experts.individual("validation")
        return sum(experts.accuracy(merged, task, "validation") / own[task] for task in "bd") / 2

    assert chosen.score == pytest.approx(score(chosen.rule, chosen.scale))
    tried = [score(rule, scale) for rule in rules for scale in SCALES[:4]]  # so far no search stops
    assert chosen.score >= max(tried) - 1e-9
    wrong = {task: replace(split, test=replace(split.test, targets={task: 1 - split.test[:][1][task]})) for task, split in
             experts.data.items()}  # fmt: skip
    assert Bench(replace(experts, data=wrong)).choose(rules, "bd") == chosen


def test_what_is_kept_is_compared_with_what_is_chosen_anew(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("METHODS", "ABLATIONS"):
        monkeypatch.setattr(growing, table, {name: rules[-1:] for name, rules in getattr(growing, table).items()})
    measured = grow(experts, seed=3)
    assert measured == grow(experts, seed=3)
    for method in growing.METHODS:
        assert measured[f"{method} frozen 2"] == measured[f"{method} retuned 2"]
        for what in ("frozen", "retuned"):
            later = [measured[f"{method} {what} {size}"] for size in range(3, 7)]
            assert measured[f"{method} {what}"] == pytest.approx(sum(later) / 4)
        assert measured[f"{method} gap"] == pytest.approx(measured[f"{method} retuned"] - measured[f"{method} frozen"])
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(measured)
    assert len(growing.plot({0: measured, 1: measured}).axes) == 3


def test_every_expert_is_once_among_those_that_settings_are_chosen_for(
    experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = []
    choose = Bench.choose

    def watched(self: Bench, rules: list[TaskArithmetic], tasks: tuple[str, ...]) -> growing.Chosen:
        if len(tasks) == 2:
            pairs.append(tasks)
        return choose(self, rules, tasks)

    monkeypatch.setattr(Bench, "choose", watched)
    monkeypatch.setattr(growing, "METHODS", {"task arithmetic": [TaskArithmetic(scale=1)]})
    grow(experts, seed=0)
    assert sorted(task for pair in pairs for task in pair) == list(TASKS)
