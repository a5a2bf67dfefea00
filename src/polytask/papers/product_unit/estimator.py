"""The estimator: scaling, search, predictions in the user's units, and the formula."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from torch import Generator, Tensor

from polytask.errors import InputError, suggest
from polytask.papers.product_unit.evolution import Evolution
from polytask.papers.product_unit.projection import Targets, descend
from polytask.papers.product_unit.units import UNITS, Networks, Units

Array = NDArray[np.float64]


class ProductUnitNetwork(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """One hidden layer of product units shared by all targets, ``y_k = b_0k + sum_j b_jk prod_i x_i^w_ij``.

    Inputs are scaled to [1, 2] by the training data's range, so that logarithms exist and products stay small; later
    inputs beyond the range are clipped a tenth of it outside. Targets are scaled to [1, 2] for training, and predictions
    come back in their own units. A missing target entry (NaN) is left out of its task only.

    Args:
        nodes: the most hidden nodes ``M``.
        units: ``"product"``, or ``"sigmoid"`` for the rival of equal shape (inputs then scaled to [0.1, 0.9]).
        search: ``"evolution"`` finds the structure as the paper does and then descends from the fittest networks;
            ``"restarts"`` descends from random networks with all links, where the L1 penalty alone prunes.
        restarts: the number of networks from which to descend; the one of lowest penalised error is kept.
        iterations: L-BFGS steps of each descent. 0 with evolution is the paper's algorithm alone.
        ridge: the penalty on output coefficients, relative to each node's root mean square; above 0.
        l1: the penalty on each weight, relative to the mean variance of the scaled targets.
        population, generations: the size and the length of the evolution.
        scale: ``False`` takes inputs as they are, for positive physical quantities whose exponents mean something in
            their own units; then every input must be above 0.
        seed: the seed of everything random.

    Attributes:
        network_: the fitted `Networks` (one), in scaled inputs and targets in the user's units.
        exponents_: ``(I, M)``, the elasticity of each product unit to each scaled input (weights, for sigmoid units).
        parameters_: links + K (M + 1), counted after pruning.
        links_: the number of links.
    """

    def __init__(
        self,
        nodes: int = 6,
        *,
        units: Literal["product", "sigmoid"] = "product",
        search: Literal["evolution", "restarts"] = "restarts",
        restarts: int = 4,
        iterations: int = 40,
        ridge: float = 1e-3,
        l1: float = 1e-3,
        population: int = 100,
        generations: int = 100,
        scale: bool = True,
        seed: int = 0,
    ) -> None:
        self.nodes = nodes
        self.units = units
        self.search = search
        self.restarts = restarts
        self.iterations = iterations
        self.ridge = ridge
        self.l1 = l1
        self.population = population
        self.generations = generations
        self.scale = scale
        self.seed = seed

    def fit(self, X: Any, Y: Any) -> Self:
        """Search for the network.

        Args:
            X: inputs, ``(N, I)``: an array, a tensor or a data frame, whose column names the formula then uses.
            Y: targets, ``(N, K)`` or ``(N,)``, NaN where missing.

        Raises:
            InputError: settings out of range; rows that do not match; an input that is not finite, or not above 0 with
                ``scale=False``; a target without any present value.
        """
        units = self._checked_units()
        inputs, self.inputs_ = _matrix(X, "x")
        targets, self.targets_ = _matrix(Y, "y")
        self.single_ = np.ndim(Y) == 1
        _check_data(inputs, targets, self.inputs_, self.targets_)
        self.low_, self.span_ = inputs.min(0), np.ptp(inputs, axis=0)
        low, high = np.nanmin(targets, axis=0), np.nanmax(targets, axis=0)
        span = np.where(high > low, high - low, 1.0)
        scaled = 1 + (targets - low) / span
        features, wanted = self._features(inputs), Targets.of(torch.from_numpy(scaled))
        l1 = self.l1 * float(np.nanvar(scaled, axis=0).mean())
        starts = self._starts(units, features, wanted, Generator().manual_seed(self.seed))
        if self.iterations:
            descents = (
                descend(start, units, features, wanted, ridge=self.ridge, l1=l1, iterations=self.iterations)
                for start in starts
            )
            network, _ = min(descents, key=itemgetter(1))
        else:
            network = next(starts)
        outputs = network.outputs * torch.from_numpy(span)
        outputs[0] += torch.from_numpy(low - span)
        self.network_ = _compact(Networks(network.weights, network.links, outputs))
        self.n_features_in_ = inputs.shape[1]
        return self

    def predict(self, X: Any) -> Array:
        """Predictions in the units of the training targets: ``(N, K)``, or ``(N,)`` when fitted on a vector."""
        predictions = self.network_.predict(UNITS[self.units], self._features(self._known(X))).numpy()
        return predictions[:, 0] if self.single_ else predictions

    @property
    def exponents_(self) -> Array:
        return self.network_.weights[: self.n_features_in_].numpy()

    @property
    def parameters_(self) -> int:
        return int(self.network_.parameters())

    @property
    def links_(self) -> int:
        return int(self.network_.links.sum())

    def elasticity(self, X: Any) -> Array:
        """``d log|y_k| / d log x_i`` at each row of ``X``, in scaled inputs: ``(N, I, K)``.

        The share of node ``j`` is its exponent ``w_ij``, so the elasticity is the mean of exponents weighed by the terms
        ``b_jk B_j``, over the whole output.
        """
        if self.units != "product":
            raise InputError("elasticity is defined for units='product': a sigmoid has no constant elasticity")
        features = self._features(self._known(X))
        hidden = self.network_.hidden(UNITS[self.units], features)
        terms = hidden.unsqueeze(-1) * self.network_.outputs[1:]
        slopes = torch.einsum("im,nmk->nik", self.network_.weights, terms)
        return (slopes / self.network_.predict(UNITS[self.units], features).unsqueeze(1)).numpy()

    def formula(self, digits: int = 3) -> str:
        """The network as text: the units, each target in terms of them, and how inputs were scaled."""
        return "\n".join(self._formula_lines(digits))

    def _formula_lines(self, digits: int) -> Iterator[str]:
        weights, outputs = self.network_.weights.numpy(), self.network_.outputs.numpy()
        for j, column in enumerate(weights.T, start=1):
            terms = [(name, w) for name, w in zip(self.inputs_, column, strict=False) if w]
            if self.units == "product":
                yield f"B{j} = " + " * ".join(f"{name}^{w:.{digits}g}" for name, w in terms)
            else:
                yield f"B{j} = sigmoid(" + _sum([(f" * {n}", w) for n, w in terms] + [("", column[-1])], digits) + ")"
        for name, (bias, *coefficients) in zip(self.targets_, outputs.T, strict=True):
            yield f"{name} = " + _sum([("", bias), *((f" * B{j}", b) for j, b in enumerate(coefficients, 1))], digits)
        if self.scale:
            low, high = UNITS[self.units].interval
            used = self.network_.links.any(1)
            for name, least, span, linked in zip(self.inputs_, self.low_, self.span_, used, strict=False):
                if linked:
                    shifted = f"{name} - {least:.{digits}g}" if least else name
                    yield f"with {name} scaled to {low:g} + ({shifted}) / {span / (high - low):.{digits}g}"

    def _starts(self, units: Units, features: Tensor, targets: Targets, generator: Generator) -> Iterator[Networks]:
        inputs, tasks = features.shape[1], targets.values.shape[1]
        if self.search == "restarts":
            for _ in range(self.restarts):
                weights = torch.randn(inputs, self.nodes, generator=generator, dtype=torch.double)
                yield Networks(weights, weights != 0, weights.new_zeros(1 + self.nodes, tasks))
        else:
            evolution = Evolution(
                units, (1, self.nodes), self.population, self.generations, ridge=self.ridge if self.iterations else None
            )
            population = evolution.run(features, targets, generator)
            structures = {
                population.links[index].numpy().tobytes(): index for index in reversed(range(len(population.links)))
            }
            for index in sorted(structures.values())[: self.restarts if self.iterations else 1]:
                yield population[index]

    def _features(self, inputs: Array) -> Tensor:
        units = UNITS[self.units]
        if self.scale:
            low, high = units.interval
            margin = 0.1 * (high - low)
            unit = (inputs - self.low_) / np.where(self.span_ > 0, self.span_, 1.0)
            inputs = (low + (high - low) * unit).clip(low - margin, high + margin)
        elif units.name == "product" and (inputs <= 0).any():
            row, column = np.argwhere(inputs <= 0)[0]
            value = inputs[row, column]
            raise InputError(
                f"row {row}, column {self.inputs_[column]!r}: {value:g}, expected a value above 0 with scale=False"
            )
        return units.features(torch.from_numpy(inputs))

    def _known(self, X: Any) -> Array:
        inputs, names = _matrix(X, "x")
        if len(names) != len(self.inputs_):
            raise InputError(f"{len(names)} inputs, expected the {len(self.inputs_)} of fit")
        if hasattr(X, "columns") and names != self.inputs_:
            raise InputError(f"columns {', '.join(names)}, expected those of fit in their order: {', '.join(self.inputs_)}")
        _check_finite(inputs, names)
        return inputs

    def _checked_units(self) -> Units:
        if self.units not in UNITS:
            raise InputError(f"unknown units {self.units!r}: {suggest(self.units, UNITS)}")
        if self.search not in ("evolution", "restarts"):
            raise InputError(f"unknown search {self.search!r}: {suggest(self.search, ['evolution', 'restarts'])}")
        least = {"nodes": 1, "restarts": 1, "iterations": 0, "population": 1, "generations": 0, "l1": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise InputError(f"{name}={getattr(self, name)!r}, expected at least {low}")
        if not self.ridge > 0:
            raise InputError(f"ridge={self.ridge!r}, expected a number above 0")
        if self.search == "restarts" and self.iterations == 0:
            raise InputError("iterations=0 with search='restarts' would return random networks, expected at least 1")
        if self.restarts > self.population:
            raise InputError(f"restarts={self.restarts}, expected at most the population of {self.population}")
        return UNITS[self.units]


def _matrix(values: Any, prefix: str) -> tuple[Array, list[str]]:
    """A float64 matrix and its columns' names, ``x1, x2, ...`` where there are none."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    names = list(getattr(values, "columns", []))
    matrix = np.asarray(values, dtype=np.float64, order="C")
    if matrix.ndim == 1 and prefix == "y":
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"an array of shape {matrix.shape}, expected (rows, columns) with at least one of each")
    return matrix, names or [f"{prefix}{i}" for i in range(1, matrix.shape[1] + 1)]


