"""Rows of coefficients: against scikit-learn, against an optimizer, and with losses that are not known."""

import numpy as np
import pytest
import torch

from polytask.errors import InputError
from polytask.route.regression import fit_hidden, fit_rows, predict_rows


@pytest.mark.parametrize("shape", [(40, 7), (12, 30)])
@pytest.mark.parametrize("weighed", [False, True])
def test_squared_error_is_scikit_learns_ridge(shape: tuple[int, int], weighed: bool) -> None:
    from sklearn.linear_model import Ridge

    torch.manual_seed(0)
    x, y = torch.randn(shape).double() + 3, torch.randn(shape[0], 3).double()
    w = torch.rand(shape[0]).double() if weighed else torch.ones(shape[0]).double()
    centred = x - (w @ x) / w.sum()
    alpha = 0.3 * float((w @ centred.square().sum(1)) / w.sum())
    expected = Ridge(alpha=alpha, solver="cholesky").fit(x.numpy(), y.numpy(), sample_weight=w.numpy())
    rows = fit_rows(x, y, 0.3, weights=w if weighed else None)
    np.testing.assert_allclose(rows[:, :-1], expected.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(predict_rows(x, rows), expected.predict(x.numpy()), rtol=1e-6, atol=1e-9)


def test_huber_is_a_stationary_point_and_heeds_outliers_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4).double()
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + 1)[:, None] + 0.1 * torch.randn(200, 1)
    y[:20] += 30
    row = fit_rows(x, y, 0.01, "huber", delta=0.3)
    size = float((x - x.mean(0)).square().sum(1).mean())
    free = row.clone().requires_grad_(True)
    residual = (y - predict_rows(x, free)).abs()
    errors = torch.where(residual <= 0.3, residual**2, 0.6 * residual - 0.09)
    (errors.sum() + 0.01 * size * free[:, :-1].square().sum()).backward()
    assert free.grad is not None and free.grad.abs().max() < 1e-3
    squared = fit_rows(x, y, 0.01)
    clean = (x[20:] @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + 1)[:, None]
    assert (predict_rows(x[20:], row) - clean).abs().mean() < 0.1 < 2 < (predict_rows(x[20:], squared) - clean).abs().mean()
    tight = fit_rows(x, y, 0.01, "huber", delta=1e6)
    torch.testing.assert_close(tight, squared)


def test_an_experts_row_depends_on_its_own_known_losses_alone() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 5), torch.randn(30, 3)
    y[:10, 1] = torch.nan
    together = fit_rows(x, y)
    for column in range(3):
        known = ~y[:, column].isnan()
        torch.testing.assert_close(together[column : column + 1], fit_rows(x[known], y[known][:, column : column + 1]))
    y[1:, 2] = torch.nan
    with pytest.raises(InputError, match="1 known losses, expected at least 2"):
        fit_rows(x, y)


def test_the_penalty_means_the_same_for_features_of_any_size() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 5).double(), torch.randn(30, 2).double()
    torch.testing.assert_close(
        predict_rows(x, fit_rows(x, y, 0.2)), predict_rows(100 * x, fit_rows(100 * x, y, 0.2)), rtol=1e-6, atol=1e-8
    )
    flat = predict_rows(x, fit_rows(x, y, 1e9))
    torch.testing.assert_close(flat, y.mean(0).expand_as(flat), rtol=1e-5, atol=1e-6)


def test_a_hidden_layer_learns_what_rows_cannot() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    y = torch.stack([x[:, 0] * x[:, 1], -x[:, 0] * x[:, 1]], 1).sign() + 5
    y[:50, 1] = torch.nan
    state = torch.get_rng_state()
    layer = fit_hidden(x, y, 32, steps=300)
    assert torch.equal(state, torch.get_rng_state())
    again = fit_hidden(x, y, 32, steps=300)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))

    def right(features: torch.Tensor) -> float:
        predicted = predict_rows(features, fit_rows(features, y, 1e-3))
        return float((predicted.argmin(1) == y[:, 0].gt(5).long()).float().mean())

    assert right(x) < 0.7 < 0.9 < right(layer(x))
    assert fit_hidden(x, y, 8, error="huber", steps=5)(x).shape == (400, 8)


def test_what_does_not_fit_is_refused() -> None:
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    with pytest.raises(InputError, match="did you mean 'huber'"):
        fit_rows(x, y, error="hubber")  # type: ignore[arg-type]
    for arguments in ((x[0], y), (x[:4], y), (x, y[:, 0]), (x, y, -1.0)):
        with pytest.raises(InputError, match="expected"):
            fit_rows(*arguments)  # type: ignore[arg-type]
