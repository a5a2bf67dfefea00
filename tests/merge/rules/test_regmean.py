from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from tests.merge.rules.models import Weights, assert_close, assert_same, merge
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.run import Merge
from polytask.merge.engine.source import InMemory
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules.average import Average
from polytask.merge.rules.regmean import ROWS, Gram, RegMean, as_source, gram_matrices, merge_regmean, solve


class Conv1D(nn.Module):
    """A linear layer as transformers has it in GPT-2: its weight lies as (in, out)."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out) * 0.02), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Network(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.second, self.unused = nn.Linear(4, 6), nn.LayerNorm(6), Conv1D(6, 6), nn.Linear(2, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.second(self.norm(self.first(x))))


def inputs(seed: int, n: int = 50, width: int = 4) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gram_matrices() -> None:
    model, x = Network(0), inputs(0, 30).view(5, 6, 4)
    model.train()
    found = gram_matrices(model, [x[:2], x[2:]])
    assert set(found) == {"first.weight", "second.weight"}
    flat = x.reshape(-1, 4)
    torch.testing.assert_close(found["first.weight"].matrix, flat.T @ flat / 30)
    assert found["first.weight"].rows == 30 and not found["first.weight"].inputs_first
    with torch.no_grad():
        once = model.norm(model.first(flat))
        seen = torch.cat([once, model.second(once)])  # called twice
    torch.testing.assert_close(found["second.weight"].matrix, seen.T @ seen / 60)
    assert found["second.weight"].rows == 60 and found["second.weight"].inputs_first
    assert model.training and not model.first._forward_pre_hooks
    assert_named = gram_matrices(model, [{"x": x}])
    torch.testing.assert_close(assert_named["first.weight"].matrix, found["first.weight"].matrix)


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = Network(0)
    with pytest.raises(RuntimeError):
        gram_matrices(model, [inputs(0, width=5)])
    assert not model.first._forward_pre_hooks and model.training


@pytest.mark.parametrize("shrink", [0.0, 0.5, 0.9, 1.0])
def test_merging(shrink: float) -> None:
    networks = [Network(k) for k in range(3)]
    models = [n.state_dict() for n in networks]
    grams = [gram_matrices(n, [inputs(k)]) for k, n in enumerate(networks)]
    expected = merge_state_dicts(Average(), models, None, torch.float64)
    for name in ("first.weight", "second.weight"):
        above = below = 0
        for model, own in zip(models, grams, strict=True):
            g = own[name].matrix
            g = shrink * g + (1 - shrink) * g.diag().diag()
            weight = model[name].T if name == "first.weight" else model[name]
            above, below = above + g @ weight, below + g
        found = torch.linalg.inv(below) @ above
        expected[name] = found.T if name == "first.weight" else found
    assert_close(merge_regmean(models, grams, shrink), expected, 1e-6, 1e-8)


def test_it_is_the_least_squares_solution() -> None:
    """No other layer is nearer to what the layers gave on their inputs."""
    xs, ws = [inputs(k) for k in range(2)], [inputs(9 + k, 4, 3) for k in range(2)]
    found = solve(ws, [x.T @ x for x in xs], 1.0)
    stacked = torch.linalg.lstsq(torch.cat(xs), torch.cat([x @ w for x, w in zip(xs, ws, strict=True)])).solution
    torch.testing.assert_close(found, stacked, rtol=1e-6, atol=1e-8)


OUT = 2 * ROWS + 3


def layers() -> tuple[list[Weights], list[dict[str, Gram]]]:
    """Layers of both kinds with more than two blocks of rows, and tensors of which nothing was measured."""
    models = [{"w": inputs(k, OUT, 7), "v": inputs(9 + k, 7, OUT), "bias": inputs(5 + k, 1, 4097)[0]} for k in range(3)]
    grams = []
    for k in range(3):
        x, y = inputs(20 + k, 30, 7), inputs(30 + k, 30, 7)
        grams.append({"w": Gram(x.T @ x / 30, 30), "v": Gram(y.T @ y / 30, 30, inputs_first=True)})
    return models, grams


def test_layers_of_many_rows() -> None:
    models, grams = layers()
    found = merge_regmean(models, grams, 0.8)
    for name in ("w", "v"):
        above, below = torch.zeros(7, OUT).double(), torch.zeros(7, 7).double()
        for model, own in zip(models, grams, strict=True):
            g = own[name].matrix
            g = 0.8 * g + 0.2 * g.diag().diag()
            above, below = above + g @ (model[name].T if name == "w" else model[name]), below + g
        expected = torch.linalg.solve(below, above)
        torch.testing.assert_close(found[name].T if name == "w" else found[name], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["bias"], sum(m["bias"] for m in models) / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_chunks_nor_threads_change_a_bit(dtype: torch.dtype) -> None:
    models, grams = layers()

    def merged(chunk: int, threads: int) -> Weights:
        return merge(RegMean(), models, None, chunk, dtype, threads, Measured(map(as_source, grams)))

    expected = merged(2**20, 1)
    for chunk, threads in ((4096, 1), (8192, 3), (2**20, 3)):
        assert_same(merged(chunk, threads), expected)


class Watched(InMemory):
    """Counts the matrices that it has given and that are still there."""

    there = most = given = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        matrix = np.array(super().read(name, start, stop))
        cls = Watched
        cls.there, cls.given = cls.there + 1, cls.given + 1
        cls.most = max(cls.most, cls.there)
        weakref.finalize(matrix, self.gone)
        return torch.from_numpy(matrix)

    @staticmethod
    def gone() -> None:
        Watched.there -= 1


def test_one_gram_matrix_is_in_memory_at_a_time() -> None:
    models, grams = layers()
    Watched.there = Watched.most = Watched.given = 0
    measured = Measured(Watched(source.tensors, source.metadata) for source in map(as_source, grams))
    merge(RegMean(), models, None, dtype=torch.float64, measured=measured)
    assert Watched.most == 1 and Watched.there == 0
    assert Watched.given == 2 * 3 * (1 + 3)  # for the factor, and for each block of rows


def test_the_memory_that_is_named_grows_with_what_is_held() -> None:
    models, grams = layers()
    shapes = {name: tuple(t.shape) for name, t in models[0].items()}

    def memory(grams: list[dict[str, Gram]]) -> int:
        return Merge(RegMean(), [*map(InMemory, models)], None, shapes, measured=Measured(map(as_source, grams))).memory()

    wide = [{"v": Gram(torch.eye(OUT), 1)} for _ in grams]  # v as (out, in): its Gram matrix is large
    assert memory(wide) - memory([{}] * 3) >= 3 * 8 * OUT**2
    assert memory(grams) < memory(wide)


def test_equal_grams_average() -> None:
    networks = [Network(k) for k in range(3)]
    grams = gram_matrices(networks[0], [inputs(0)])
    models = [n.state_dict() for n in networks]
    assert_close(merge_regmean(models, [grams] * 3), merge_state_dicts(Average(), models), 1e-6, 1e-7)
    assert_close(merge_regmean(models[:1], [grams]), models[0], 1e-9, 1e-12)
    assert_close(merge_regmean(models, [{}] * 3), merge_state_dicts(Average(), models, None, torch.float64), 1e-12, 1e-12)


@pytest.mark.parametrize("shrink", [0.9, 1.0])
def test_disjoint_inputs_recover_each_block(shrink: float) -> None:
    x, y = inputs(0), inputs(1)
    x[:, 2:], y[:, :2] = 0, 0
    ws = [inputs(5, 4, 3), inputs(6, 4, 3)]
    found = solve(ws, [x.T @ x, y.T @ y], shrink)
    torch.testing.assert_close(found[:2], ws[0][:2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[2:], ws[1][2:], rtol=1e-6, atol=1e-7)


def test_inputs_that_nothing_saw_are_averaged() -> None:
    x = inputs(0)
    x[:, 3] = 0
    ws = [inputs(5, 4, 3), inputs(6, 4, 3)]
    for gram in (x.T @ x, torch.zeros(4, 4).double()):
        found = solve(ws, [gram, gram], 0.9)
        torch.testing.assert_close(found, (ws[0] + ws[1]) / 2, rtol=1e-6, atol=1e-7)


def test_fewer_inputs_than_columns() -> None:
    xs, ws = [inputs(k, 3, 20) for k in range(2)], [inputs(9 + k, 20, 3) for k in range(2)]
    found = solve(ws, [x.T @ x for x in xs], 1.0)
    assert bool(found.isfinite().all())
    for x, w in zip(xs, ws, strict=True):
        torch.testing.assert_close(x @ found, x @ w, rtol=1e-3, atol=1e-3)


def test_bfloat16_and_whole_numbers() -> None:
    models = [{"w": torch.randn(3, 4).bfloat16(), "n": torch.tensor(k)} for k in range(2)]
    grams = [{"w": Gram(x.T @ x, 50)} for x in (inputs(0), inputs(1))]
    found = merge_regmean(models, grams)
    assert found["w"].dtype == torch.bfloat16 and found["w"].shape == (3, 4) and int(found["n"]) == 0


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        ({"v": Gram(torch.eye(4), 1)}, "'v' is not in every set"),
        ({"w": Gram(torch.eye(3), 1)}, r"shape \[3, 3\], expected \[4, 4\]"),
        ({"w": Gram(torch.eye(4) * float("inf"), 1)}, "finite"),
        ({"w": Gram(torch.eye(4), 1, inputs_first=True)}, "no such matrix"),
        ({"w": Gram(-torch.eye(4), 1)}, "not positive semidefinite"),
    ],
)
def test_grams_that_do_not_fit(gram: dict[str, Gram], message: str) -> None:
    models: list[Weights] = [{"w": torch.ones(3, 4)}] * 2
    good = {"w": Gram(torch.eye(4).double() * (0.5 if "semi" in message else 1), 1)}
    with pytest.raises(InputError, match=message):
        merge_regmean(models, [good, gram])
    with pytest.raises(InputError, match="shrink 2"):
        merge_regmean(models, [good, good], 2)
    with pytest.raises(InputError, match="1 sets of Gram matrices"):
        merge_regmean(models, [good])
