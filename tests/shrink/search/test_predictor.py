"""Predictors against scikit-learn's grid search."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import SVR

from polytask.errors import InputError
from polytask.shrink.search import Predictor, Space
from polytask.shrink.search.predictor import ALPHAS, PENALTIES, fit_ridge

SPACE = Space({f"g{i}": [3, 5, 7] for i in range(8)})


def data(seed: int, count: int = 60, interaction: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = SPACE.features(SPACE.sample(count, random))
    y = 75 + x @ np.random.default_rng(9).normal(size=24) + 0.1 * random.normal(size=count)
    return x, y + interaction * np.where(x[:, 0] == x[:, 3], 1.0, -1.0)


def test_ridge_is_scikit_learns() -> None:
    x, y = data(0)
    new, _ = data(1)
    for alpha, predict in zip(ALPHAS, fit_ridge(x, y, ALPHAS.tolist()), strict=True):
        assert predict(new) == pytest.approx(Ridge(alpha=alpha).fit(x, y).predict(new))


@pytest.mark.parametrize("interaction", [0.0, 3.0])
def test_settings_and_predictions_are_those_of_a_grid_search(interaction: float) -> None:
    x, y = data(0, interaction=interaction)
    new, _ = data(1)
    order = np.random.default_rng(0).permutation(len(y))
    folds = KFold(5)
    searches = {
        "ridge": GridSearchCV(Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_absolute_percentage_error", cv=folds),
        "svr": GridSearchCV(
            SVR(gamma="auto", epsilon=0.0), {"C": PENALTIES}, scoring="neg_mean_absolute_percentage_error", cv=folds
        ),
    }
    scale = 10.0  # of labels from 70 to 80: 10^(1 - 1)
    best = max(searches, key=lambda name: searches[name].fit(x[order], y[order] / (scale / 10)).best_score_)
    predictor = Predictor().fit(x, y)
    assert predictor.chosen is not None and predictor.chosen[0] == best
    assert predictor.chosen[1] == pytest.approx(next(iter(searches[best].best_params_.values())))
    assert predictor(new) == pytest.approx(searches[best].best_estimator_.fit(x, y).predict(new), abs=0.05)


def test_what_depends_on_pairs_is_predicted_by_the_support_vector_machine() -> None:
    x, y = data(0, 200, interaction=5.0)
    chosen = Predictor().fit(x, y).chosen
    assert chosen is not None and chosen[0] == "svr"
    additive = Predictor().fit(*data(0, 200)).chosen
    assert additive is not None and additive[0] == "ridge"


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e8])
def test_the_unit_of_the_labels_does_not_matter(unit: float) -> None:
    x, y = data(0)
    new, _ = data(1)
    reference = Predictor().fit(x, y)(new)
    assert Predictor().fit(x, unit * y)(new) / unit == pytest.approx(reference, rel=1e-6)


def test_few_equal_and_absent_labels() -> None:
    x, y = data(0)
    assert Predictor().fit(x[:1], y[:1])(x[:3]) == pytest.approx(np.full(3, y[0]))
    assert Predictor().fit(x[:3], y[:3])(x[:3]) == pytest.approx(y[:3], rel=0.05)
    assert Predictor().fit(x, np.zeros(len(x)))(x) == pytest.approx(np.zeros(len(x)), abs=1e-9)
    (mean,) = fit_ridge(x, y, [1e12])
    assert mean(x) == pytest.approx(np.full(len(x), y.mean()))  # a penalty without bound leaves the mean
    with pytest.raises(InputError, match="0 labels, expected at least one"):
        Predictor().fit(x[:0], y[:0])
    with pytest.raises(InputError, match="finite numbers"):
        Predictor().fit(x, np.full(len(x), np.nan))
    with pytest.raises(InputError, match="expected some of 'ridge' and 'svr'"):
        Predictor(["forest"])  # type: ignore[list-item]
