"""The encoder for tables: its shapes, its members, its pieces against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.model import Model
from polytask.nn.tabular import BatchEnsemble, Categories, PiecewiseLinear, TabularEncoder
from polytask.task import Task

SETTINGS = {"numeric": 3, "missing": 1, "categories": [4, 5], "texts": 1, "words": 11, "width": 16}


def inputs(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "numeric": torch.rand(rows, 3, generator=generator) * 2 - 1,
        "missing": torch.zeros(rows, 1),
        "categorical": torch.randint(0, 4, (rows, 2), generator=generator, dtype=torch.int32),
        "text": torch.randint(0, 11, (rows, 1, 6), generator=generator, dtype=torch.int32),
    }


@pytest.mark.parametrize("members", [1, 4])
def test_shapes_and_training(members: int) -> None:
    encoder = TabularEncoder(**SETTINGS, members=members)
    assert encoder(inputs(7)).shape == ((7, 16) if members == 1 else (7, 4, 16))
    model = Model(encoder, [Task.binary("a"), Task.regression("b")])
    losses = model.losses((inputs(7), {"a": torch.ones(7), "b": torch.randn(7)}))
    sum(losses.values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.predict(inputs(7))["a"].shape == (7,)


def test_settings_build_the_same_encoder_again() -> None:
    encoder = TabularEncoder(**SETTINGS).eval()
    again = TabularEncoder(**encoder.settings()).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(inputs(5)), again(inputs(5)))


def test_only_the_inputs_that_a_table_has() -> None:
    assert TabularEncoder(numeric=3, width=8)({"numeric": torch.zeros(2, 3)}).shape == (2, 8, 8)
    assert TabularEncoder(categories=[3], width=8)({"categorical": torch.zeros(2, 1, dtype=torch.int32)}).shape == (2, 8, 8)
    with pytest.raises(InputError, match="no feature to learn from"):
        TabularEncoder()


def test_members_are_batch_ensembles_of_one_matrix() -> None:
    layer = BatchEnsemble(5, 3, members=4, random_signs=True)
    features = torch.randn(6, 1, 5)
    for m in range(4):
        matrix = layer.s[m][:, None] * layer.weight * layer.r[m]
        torch.testing.assert_close(layer(features)[:, m], features[:, 0] @ matrix.T + layer.bias[m])
    assert set(layer.r.unique().tolist()) == {-1.0, 1.0}


def test_one_example_does_not_depend_on_the_others() -> None:
    encoder = TabularEncoder(**SETTINGS).eval()
    whole = encoder(inputs(9))
    alone = encoder({key: value[3:4] for key, value in inputs(9).items()})
    torch.testing.assert_close(whole[3:4], alone)


def test_piecewise_linear_is_linear_between_its_edges_and_flat_outside() -> None:
    layer = PiecewiseLinear(1, bins=4, size=2)
    with torch.no_grad():
        layer.pieces.normal_()
        layer.line.zero_()
        layer.bias.fill_(100.0)  # above ReLU's kink
    at = {x: layer(torch.tensor([[x]]))[0, 0] for x in (-3.0, -1.0, -0.5, -0.25, 0.0, 0.5, 1.0, 3.0)}
    torch.testing.assert_close(at[-0.25], (at[-0.5] + at[0.0]) / 2)
    torch.testing.assert_close(at[-0.5] - at[-1.0], layer.pieces[0, 0])
    torch.testing.assert_close(at[1.0] - at[-1.0], layer.pieces[0].sum(0))
    torch.testing.assert_close(at[-3.0], at[-1.0])
    torch.testing.assert_close(at[3.0], at[1.0])


def test_categories_of_two_columns_have_rows_of_their_own() -> None:
    layer = Categories([2, 3], size=4)
    codes = torch.tensor([[0, 0], [1, 2]], dtype=torch.int32)
    torch.testing.assert_close(layer(codes), layer.table[torch.tensor([[0, 2], [1, 4]])])
