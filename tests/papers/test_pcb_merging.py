"""PCB-Merging: what the paper's package adds to the rule (tests/merge/rules/test_pcb.py has its closed forms)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polytask.data import Examples
from polytask.errors import InputError
from polytask.merge import PCB, TIES, TaskArithmetic, merge_state_dicts
from polytask.papers._experts import Experts, Split
from polytask.papers.pcb_merging import PAPER, compete, search_multipliers, shares
from polytask.papers.pcb_merging import glyphs as claim

Weights = dict[str, Tensor]


def make_models(count: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Weights, list[Weights]]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Weights:
        shapes = {"a": (20, 31), "b": (17,), "c": ()}
        return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}

    base = draw() | {"steps": torch.tensor(3)}
    moves = [draw() for _ in range(count)]
    return base, [{n: t + 0.1 * move[n] if n in move else t for n, t in base.items()} for move in moves]


@pytest.mark.parametrize("rule", [PCB(), PCB(ratio=0.5, scale=0.3, agreement="pairs"), PCB(scope="tensor")])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.8, 1.3, 0.5]])
def test_the_merge_is_linear_in_the_multipliers(rule: PCB, weights: list[float]) -> None:
    base, models = make_models()
    merged = merge_state_dicts(rule.but(weight=weights), models, base)
    parts = shares(models, base, rule.but(weight=7.0))
    for name in ("a", "b", "c"):
        total = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(base[name] + total, merged[name], rtol=1e-5, atol=1e-6)
    assert all(part.keys() == {"a", "b", "c"} for part in parts)


def test_what_is_scored_is_what_is_merged() -> None:
    """The weights that the callback gets are those of a merge with the multipliers, whole numbers and precision included."""
    base, models = make_models(dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in base.items()}
    rule, scored = PCB(ratio=0.4), list[Weights]()

    def keep(weights: Weights) -> float:
        scored.append(weights)
        return 0.0

    found = search_multipliers(keep, models, base, rule, budget=5)
    for (settings, _), weights in zip(found.tried, scored, strict=True):
        expected = merge_state_dicts(rule.but(**settings), models, base)
        for name, tensor in weights.items():
            assert tensor.dtype == base[name].dtype
            torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)
        assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("sampler", ["evolution", "optuna"])
def test_multipliers_are_found(sampler: str, tmp_path: Path) -> None:
    if sampler == "optuna":
        pytest.importorskip("optuna")
    base, models = make_models()
    wanted = merge_state_dicts(PCB(weight=[1.25, 0.85, 1.1]), models, base)

    def near(merged: Weights) -> float:
        return -float(sum((merged[name] - wanted[name]).square().sum() for name in "abc"))

    found = search_multipliers(near, models, base, sampler=sampler, path=tmp_path / "journal")
    assert len(found.tried) == 100
    assert found.tried[0][0] == {"weight": [1.0, 1.0, 1.0]}
    assert all(0.8 <= w <= 1.3 for settings, _ in found.tried for w in settings["weight"])
    close = 0.03 if sampler == "evolution" else 0.15
    assert found.best["weight"] == pytest.approx([1.25, 0.85, 1.1], abs=close)
    again = search_multipliers(
        lambda merged: pytest.fail("evaluated again"), models, base, sampler=sampler, path=tmp_path / "journal"
    )
    assert again == found


def test_the_search_begins_at_one() -> None:
    base, models = make_models()
    with pytest.raises(InputError, match=r"multipliers from 1.1 to 2: expected a range with 1 in it"):
        search_multipliers(lambda merged: 0.0, models, base, low=1.1, high=2)


# The ablation


@pytest.mark.parametrize(("ratio", "outliers"), [(0.1, 0.01), (0.05, 1e-4), (0.4, 0.0), (1.0, 0.3)])
def test_with_all_steps_it_is_the_rule(ratio: float, outliers: float) -> None:
    base, models = make_models(4, torch.float64)
    vectors = torch.stack([torch.cat([(m[n] - base[n]).flatten() for n in "abc"]) for m in models])
    merged = merge_state_dicts(PCB(outliers, ratio), models, base, torch.float64)
    delta = torch.cat([(merged[n] - base[n]).flatten() for n in "abc"])
    torch.testing.assert_close(compete(vectors, ratio, outliers), delta, rtol=1e-9, atol=1e-12)


def test_each_step_left_out() -> None:
    """By hand, in five coordinates of which the best two of each task stay, the lower of them with strength 0."""
    rows = torch.tensor([[0.5, -0.2, 0.1, 0, 0.9], [0.4, 0.3, -0.1, 0.2, -0.8]], dtype=torch.float64)
    expected = {
        None: [0.45, 0, 0, 0, 0],  # both agree on the first alone
        "intra": [0.45, 0, 0, 0, 0],
        "inter": [0, 0, 0, 0, (0.9 - 0.8) / 2],  # the largest of both, whatever their signs
        "rescale": [0.45, 0, 0, 0, 0],
    }
    for step, merged in expected.items():
        torch.testing.assert_close(compete(rows, 0.4, 0, step), torch.tensor(merged, dtype=torch.float64))


def test_without_rescaling_what_is_left_is_the_mean() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(3, 200, dtype=torch.float64)
    # The score of each, once more: what is above the rank at 1 - ratio is left.
    sizes = (vectors.abs() - vectors.abs().amin(1, keepdim=True)) / (vectors.abs().amax(1) - vectors.abs().amin(1))[:, None]
    scores = (3 * sizes**2).exp() * (vectors * vectors.sum(0)).tanh()
    left = scores > scores.sort(1).values[:, int(200 * 0.7), None]
    assert left.sum(1).tolist() == [200 - int(200 * 0.7) - 1] * 3
    mean = (left * vectors).sum(0) / left.sum(0).clamp(min=1e-12)
    torch.testing.assert_close(compete(vectors, 0.3, 0.0, "rescale"), mean)


def test_zero_vectors_and_unknown_steps() -> None:
    assert torch.equal(compete(torch.zeros(2, 9)), torch.zeros(9))
    with pytest.raises(InputError, match="without 'drop': expected 'intra', 'inter', 'rescale' or None"):
        compete(torch.ones(2, 3), without="drop")  # type: ignore[arg-type]


# The claims' protocol, on experts of three small tasks.


@pytest.fixture
def experts() -> Experts:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).requires_grad_(False)
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    heads = {task: nn.Linear(8, 3) for task in "abc"}
    tuned = {task: {name: t + 0.3 * torch.randn_like(t) for name, t in base.items()} for task in heads}
    data = {}
    for task in heads:
        parts = {}
        for part in ("train", "validation", "test"):
            inputs = torch.randn(120, 6)
            weights = torch.func.functional_call(encoder, tuned[task], (inputs,))
            parts[part] = Examples(inputs, {task: heads[task](weights).argmax(1)})
        data[task] = Split(classes=3, **parts)
    return Experts(encoder, heads, base, tuned, data)


def test_validation_chooses_and_the_test_is_reported(experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BUDGET", 6)
    monkeypatch.setattr(claim, "SCALES", (0.1, 0.3, 0.5, 1.0, 2.0))
    measured = claim.compare(experts, 0)
    assert measured == claim.compare(experts, 0)
    assert measured["individual"] == 100 and all(0 <= value <= 100 for value in measured.values())
    for one in PAPER.claims:
        assert set(one.pair) <= set(measured)

    def at(rule: object, part: str) -> float:
        return experts.mean(merge_state_dicts(rule, experts.models, experts.base), part)

    # Again by merging with each setting, where the protocol scales a merge at scale 1.
    scores = {scale: at(TaskArithmetic(scale=scale), "validation") for scale in claim.SCALES}
    best = max(scores, key=scores.__getitem__)
    assert measured["task arithmetic scale"] == best
    assert measured["task arithmetic"] == pytest.approx(at(TaskArithmetic(scale=best), "test"), abs=0.3)
    assert measured["task arithmetic"] == measured[f"task arithmetic at {best:g}"]
    for name, rules in (
        ("ties", [TIES(density=d) for d in claim.DENSITIES]),
        ("pcb", [PCB(ratio=r) for r in claim.RATIOS]),
        ("pcb pairs", [PCB(ratio=r, agreement="pairs") for r in claim.RATIOS]),
    ):
        pairs = [(at(rule.but(scale=s), "validation"), rule.but(scale=s)) for rule in rules for s in claim.SCALES]
        chosen = max(pairs, key=lambda pair: pair[0])[1]
        assert measured[f"{name} scale"] == chosen.scale
        assert measured[name] == pytest.approx(at(chosen, "test"), abs=0.3)
    assert measured["pcb 1"] == at(PCB(), "test")
    for step in ("intra", "inter", "rescale"):
        assert measured[f"without {step} scale"] in claim.SCALES

    left, right = claim.plot({0: measured, 1: measured}).axes
    assert len(left.get_yticks()) == len(claim.LABELS)
    assert len(right.get_lines()) == len(claim.CURVES) + 1