def _check_data(inputs: Array, targets: Array, input_names: list[str], target_names: list[str]) -> None:
    if len(inputs) != len(targets):
        raise InputError(f"{len(inputs)} rows of inputs and {len(targets)} of targets, expected as many")
    _check_finite(inputs, input_names)
    _check_finite(np.nan_to_num(targets, nan=0.0, posinf=np.inf, neginf=-np.inf), target_names)
    for name, column in zip(target_names, targets.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"target {name!r} has no value, expected at least one that is not NaN")


def _check_finite(matrix: Array, names: list[str]) -> None:
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0]
        raise InputError(f"row {row}, column {names[column]!r}: {matrix[row, column]}, expected a finite number")


def _compact(network: Networks) -> Networks:
    """The same network without the absent nodes."""
    nodes = network.nodes
    present = torch.nn.functional.pad(nodes, (1, 0), value=True)
    return Networks(network.weights[:, nodes], network.links[:, nodes], network.outputs[present])


def _sum(terms: list[tuple[str, float]], digits: int) -> str:
    text = "".join(f" {'-' if value < 0 else '+'} {abs(value):.{digits}g}{term}" for term, value in terms)
    return text.removeprefix(" + ").replace(" - ", "-", 1) if text.startswith(" - ") else text.removeprefix(" + ")
