"""Product-unit networks for several targets at once: few nodes, found by evolution, that read as a formula.

A product unit is ``prod_i x_i^w_i`` with real exponents. One hidden layer of them serves all targets, ``y_k = b_0k + sum_j
b_jk B_j(x)``, so that the fitted model is a short formula in which every exponent is an elasticity.

>>> import numpy as np
>>> from polytask.papers.product_unit import ProductUnitNetwork
>>> x = np.random.default_rng(0).uniform(1, 2, (200, 2))
>>> loudness, sharpness = 5 + 3 * x[:, 0] ** 2 / x[:, 1], 1 - 2 * x[:, 0] ** 2 / x[:, 1]
>>> model = ProductUnitNetwork(nodes=1, ridge=1e-9, l1=0, scale=False).fit(x, np.stack([loudness, sharpness], 1))
>>> print(model.formula())
B1 = x1^2 * x2^-1
y1 = 5 + 3 * B1
y2 = 1 - 2 * B1
>>> model.parameters_  # 2 links + 2 targets * (1 node + 1)
6
"""

from __future__ import annotations

from functools import partial

from torch import nn

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.product_unit.airfoil import FILE, measure, plot
from polytask.papers.product_unit.estimator import ProductUnitNetwork
from polytask.papers.product_unit.evolution import Evolution, fitness
from polytask.papers.product_unit.projection import Targets, descend, solve_outputs
from polytask.papers.product_unit.units import UNITS, Networks, ProductUnits, Units

__all__ = [
    "PAPER",
    "UNITS",
    "Evolution",
    "Networks",
    "ProductUnitNetwork",
    "ProductUnits",
    "Targets",
    "Units",
    "descend",
    "fitness",
    "solve_outputs",
]

_claim = partial(Claim, run=measure, better="lower", needs=(FILE,))

PAPER = Paper(
    slug="product_unit",
    title="Validation of artificial neural networks to model the acoustic behaviour of induction motors",
    family="time_series_and_health",
    verbs=("share", "shrink", "measure"),
    reference="arXiv 2401.15377",
    claims=(
        _claim(
            name="linear",
            statement="product units err less than a linear model",
            method="evolved mse",
            baseline="ridge mse",
            claimed="best simple model: MSE 38.77, SEP 13.11 % (motors)",
        ),
        _claim(
            name="sigmoid",
            statement="product units err less than sigmoid units with as many parameters",
            method="evolved mse",
            baseline="sigmoid mse",
            claimed="best simple model: MSE 38.77, SEP 13.11 % (motors)",
            comment="The sigmoid network gets the same evolution, descent and penalties; the paper's may have had less. "
            "A likely reason: it saturates where a product unit extrapolates as a power, which matters with 76 rows to "
            "train on.",
        ),
        _claim(
            name="complex",
            statement="gradient boosting, which no formula describes, errs less than product units",
            method="boosting mse",
            baseline="evolved mse",
            claimed="more complex models are more accurate but opaque",
        ),
        _claim(
            name="shared",
            statement="one shared network errs less than four single-task networks with no fewer links in all",
            method="descended mse",
            baseline="small single mse",
            claimed="one network models all four outputs",
            comment="Choosing the size by cross-validation inside 76 rows costs the shared network most: on the same folds, "
            "with 6 nodes fixed, it errs 5.4 dB², and four networks with 2 nodes each 5.5.",
        ),
        _claim(
            name="links",
            statement="one shared network errs at most 0.3 dB² more than four single-task networks of as many nodes each",
            method="descended mse",
            baseline="single mse",
            margin=-0.3,
            claimed="one network models all four outputs",
            comment="0.3 dB² is 5 % of the error; the four networks have about three times the links.",
        ),
    ),
    scales=(
        Scale(
            name="10 inputs, 4 outputs, 6 product units",
            build=lambda: nn.Sequential(ProductUnits(10, 6), nn.Linear(6, 4)),
            parameters=88,
            source="links + K (M + 1) = 60 + 4 * 7, all links present; the paper's number of units was not found",
        ),
    ),
    plot=plot,
)
