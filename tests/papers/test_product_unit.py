"""Product-unit networks: the seven closed forms of the method, its search, its estimator, and the anchors of its claim."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.papers.real_data import folder_with
from torch import Generator

import polytask as pt
from polytask.errors import InputError
from polytask.papers.product_unit import (
    UNITS,
    Evolution,
    Networks,
    ProductUnitNetwork,
    ProductUnits,
    Targets,
    descend,
    fitness,
    solve_outputs,
)
from polytask.papers.product_unit import airfoil as claim
from polytask.papers.product_unit.evolution import Steps, fuse_nodes, mutate_structure, mutate_weights, random_networks
from polytask.papers.product_unit.units import without_constants

PRODUCT, SIGMOID = UNITS["product"], UNITS["sigmoid"]


def positive(rows: int = 60, inputs: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, (rows, inputs))


def population(units: str = "product", seed: int = 0, count: int = 50) -> Networks:
    inputs = 3 + UNITS[units].biases
    return random_networks(count, inputs, 2, (1, 4), Generator().manual_seed(seed))


def features(units: str = "product") -> torch.Tensor:
    return UNITS[units].features(torch.from_numpy(positive()))


# The seven closed forms.


def test_one_node_recovers_a_power_law() -> None:
    x = positive(inputs=2)
    model = ProductUnitNetwork(1, ridge=1e-9, l1=0, scale=False).fit(x, 3 * x[:, 0] ** 2 / x[:, 1])
    assert model.exponents_.ravel() == pytest.approx([2, -1], abs=1e-3)
    assert model.network_.outputs.ravel().tolist() == pytest.approx([0, 3], abs=1e-3)


@pytest.mark.parametrize("units", ["product", "sigmoid"])
def test_a_node_that_sees_no_input_joins_the_intercept(units: str) -> None:
    networks = population(units)
    inputs = networks.links.shape[1] - UNITS[units].biases
    networks.links[:, :inputs, 0] = False
    networks.links[:, inputs:, 0] = True
    networks.weights.mul_(networks.links)
    networks.outputs[:, 1] = 1.0
    # A product of no inputs is 1: the node is counted here although it has no link.
    hidden = UNITS[units].activation(features(units) @ networks.weights)
    before = networks.outputs[:, :1] + hidden @ networks.outputs[:, 1:]
    after = without_constants(networks, UNITS[units])
    assert not after.nodes[:, 0].any()
    torch.testing.assert_close(after.predict(UNITS[units], features(units)), before)


def test_fitness_is_one_exactly_at_zero_error_and_then_nothing_moves() -> None:
    assert fitness(torch.tensor([0.0, 1.0, float("inf"), float("nan")])).tolist() == [1, 0.5, 0, 0]
    networks = population()
    scores = torch.ones(50, dtype=torch.double)
    moved, _ = mutate_weights(networks, scores, Steps(), lambda mutated: (mutated, scores), Generator().manual_seed(0))
    assert torch.equal(moved.weights, networks.weights) and torch.equal(moved.outputs, networks.outputs)


def test_fusing_equal_nodes_leaves_the_function() -> None:
    networks = random_networks(50, 3, 2, (2, 2), Generator().manual_seed(0))
    networks.links[:, :, 1], networks.weights[:, :, 1] = networks.links[:, :, 0], networks.weights[:, :, 0]
    before = networks.predict(PRODUCT, features())
    fuse_nodes(networks, torch.arange(50), (1, 2), Generator().manual_seed(1))
    assert (networks.nodes.sum(1) == 1).all()
    torch.testing.assert_close(networks.predict(PRODUCT, features()), before)


def test_projected_outputs_are_the_ridge_solution_task_by_task() -> None:
    networks, targets = population(count=5), torch.from_numpy(positive(inputs=2, seed=1))
    targets[::3, 1] = torch.nan
    hidden = networks.hidden(PRODUCT, features())
    solved = solve_outputs(hidden, Targets.of(targets), 0.01)
    for one, outputs in zip(hidden, solved, strict=True):
        rms = one.square().mean(0).sqrt()
        scaled = (one / torch.where(rms > 0, rms, 1.0)).numpy()
        for task in range(2):
            rows = ~targets[:, task].isnan().numpy()
            ridge = Ridge(alpha=0.01 * rows.sum(), solver="svd").fit(scaled[rows], targets[rows, task])
            coefficients = ridge.coef_ / np.where(rms > 0, rms, 1.0)
            np.testing.assert_allclose(outputs[:, task], [ridge.intercept_, *coefficients], rtol=1e-6, atol=1e-9)


@given(st.floats(0.1, 10), st.integers(0, 2))
def test_scaling_an_input_scales_each_unit_by_a_power(factor: float, column: int) -> None:
    layer = ProductUnits(3, 4).double()
    x = torch.from_numpy(positive())
    scaled = x.clone()
    scaled[:, column] *= factor
    torch.testing.assert_close(layer(scaled), layer(x) * factor ** layer.exponents[column])


def test_sep_of_the_mean_is_the_coefficient_of_variation() -> None:
    y = positive(inputs=2) * [1, 50]
    mean = np.broadcast_to(y.mean(0), y.shape)
    assert claim.sep(mean, y) == pytest.approx((100 * y.std(0) / y.mean(0)).mean())


# The search.


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["product", "sigmoid"]))
def test_structural_mutation_keeps_networks_whole(seed: int, temperature: float, units: str) -> None:
    networks = population(units, seed)
    mutated = networks
    for step in range(5):
        heat = torch.full((50,), temperature, dtype=torch.double)
        mutated = mutate_structure(mutated, heat, (1, 4), UNITS[units], Generator().manual_seed(step))
    assert (mutated.weights[~mutated.links] == 0).all()
    assert (mutated.outputs[:, 1:][~mutated.nodes] == 0).all()
    assert (mutated.nodes.sum(1) <= 4).all() and (units == "sigmoid" or (mutated.nodes.sum(1) >= 1).all())
    assert not torch.equal(mutated.weights, networks.weights)


def test_steps_follow_the_one_fifth_rule() -> None:
    for rate, factor in ((0.4, 1.1), (0.2, 1.0), (0.1, 0.9)):
        steps = Steps()
        for _ in range(5):
            steps.record(rate)
        assert (steps.weights, steps.outputs) == pytest.approx((0.5 * factor, factor))


@pytest.mark.parametrize("ridge", [None, 1e-3])
def test_evolution_improves_on_its_first_generation(ridge: float | None) -> None:
    x = positive()
    y = Targets.of(torch.from_numpy(np.stack([x[:, 0] * x[:, 1], x[:, 2] / x[:, 0]], 1)))

    def best(generations: int) -> float:
        evolution = Evolution(PRODUCT, (1, 4), population=40, generations=generations, ridge=ridge)
        fittest = evolution.run(features(), y, Generator().manual_seed(0))[0]
        return y.mse(fittest.predict(PRODUCT, features())).item()

    assert best(40) < 0.5 * best(0)
    assert best(40) == best(40)


def test_descent_lowers_the_objective_and_prunes_exactly() -> None:
    x = positive()
    y = torch.from_numpy(np.stack([x[:, 0] ** 2, 1 / x[:, 0]], 1))
    start = random_networks(1, 3, 2, (3, 3), Generator().manual_seed(0))[0]
    values = [descend(start, PRODUCT, features(), Targets.of(y), ridge=1e-3, l1=1e-3, iterations=n)[1] for n in (0, 5, 50)]
    assert values[0] > values[1] > values[2]
    model = ProductUnitNetwork(3, scale=False, l1=1e-2).fit(x, y)
    assert (model.exponents_[1:] == 0).all()


def test_the_gradient_through_the_solve_is_that_of_the_projected_objective() -> None:
    # At a minimum of an unpenalised descent no weight can be moved to lower the error with outputs solved anew.
    x = positive()
    y = Targets.of(torch.from_numpy(np.stack([np.sin(3 * x[:, 0]), x[:, 1] * x[:, 2]], 1)))
    start = random_networks(1, 3, 2, (2, 2), Generator().manual_seed(3))[0]
    found, value = descend(start, PRODUCT, features(), y, ridge=1e-3, l1=0.0, iterations=500)
    for row, column in found.links.nonzero().tolist():
        for step in (-1e-2, 1e-2):
            weights = found.weights.clone()
            weights[row, column] += step
            if weights.abs().max() <= PRODUCT.bound:
                moved = Networks(weights, found.links, found.outputs)
                assert descend(moved, PRODUCT, features(), y, ridge=1e-3, l1=0.0, iterations=0)[1] >= value - 1e-9


# The estimator.


def test_arrays_tensors_and_frames_give_the_same_network() -> None:
    x, y = positive(), positive(inputs=2, seed=1)
    formula = ProductUnitNetwork(2).fit(x, y).formula()
    assert ProductUnitNetwork(2).fit(torch.from_numpy(x), torch.from_numpy(y)).formula() == formula
    named = ProductUnitNetwork(2).fit(pl.DataFrame(x, schema=["u", "v", "w"]), pl.DataFrame(y, schema=["hum", "hiss"]))
    assert "hiss = " in named.formula() and "with u scaled to 1 + (u - 1.0" in named.formula()
    np.testing.assert_array_equal(named.predict(x), ProductUnitNetwork(2).fit(x, y).predict(x))


def test_a_missing_target_counts_in_no_task_and_stops_none() -> None:
    x = positive(120)
    y = np.stack([x[:, 0] * x[:, 1], 5 + x[:, 0] * x[:, 1]], 1)
    holed = y.copy()
    holed[::2, 1] = np.nan
    model = ProductUnitNetwork(1, ridge=1e-9, l1=0, scale=False).fit(x, holed)
    np.testing.assert_allclose(model.predict(x), y, atol=1e-3)


def test_inputs_beyond_training_are_clipped_and_constant_inputs_ignored() -> None:
    x = positive()
    x[:, 2] = 7.0
    model = ProductUnitNetwork(2).fit(x, x[:, 0])
    assert model.exponents_[2].tolist() == [0] * len(model.exponents_[2])
    edge = x.max(0) + 0.1 * np.ptp(x, axis=0)
    assert model.predict(edge[None] + 1e6) == pytest.approx(model.predict(edge[None]))
    assert np.isfinite(model.predict(-1e6 * np.ones((1, 3)))).all()


def test_elasticity_is_the_logarithmic_slope() -> None:
    x, y = positive(), positive(inputs=2, seed=1)
    model = ProductUnitNetwork(3, scale=False).fit(x, y)
    found, step = model.elasticity(x), 1e-6
    for column in range(3):
        moved = x.copy()
        moved[:, column] *= np.exp(step)
        slope = (model.predict(moved) - model.predict(x)) / model.predict(x) / step
        np.testing.assert_allclose(found[:, column], slope, atol=1e-4)


def test_the_count_is_links_and_outputs() -> None:
    x, y = positive(), positive(inputs=2, seed=1)
    for units in ("product", "sigmoid"):
        model = ProductUnitNetwork(3, units=units).fit(x, y)
        weights, outputs = model.network_.weights, model.network_.outputs
        assert model.links_ == int((weights != 0).sum())
        assert model.parameters_ == model.links_ + outputs.numel()


def test_the_paper_s_algorithm_alone_and_a_scikit_learn_search() -> None:
    x, y = positive(), positive(inputs=2, seed=1)
    alone = ProductUnitNetwork(3, search="evolution", iterations=0, population=20, restarts=2, generations=5)
    assert alone.fit(x, y).predict(x).shape == (60, 2)
    search = GridSearchCV(clone(ProductUnitNetwork(iterations=5)), {"nodes": [1, 2]}, cv=2).fit(x, y[:, 0])
    assert search.predict(x).shape == (60,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": "sigmoids"}, "did you mean 'sigmoid'"),
        ({"search": "evolve"}, "unknown search 'evolve'"),
        ({"nodes": 0}, "nodes=0, expected at least 1"),
        ({"ridge": 0.0}, "expected a number above 0"),
        ({"iterations": 0}, "expected at least 1"),
        ({"restarts": 200}, "expected at most the population"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProductUnitNetwork(**change).fit(positive(), positive())


def test_data_that_cannot_be_used_is_refused() -> None:
    x, y = positive(), positive(inputs=2)
    hole = x.copy()
    hole[4, 1] = np.nan
    zero = x.copy()
    zero[5, 2] = 0.0
    with pytest.raises(InputError, match="row 4, column 'x2': nan, expected a finite number"):
        ProductUnitNetwork().fit(hole, y)
    with pytest.raises(InputError, match="row 5, column 'x3': 0, expected a value above 0 with scale=False"):
        ProductUnitNetwork(scale=False).fit(zero, y)
    with pytest.raises(InputError, match="target 'y2' has no value"):
        ProductUnitNetwork().fit(x, y * [1, np.nan])
    with pytest.raises(InputError, match="60 rows of inputs and 59 of targets"):
        ProductUnitNetwork().fit(x, y[1:])
    with pytest.raises(InputError, match="2 inputs, expected the 3 of fit"):
        ProductUnitNetwork(1, iterations=2).fit(x, y).predict(x[:, :2])


def test_the_layer_is_an_encoder_for_a_model() -> None:
    model = pt.Model(ProductUnits(3, 4), [pt.Task.regression("hum"), pt.Task.binary("loud")])
    outputs = model(torch.from_numpy(positive()).float())
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"hum": (60, 1), "loud": (60, 1)}


# The claim's data and protocol.


@pytest.fixture
def folder() -> Path:
    return folder_with([claim.FILE])


def test_anchors_of_the_airfoil_data(folder: Path) -> None:
    inputs, levels = claim.load(folder)
    assert inputs.shape == levels.shape == (95, 4)
    assert levels.mean(0) == pytest.approx([128.31, 126.75, 124.46, 121.42], abs=0.01)
    assert levels.std(0) == pytest.approx([3.98, 5.05, 6.29, 6.99], abs=0.01)
    folds = KFold(5, shuffle=True, random_state=0)
    ridge = cross_val_predict(make_pipeline(StandardScaler(), Ridge(1.0)), inputs, levels, cv=folds)
    mean = cross_val_predict(DummyRegressor(), inputs, levels, cv=folds)
    assert (claim.mse(mean, levels), claim.sep(mean, levels)) == pytest.approx((33.03, 4.52), abs=0.01)
    assert (claim.mse(ridge, levels), claim.sep(ridge, levels)) == pytest.approx((7.62, 2.19), abs=0.01)


def test_every_method_has_four_settings() -> None:
    for name, method in claim.methods(0).items():
        search = getattr(method, "estimator", method) if not isinstance(method, GridSearchCV) else method
        assert np.prod([len(values) for values in search.param_grid.values()]) == 4, name
