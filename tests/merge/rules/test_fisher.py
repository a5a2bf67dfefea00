from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.rules.models import Weights, assert_close, assert_same, make_models, merge
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.source import InMemory
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average
from polytask.merge.rules.fisher import Fisher, fisher_diagonal, merge_fisher


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def by_loops(model: nn.Module, inputs: Tensor) -> Weights:
    """One example and one label at a time, by plain autograd."""
    model.eval()
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in inputs:
        log_p = model(example[None])[0].log_softmax(0)
        for y in range(len(log_p)):
            slopes = torch.autograd.grad(log_p[y], list(model.parameters()), retain_graph=True)
            for name, slope in zip(found, slopes, strict=True):
                found[name] += log_p[y].exp().detach() * slope.square() / len(inputs)
    return found


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_diagonal_is_exact(at_once: int) -> None:
    model, inputs = network(), torch.randn(10, 4, dtype=torch.float64)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = fisher_diagonal(model, [inputs[:7], inputs[7:]], at_once=at_once)
    assert model.training and model[3].training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert_close(found, by_loops(model, inputs), 1e-10, 1e-14)


def test_logistic_regression_has_a_closed_form() -> None:
    """With scores (0, w x), F = p (1 - p) x^2."""

    class Logistic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.7))
            self.unused = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": torch.stack([torch.zeros(len(x)), self.w * x], 1)}

    x = torch.tensor([-1.0, 0.5, 2.0])
    found = fisher_diagonal(Logistic(), [{"x": x}], logits=lambda output: output["scores"])
    p = torch.sigmoid(0.7 * x)
    assert set(found) == {"w"}
    torch.testing.assert_close(found["w"], (p * (1 - p) * x**2).mean())


def test_it_is_the_mean_over_examples() -> None:
    model, inputs = network(), torch.randn(6, 4, dtype=torch.float64)
    assert_close(fisher_diagonal(model, [inputs]), fisher_diagonal(model, [inputs, inputs]), 1e-12, 1e-15)


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 4).double()]])
def test_no_examples(batches: list[Tensor]) -> None:
    with pytest.raises(InputError, match="no examples"):
        fisher_diagonal(network(), batches)


def test_scores_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"shape \[3\], expected \(1, classes\)"):
        fisher_diagonal(network(), [torch.zeros(2, 4).double()], logits=lambda output: output[0])


def fishers(models: list[Weights], seed: int = 0) -> list[Weights]:
    generator = torch.Generator().manual_seed(seed)
    return [{n: torch.rand(t.shape, generator=generator) + 0.01 for n, t in m.items()} for m in models]


@pytest.mark.parametrize("normalize", [True, False])
def test_merging(normalize: bool) -> None:
    _, models = make_models()
    found, weights = fishers(models), [1.0, 2.0, 0.5]
    sizes = [math.sqrt(sum(float(t.double().square().sum()) for t in f.values())) if normalize else 1 for f in found]
    expected = {}
    for name in models[0]:
        parts = [w * (f[name].double() / s).clamp(min=1e-6) for w, f, s in zip(weights, found, sizes, strict=True)]
        total = sum(p * m[name].double() for p, m in zip(parts, models, strict=True))
        expected[name] = total / sum(parts)
    assert_close(merge_fisher(models, found, weights, normalize=normalize), expected)


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 9000),
    threads=st.sampled_from([1, 3]),
    chunk=st.sampled_from([4096, 8192, 12288]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    normalize=st.booleans(),
)
def test_neither_chunks_nor_threads_change_a_bit(
    width: int, threads: int, chunk: int, dtype: torch.dtype, normalize: bool
) -> None:
    _, models = make_models(shapes={"a": (3, width), "b": (5,), "c": (), "none measured": (4097,)})
    found = [{name: t for name, t in f.items() if name != "none measured"} for f in fishers(models)]
    rule = Fisher([1, 2, 0.5], normalize=normalize)

    def merged(chunk: int, threads: int) -> Weights:
        return merge(rule, models, None, chunk, dtype, threads, Measured(map(InMemory, found)))

    assert_same(merged(chunk, threads), merged(2**20, 1))


