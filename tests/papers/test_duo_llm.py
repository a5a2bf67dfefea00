"""Duo-LLM: its arithmetic, its patterns, its oracle, and a small run of the claims."""

import math

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn

import polytask as pt
from polytask.errors import InputError
from polytask.papers.duo_llm import PAPER, DuoLM, SwiGLU, characters, patterns, try_patterns, with_routers
from polytask.papers.duo_llm.model import Attention, rotated
from polytask.route import alternatives_of, choosing, watched_choices


def small(skip: bool = False, big: int = 24, little: int = 4) -> DuoLM:
    torch.manual_seed(0)
    return DuoLM(11, 16, 3, 2, big=big, small=little, skip=skip).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0))
    return rows[:, :-1], rows[:, 1:]


def test_parameters_by_the_papers_figures() -> None:
    with torch.device("meta"):
        model = DuoLM(32_000, 2560, 12, 20, 10_240, 640)
    parts = {"big": 0, "small": 0}
    for layer in alternatives_of(model):
        for name in parts:
            parts[name] += sum(p.numel() for p in layer.choices[name].parameters())
    attention = sum(p.numel() for m in model.modules() if isinstance(m, Attention) for p in m.parameters())
    assert parts == {"big": 943_718_400, "small": 58_982_400} and attention == 314_572_800
    assert sum(p.numel() for p in model.parameters()) == 1_399_257_600
    assert parts["big"] // 12 == 78_643_200 and parts["small"] // 12 == 4_915_200  # multiplications of a token in a layer


def test_how_many_patterns_there_are() -> None:
    assert [len(patterns(12, big)) for big in range(13)] == [math.comb(12, big) for big in range(13)]
    assert len(patterns(12)) == 4096 and len(patterns(6, choices=3)) == 3**6
    assert [math.comb(12, big) for big in range(7)] == [1, 12, 66, 220, 495, 792, 924] and 3**12 == 531_441
    assert len(patterns(4, 2, choices=3)) == math.comb(4, 2) * 4


def test_all_big_is_the_dense_model_bit_for_bit() -> None:
    model = small()
    tokens, _ = batch()
    with torch.no_grad(), choosing(model, [0, 0, 0]):
        routed = model(tokens)
    for layer in model.layers:
        layer.feed_forward = layer.feed_forward.of("big")  # type: ignore[assignment, operator, union-attr]
    with torch.no_grad():
        assert torch.equal(model(tokens), routed)


def test_an_oracle_over_more_patterns_is_never_worse_per_token() -> None:
    tried = try_patterns(small(), *batch())
    assert tried.losses.shape == (8, 4, 8)
    half = try_patterns(small(), *batch(), every=tried.patterns[:4])
    assert (tried.oracle <= half.oracle).all() and (tried.oracle <= tried.having(2).oracle).all()
    assert float(tried.oracle.mean()) <= tried.fixed <= float(tried.losses.mean())
    assert (tried.oracle <= tried.surest).all()
    with_skips = try_patterns(small(skip=True), *batch())
    assert len(with_skips.patterns) == 27 and with_skips.having(0).losses.shape[0] == 8


def test_losses_and_entropies_are_those_of_the_pattern() -> None:
    model, (tokens, targets) = small(), batch()
    tried = try_patterns(model, tokens, targets)
    with torch.no_grad(), choosing(model, tried.patterns[5]):
        chances = model(tokens).softmax(-1)
    torch.testing.assert_close(tried.losses[5], -chances.gather(-1, targets[..., None])[..., 0].log())
    torch.testing.assert_close(tried.entropies[5], torch.distributions.Categorical(chances).entropy())


def test_equal_parts_make_all_patterns_equal() -> None:
    model = small(big=8, little=8)
    for layer in alternatives_of(model):
        layer.choices["small"].load_state_dict(layer.choices["big"].state_dict())
    tried = try_patterns(model, *batch())
    torch.testing.assert_close(tried.losses, tried.losses[:1].expand_as(tried.losses))
    assert float(tried.oracle.mean()) == pytest.approx(tried.fixed) == pytest.approx(float(tried.surest.mean()))


def test_attention_is_causal_and_knows_distances_alone() -> None:
    model = small()
    tokens, _ = batch()
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    with torch.no_grad(), choosing(model, [0, 1, 0]):
        torch.testing.assert_close(model(tokens)[:, :5], model(other)[:, :5])
    query, key = torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8)
    scores = (rotated(query) @ rotated(key).mT)[0, 0]
    for distance in range(6):
        line = scores.diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="expected a multiple of 6"):
        Attention(16, 3)


def test_swiglu_by_hand() -> None:
    made, x = SwiGLU(3, 5), torch.randn(2, 3)
    inner = torch.sigmoid(x @ made.w1.weight.T) * (x @ made.w1.weight.T) * (x @ made.w3.weight.T)
    torch.testing.assert_close(made(x), inner @ made.w2.weight.T)


def test_draws_are_per_token_and_train_both_parts() -> None:
    model = small().train()
    tokens, targets = batch()
    outputs = {model.losses((tokens, {"next": targets}))["next"].item() for _ in range(4)}
    assert len(outputs) == 4
    model.losses((tokens, {"next": targets}))["next"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("budget", [0.2, 0.8])
def test_a_router_keeps_to_its_budget_and_changes_nothing_else(budget: float) -> None:
    rows = (torch.arange(9) + torch.randint(11, (64, 1), generator=torch.Generator().manual_seed(0))) % 11
    data = pt.Examples(rows[:, :-1].contiguous(), {"next": rows[:, 1:].contiguous()})
    model = small()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    routed = with_routers(model, data, {0: budget}, steps=60, alpha=30.0, batch_size=32)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    after = routed.state_dict()
    assert all(torch.equal(after[name], p) for name, p in before.items()) and len(after) == len(before) + 3
    assert all(layer.sharpness == 10 for layer in alternatives_of(routed))
    with torch.no_grad(), watched_choices() as chances:
        routed(rows[:, :-1])
    used = torch.stack([(layer.argmax(-1) == 0).float().mean() for layer in chances]).mean()
    assert abs(float(used) - budget) < 0.25
    assert all(isinstance(layer.router, nn.Linear) for layer in alternatives_of(routed))


@pytest.mark.soak
def test_a_small_run_of_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_with(characters.FILES)
    for name, value in {"STEPS": 3, "ROUTER_STEPS": 2, "SEQUENCES": 2, "WIDTH": 16, "BIG": 16, "SMALL": 4}.items():
        monkeypatch.setattr(characters, name, value)
    measured = characters.measure(0, data)
    assert all(math.isfinite(value) for value in measured.values())
    assert all({claim.method, claim.baseline} <= set(measured) for claim in PAPER.claims)
    for big in range(7):
        assert measured[f"oracle at {big}"] <= measured[f"random at {big}"] <= measured[f"mean at {big}"] + 1e-6
        assert measured[f"oracle at {big}"] <= measured[f"fixed at {big}"] + 1e-6
    assert measured["oracle at 6"] == pytest.approx(measured["fixed at 6"])
    assert 0 <= measured["router layers at 3"] <= 6
    assert characters.between({f"fixed at {i}": 10.0 - i for i in range(7)}, 2.25) == pytest.approx(7.75)
    assert characters.between({f"fixed at {i}": 10.0 - i for i in range(7)}, 6.0) == pytest.approx(4.0)
    assert PAPER.plot is not None and PAPER.plot({0: measured, 1: measured}).axes
