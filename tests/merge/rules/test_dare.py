from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.rules.models import assert_close, assert_same, deltas, make_models, merge

from polytask.errors import InputError
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules._random import keep
from polytask.merge.rules.dare import DARE
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES


@given(
    st.one_of(st.floats(0, 1), st.just("each")),
    st.lists(st.integers(0, 300), max_size=4).map(sorted),
    st.integers(0, 2**70),
    st.text(max_size=8),
)
def test_draws_do_not_depend_on_pieces(density: float | str, cuts: list[int], seed: int, name: str) -> None:
    chances = torch.linspace(0, 1, 300) if density == "each" else None
    whole = keep(density if chances is None else chances, 300, seed, name, 1, 0)  # type: ignore[arg-type]
    pieces = [
        keep(density if chances is None else chances[a:b], b - a, seed, name, 1, a)  # type: ignore[arg-type]
        for a, b in zip([0, *cuts], [*cuts, 300], strict=True)
    ]
    assert torch.equal(torch.cat(pieces), whole)


def test_draws_have_the_density() -> None:
    n = 100_000
    for density in (0.1, 0.5, 0.93):
        mean = keep(density, n, 0, "w", 0, 0).double().mean()
        assert abs(float(mean) - density) < 4 * (density * (1 - density) / n) ** 0.5
    assert not bool(keep(0.0, n, 0, "w", 0, 0).any())


def test_draws_differ() -> None:
    """By seed, name, model and place: half of the entries are alike by chance."""
    one = keep(0.5, 10_000, 0, "w", 0, 0)
    others = [keep(0.5, 10_000, *where) for where in ((1, "w", 0, 0), (0, "v", 0, 0), (0, "w", 1, 0), (0, "w", 0, 10_000))]
    for other in others:
        assert abs(float((one == other).double().mean()) - 0.5) < 0.02


@pytest.mark.parametrize("rescale", ["density", "none"])
def test_dare_is_masked_task_arithmetic(rescale: str) -> None:
    base, models = make_models()
    densities, weights = [0.1, 0.5, 1.0], [1.0, -2.0, 0.5]
    expected = {}
    for name, tau in deltas(base, models).items():
        total = torch.zeros_like(base[name]).double()
        for k, (density, weight) in enumerate(zip(densities, weights, strict=True)):
            mask = keep(density, tau[k].numel(), 7, name, k, 0).view(base[name].shape) if density < 1 else 1
            total += weight * tau[k] * mask / (density if rescale == "density" else 1)
        expected[name] = base[name] + 0.6 * total
    rule = DARE(densities, 0.6, weights, rescale=rescale, seed=7)  # type: ignore[arg-type]
    for chunk in (4096, 2**16):
        assert_close(merge(rule, models, base, chunk), expected)


def test_dare_before_ties() -> None:
    """What is left is merged as TIES does without trimming."""
    base, models = make_models()
    dropped = [
        {
            name: base[name]
            + (m[name] - base[name]) * keep(0.4, base[name].numel(), 0, name, k, 0).view(base[name].shape) / 0.4
            for name in base
        }
        for k, m in enumerate(models)
    ]
    weights = [1, 2, 0.5]
    expected = merge_state_dicts(TIES(1, 0.9, weights), dropped, base)
    assert_close(merge_state_dicts(DARE(0.4, 0.9, weights, elect=True), models, base), expected, atol=1e-5)


def test_the_mean_is_task_arithmetic() -> None:
    base, models = make_models(count=2, shapes={"w": (6, 5)})
    seeds, density = 4000, 0.1
    draws = torch.stack([merge_state_dicts(DARE(density, seed=s), models, base)["w"].double() for s in range(seeds)])
    expected = merge_state_dicts(TaskArithmetic(1), models, base)["w"].double()
    error = draws.std(0) / seeds**0.5
    # 30 entries, none of which may be 3.9 standard errors off: 1 in 10,000 for each.
    assert float(((draws.mean(0) - expected) / error).abs().max()) < 3.9
    assert float((draws.mean() - expected.mean()).abs()) < 3 * float(draws.mean((1, 2)).std()) / seeds**0.5


def test_the_ends() -> None:
    base, models = make_models()
    assert_same(merge_state_dicts(DARE(0), models, base), base)
    assert_close(merge_state_dicts(DARE(1, 0.3), models, base), merge_state_dicts(TaskArithmetic(0.3), models, base))
    assert_same(merge_state_dicts(DARE(0.3), models, base), merge_state_dicts(DARE(0.3), models, base))


@pytest.mark.parametrize("settings", [{"density": 1.1}, {"density": [0.5, -0.1]}, {"seed": -1}, {"rescale": "norm"}])
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        DARE(**settings)  # type: ignore[arg-type]