def test_very_small_values_are_not_lost() -> None:
    """In the precision of the merge their squares would be 0."""
    models = [{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([2.0, 7.0])}]
    tiny = [{"w": torch.tensor([1e-30, 0])}, {"w": torch.tensor([0, 1e-25])}]
    found = merge(Fisher(), models, None, measured=Measured(map(InMemory, tiny)))
    torch.testing.assert_close(found["w"], torch.tensor([1.0, 7.0]), atol=1e-4, rtol=0)


def test_equal_fishers_average() -> None:
    _, models = make_models()
    average = merge_state_dicts(Average(), models)
    found = fishers(models)[0]
    assert_close(merge_fisher(models, [found] * 3), average)
    zero = {name: torch.zeros_like(t) for name, t in found.items()}
    assert_close(merge_fisher(models, [zero] * 3), average)
    assert_close(merge_fisher(models, [{}] * 3), average)
    scaled = [{name: c * t for name, t in found.items()} for c in (1, 10, 1e-3)]
    assert_close(merge_fisher(models, scaled), average)  # normalised, a model's own scale does not matter


def test_what_a_model_depends_on_is_its_own() -> None:
    models = [{"w": torch.tensor([1.0, 5.0]), "n": torch.tensor(3)}, {"w": torch.tensor([2.0, 7.0]), "n": torch.tensor(4)}]
    found = merge_fisher(models, [{"w": torch.tensor([1.0, 0])}, {"w": torch.tensor([0, 1.0])}])
    torch.testing.assert_close(found["w"], torch.tensor([1.0, 7.0]), atol=1e-4, rtol=0)
    assert int(found["n"]) == 3
    assert_close(merge_fisher([{"w": models[0]["w"]}], [{"w": torch.ones(2)}]), {"w": models[0]["w"]})


def test_bfloat16() -> None:
    _, models = make_models(dtype=torch.bfloat16)
    found = merge_fisher(models, fishers(models))
    assert all(t.dtype == torch.bfloat16 and bool(t.isfinite().all()) for t in found.values())


@pytest.mark.parametrize(
    ("fisher", "message"),
    [
        ({"v": torch.ones(2)}, "tensor 'v'"),
        ({"w": torch.ones(3)}, r"model 2: tensor 'w': shape \[3\], expected \[2\]"),
        ({"w": torch.tensor([1, -1.0])}, "below 0"),
        ({"w": torch.tensor([1, math.nan])}, "not finite"),
        ({}, "no tensor 'w'"),
    ],
)
def test_fishers_that_do_not_fit(fisher: Weights, message: str) -> None:
    models = [{"w": torch.ones(2)}] * 2
    with pytest.raises(InputError, match=message):
        merge_fisher(models, [{"w": torch.ones(2)}, fisher])


def test_bad_settings() -> None:
    models, ones = [{"w": torch.ones(2)}] * 2, [{"w": torch.ones(2)}] * 2
    for weight in ([1, -1], 0.0):
        with pytest.raises(InputError, match="weights"):
            merge_fisher(models, ones, weight)
    with pytest.raises(InputError, match="floor 0"):
        merge_fisher(models, ones, floor=0)
    with pytest.raises(InputError, match="1 Fisher diagonals, expected one for each of 2 models"):
        merge_fisher(models, ones[:1])
    with pytest.raises(InputError, match=r"model 2: tensor 'w' has shape \[3\], expected \[2\]"):
        merge_fisher([*models[:1], {"w": torch.ones(3)}], ones)
    with pytest.raises(InputError, match="model 2: tensor 'v' is not in every model"):
        merge_fisher([*models[:1], {"v": torch.ones(2)}], ones)
    with pytest.raises(InputError, match="no models"):
        merge_fisher([], [])
