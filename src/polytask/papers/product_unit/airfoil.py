"""The claims on real acoustics: the noise of an airfoil in a wind tunnel at four frequencies.

The paper's motor recordings are not public. NASA's airfoil self-noise data (Brooks, Pope and Marcolini, RP-1218) stand in:
for each of 95 wind-tunnel conditions with all four bands, the angle of attack, chord, speed and displacement thickness
predict the sound pressure level at 1000, 1600, 2500 and 4000 Hz.

Each seed shuffles five folds of conditions. Every method chooses one of four settings by 3-fold cross-validation inside
the training folds, then predicts the fold left out; scaling is fitted on the training folds. Errors are in decibels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from polytask.claim import Measurements
from polytask.papers.product_unit.estimator import ProductUnitNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "uci_airfoil/airfoil_self_noise.tsv"
INPUTS = ["Angle", "Length", "Vel", "Displ"]
BANDS = ["1000", "1600", "2500", "4000"]

Array = NDArray[np.float64]


def load(data: Path) -> tuple[Array, Array]:
    """Inputs ``(95, 4)`` and levels in dB ``(95, 4)``, one row for each condition with all bands, in the file's order."""
    table = pl.read_csv(data / FILE, separator="\t").with_columns(pl.col("Freq").cast(pl.String))
    rows = table.filter(pl.col("Freq").is_in(BANDS)).pivot("Freq", index=INPUTS, values="Pressure", maintain_order=True)
    whole = rows.drop_nulls()
    return whole.select(INPUTS).to_numpy().astype(float), whole.select(BANDS).to_numpy()


def mse(predicted: Array, actual: Array) -> float:
    """The mean squared error over rows and tasks."""
    return float(np.square(predicted - actual).mean())


def sep(predicted: Array, actual: Array) -> float:
    """The standard error of prediction, ``100 sqrt(MSE) / |mean(y)|`` in percent and in the targets' units; task mean."""
    return float((100 * np.sqrt(np.square(predicted - actual).mean(0)) / np.abs(actual.mean(0))).mean())


def methods(seed: int) -> dict[str, Any]:
    """Every method by name, each ready to choose among four settings.

    A sigmoid network has the number of nodes whose parameter count, 9 M + 4, comes nearest to the product units' 8 M + 4.
    The small single-task networks have 1 or 2 nodes for each task, so as many links at most as the largest shared network.
    """

    def tuned(model: Any, **grid: list[Any]) -> GridSearchCV:
        folds = KFold(3, shuffle=True, random_state=seed)
        return GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=folds)

    evolved = ProductUnitNetwork(search="evolution", seed=seed)
    descended = ProductUnitNetwork(search="restarts", seed=seed)
    sigmoid = ProductUnitNetwork(units="sigmoid", search="evolution", seed=seed)
    boosting = GradientBoostingRegressor(random_state=seed)
    return {
        "evolved": tuned(evolved, nodes=[2, 4, 6, 8]),
        "descended": tuned(descended, nodes=[2, 4, 6, 8]),
        "sigmoid": tuned(sigmoid, nodes=[2, 4, 5, 7]),
        "single": MultiOutputRegressor(tuned(descended, nodes=[2, 4, 6, 8])),
        "small single": MultiOutputRegressor(tuned(descended, nodes=[1, 2], l1=[1e-4, 1e-3])),
        "ridge": tuned(make_pipeline(StandardScaler(), Ridge()), ridge__alpha=[0.1, 1.0, 10.0, 100.0]),
        "boosting": MultiOutputRegressor(tuned(boosting, learning_rate=[0.05, 0.1], max_depth=[2, 3])),
    }


def measure(seed: int, data: Path) -> Measurements:
    """``"<method> mse"`` (dB^2) and ``"<method> sep"`` (%) over five folds; for networks also the mean number of
    ``links`` and ``parameters``, over folds, of all networks of the method together."""
    inputs, levels = load(data)
    measured: dict[str, float] = {}
    for name, method in methods(seed).items():
        predicted = np.empty_like(levels)
        sizes = []
        for train, test in KFold(5, shuffle=True, random_state=seed).split(inputs):
            method.fit(inputs[train], levels[train])
            predicted[test] = method.predict(inputs[test])
            chosen = [fit.best_estimator_ for fit in getattr(method, "estimators_", [method])]
            sizes.append([(best.links_, best.parameters_) for best in chosen if isinstance(best, ProductUnitNetwork)])
        measured |= {f"{name} mse": mse(predicted, levels), f"{name} sep": sep(predicted, levels)}
        if sizes[0]:
            links, parameters = np.array(sizes).sum(1).mean(0)
            measured |= {f"{name} links": float(links), f"{name} parameters": float(parameters)}
    return measured


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Error against the number of links, a dot for each seed; ridge and boosting, which have no links, as lines."""
    from matplotlib.figure import Figure

    def series(name: str) -> Array:
        return np.array([measured[name] for measured in measurements.values()])

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    networks = {
        "evolved": ("product units, evolved", "#0072b2", "o"),
        "descended": ("product units, descended", "#56b4e9", "s"),
        "sigmoid": ("sigmoid units", "#d55e00", "^"),
        "single": ("four single-task networks", "#009e73", "D"),
        "small single": ("four small single-task networks", "#cc79a7", "v"),
    }
    for name, (label, colour, marker) in networks.items():
        links, error = series(f"{name} links"), series(f"{name} mse")
        axes.scatter(links, error, s=18, color=colour, marker=marker, alpha=0.35, linewidths=0)
        axes.scatter(links.mean(), error.mean(), s=90, color=colour, marker=marker, edgecolors="white", label=label)
    for name, label, style in (("ridge", "ridge regression", "--"), ("boosting", "gradient boosting", ":")):
        axes.axhline(series(f"{name} mse").mean(), color="0.35", linestyle=style, linewidth=1.2, label=label)
    axes.set_xlabel("links in all networks")
    axes.set_ylabel("test MSE (dB²)")
    axes.set_title("Airfoil self-noise, four bands: error against size", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    return figure
