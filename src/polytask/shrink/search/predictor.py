"""Predicts an objective from features: ridge regression or a support vector machine, whichever validates better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError

Array: TypeAlias = NDArray[np.float64]
Model: TypeAlias = Literal["ridge", "svr"]
Predict: TypeAlias = Callable[[Array], Array]

ALPHAS = np.logspace(-1, 1, 10)
"""Ridge penalties: the paper's range from 0.1 to 10, in ten steps of the logarithm instead of a hundred steps."""
PENALTIES = np.logspace(0, 2, 5)
"""C of the support vector machine: the paper's range from 1 to 100, in five steps of the logarithm instead of a hundred."""
FOLDS = 5
TUNED = 250
"""Settings are chosen on so many rows at most; the model is fitted on all."""
TOLERANCE = 1e-2
"""Of libsvm, in the unit of the scaled labels, the largest of which is between 10 and 100."""


class Predictor:
    """Fitted on measurements so far, as Sarah et al., *A hardware-aware system for accelerating deep neural network
    optimization*, 2022, do it: ridge regression and a support vector machine with a radial basis (``gamma = 1 / F``,
    ``epsilon = 0``) with settings from a grid; 5-fold cross-validation by the mean absolute percentage error chooses the
    settings and the better of both. Labels are divided by ``10^(floor(log10 max|y|) - 1)`` first.

    Args:
        models: which to choose from.
        seed: of the folds.
    """

    def __init__(self, models: Sequence[Model] = ("ridge", "svr"), seed: int = 0) -> None:
        if not models or not set(models) <= {"ridge", "svr"}:
            raise InputError(f"predictor models {list(models)}, expected some of 'ridge' and 'svr'")
        self.models, self.seed = tuple(models), seed
        self.chosen: tuple[Model, float] | None = None
        self._predict: Predict = lambda features: np.zeros(len(features))
        self._scale = 1.0

    def fit(self, features: Array, labels: Array) -> Predictor:
        """Fit on ``(N, F)`` features and ``(N,)`` labels. After it `chosen` is the model and its setting."""
        if not len(labels) or not (np.isfinite(features).all() and np.isfinite(labels).all()):
            raise InputError(f"predictor: {len(labels)} labels, expected at least one, and finite numbers")
        largest = float(np.abs(labels).max())
        self._scale = 10.0 ** (math.floor(math.log10(largest)) - 1) if largest > 0 else 1.0
        labels = labels / self._scale
        order = np.random.default_rng(self.seed).permutation(len(labels))[:TUNED]
        errors = self._errors(features[order], labels[order]) if len(labels) > 1 else {(self.models[0], 1.0): 0.0}
        self.chosen = min(errors, key=lambda setting: errors[setting])
        model, setting = self.chosen
        self._predict = _FIT[model](features, labels, [setting])[0]
        return self

    def __call__(self, features: Array) -> Array:
        """``(N,)`` predictions in the unit of the labels."""
        return self._scale * self._predict(features)

    def _errors(self, features: Array, labels: Array) -> dict[tuple[Model, float], float]:
        """For each model and setting the mean over folds of the mean absolute percentage error."""
        parts = np.array_split(np.arange(len(labels)), min(FOLDS, len(labels)))
        errors: dict[tuple[Model, float], float] = {}
        for part in parts:
            train = np.setdiff1d(np.arange(len(labels)), part)
            least = np.maximum(np.abs(labels[part]), np.finfo(float).eps)
            for model in self.models:
                settings = (ALPHAS if model == "ridge" else PENALTIES).tolist()
                for setting, predict in zip(settings, _FIT[model](features[train], labels[train], settings), strict=True):
                    error = float((np.abs(predict(features[part]) - labels[part]) / least).mean())
                    errors[model, setting] = errors.get((model, setting), 0.0) + error / len(parts)
        return errors


def fit_ridge(features: Array, labels: Array, alphas: Sequence[float]) -> list[Predict]:
    """Ridge regression with an intercept for each penalty, of one singular value decomposition."""
    middle, mean = features.mean(0), float(labels.mean())
    u, s, vt = np.linalg.svd(features - middle, full_matrices=False)
    along = u.T @ (labels - mean)

    def predictor(alpha: float) -> Predict:
        weights = vt.T @ (s / (s * s + alpha) * along)
        return lambda given: (given - middle) @ weights + mean

    return [predictor(alpha) for alpha in alphas]


def fit_svr(features: Array, labels: Array, penalties: Sequence[float]) -> list[Predict]:
    """Support vector regression for each C, of one table of the kernel."""
    from sklearn import config_context
    from sklearn.svm import SVR

    gamma = 1 / features.shape[1]
    kernel = _radial(features, features, gamma)

    def predictor(penalty: float) -> Predict:
        with config_context(assume_finite=True, skip_parameter_validation=True):  # checks would take as long as the fit
            fitted = SVR(kernel="precomputed", C=penalty, epsilon=0.0, tol=TOLERANCE).fit(kernel, labels)
        support, weights, intercept = features[fitted.support_], fitted.dual_coef_[0], float(fitted.intercept_[0])
        return lambda given: _radial(given, support, gamma) @ weights + intercept

    return [predictor(penalty) for penalty in penalties]


def _radial(one: Array, other: Array, gamma: float) -> Array:
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T
    kernel: Array = np.exp(-gamma * np.maximum(squares, 0.0))
    return kernel


_FIT: dict[Model, Callable[[Array, Array, Sequence[float]], list[Predict]]] = {"ridge": fit_ridge, "svr": fit_svr}
