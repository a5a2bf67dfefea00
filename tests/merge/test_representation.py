from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.merge.representation import linear_cka, representations


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_kernels(x: Tensor, y: Tensor) -> float:
    """CKA by centred Gram matrices."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, l = (centre @ (v @ v.T).numpy() @ centre for v in (x, y))  # noqa: E741
    return float(np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l)))


def by_quadruples(x: Tensor, y: Tensor) -> float:
    """Debiased CKA by the unbiased HSIC of Song et al. (2012), equation 5, as it is written."""

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        n, one = len(k), np.ones(len(k))
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
        return float((np.trace(k @ l) + sums) / (n * (n - 3)))

    k, l = ((v @ v.T).numpy() for v in (x, y))  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize(("n", "p", "q"), [(12, 30, 40), (200, 5, 3), (20, 20, 7), (5, 1, 1)])
def test_cka_is_that_of_kernels(n: int, p: int, q: int) -> None:
    x, y = draw(n, p) + 3, draw(n, q, seed=1)
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(by_kernels(x, y), rel=1e-9)
    assert linear_cka(x, y, debiased=True) == pytest.approx(by_quadruples(x, y), rel=1e-8)


@pytest.mark.parametrize("debiased", [False, True])
def test_rotations_scales_and_shifts_change_nothing(debiased: bool) -> None:
    x, y = draw(30, 8), draw(30, 6, seed=1)
    turn = torch.linalg.qr(draw(8, 8, seed=2)).Q
    assert linear_cka(x, x @ turn * 7 - 4, debiased) == pytest.approx(1)
    assert linear_cka(x @ turn * 0.1, y + 2, debiased) == pytest.approx(linear_cka(x, y, debiased))
    assert linear_cka(x, y, debiased) == pytest.approx(linear_cka(y, x, debiased))
    stretched = x @ torch.diag(torch.logspace(0, 2, 8, dtype=torch.float64))
    assert linear_cka(x, stretched) < 0.9


def test_only_the_debiased_one_is_about_0_for_unrelated_features() -> None:
    pairs = [(draw(20, 200, seed=s), draw(20, 200, seed=100 + s)) for s in range(20)]
    assert np.mean([linear_cka(x, y) for x, y in pairs]) > 0.8
    assert abs(np.mean([linear_cka(x, y, debiased=True) for x, y in pairs])) < 0.05


def test_a_constant_representation_and_wrong_shapes() -> None:
    assert math.isnan(linear_cka(torch.ones(5, 3), draw(5, 3)))
    with pytest.raises(InputError, match=r"shape \[5, 3\] and \[4, 3\]"):
        linear_cka(draw(5, 3), draw(4, 3))
    with pytest.raises(InputError, match="3 inputs, expected at least 4"):
        linear_cka(draw(3, 3), draw(3, 3), debiased=True)


class Network(nn.Module):
    """Embeds tokens, mixes them, and gives a mapping, as `transformers` do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5))
        self.pair = nn.LSTM(6, 4, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Mapping[str, Tensor]:
        mixed = self.mix(self.embed(ids))
        return {"last": self.pair(mixed)[0], "mixed": mixed}


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"one": Network(), "two": Network(), "merged": Network()}


IDS = torch.arange(60).view(12, 5) % 11


@pytest.mark.parametrize("batch", [4, 12])
@pytest.mark.parametrize("tokens", [False, True])
def test_modules_of_several_models_are_compared(networks: dict[str, nn.Module], batch: int, tokens: bool) -> None:
    networks["one"].train()
    found = representations(
        networks, [{"ids": ids} for ids in IDS.split(batch)], ["embed", "mix.0", "pair", ""], tokens=tokens
    )
    assert networks["one"].training and not networks["one"].embed._forward_hooks
    assert found.names == ("one", "two", "merged") and list(found.cka) == ["embed", "mix.0", "pair", ""]
    features = [n.embed(IDS).detach() for n in networks.values()]  # type: ignore[operator]
    x, y = (f.reshape(-1, 6) if tokens else f.reshape(12, -1) for f in features[:2])
    assert float(found.cka["embed"][0, 1]) == pytest.approx(linear_cka(x, y))
    for matrix in found.cka.values():
        torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(matrix, matrix.T)
        assert 0 < float(matrix[0, 1]) < 1


def test_findings_are_written_and_drawn(networks: dict[str, nn.Module]) -> None:
    with torch.no_grad():
        networks["two"].mix[0].weight.zero_()  # type: ignore[index, operator, union-attr]
    found = representations(networks, [IDS], ["embed", "mix.0"])
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["cka"]["mix.0"][0][1] is None
    found.plot().savefig("/dev/null", format="png")
    with pytest.raises(InputError, match="did you mean 'merged'"):
        found.plot("mergd")


@pytest.mark.parametrize(
    ("batches", "module", "said"),
    [
        ([IDS], "mix.9", "model 'one': no module 'mix.9'"),
        ([IDS], "unused", "model 'one': module 'unused' is not called"),
        ([], "embed", "no inputs"),
    ],
)
def test_mistakes_are_named(networks: dict[str, nn.Module], batches: Any, module: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        representations(networks, batches, [module])
    assert not networks["one"].unused._forward_hooks
