"""Adapters and (IA)^3: closed forms."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import IA3, Adapter, TaskParameters, insert


def layer() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.randn(5, 7, 4)


@pytest.mark.parametrize(("place", "activation"), [("sequential", "gelu"), ("parallel", "relu")])
def test_what_an_adapter_adds(place: Any, activation: str) -> None:
    linear, x = layer()
    plain = linear(x)
    part = insert(linear, Adapter(2, place, activation, scale=0.5), ["one", "two"], where="").parts[""]
    own: Any = part.bottlenecks["two"]  # type: ignore[index]
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    read = plain if place == "sequential" else x
    with task_scope("two"):
        torch.testing.assert_close(linear(x), plain + 0.5 * own.up(getattr(F, activation)(own.down(read))))
    with pytest.raises(InputError, match="cannot be folded"):
        insert(layer()[0], Adapter(2), ["one"], where="").fold("one")


def test_an_adapter_at_a_normalisation_normalises_twice() -> None:
    """``LN(h + U f(D LN(h)))``: what AdapterFusion's code does behind a BERT's feed-forward network, by insertion alone."""
    torch.manual_seed(0)
    norm, h = nn.LayerNorm(6), torch.randn(5, 7, 6)
    own: Any = insert(norm, Adapter(2, "norm", "relu", start="bert"), ["one", "two"], where="").parts[""]
    bottleneck = own.bottlenecks["two"]
    plain = F.layer_norm(h, (6,), norm.weight, norm.bias)
    expected = F.layer_norm(h + bottleneck.up(F.relu(bottleneck.down(plain))), (6,), norm.weight, norm.bias)
    with task_scope("two"):
        torch.testing.assert_close(norm(h), expected)
    assert not torch.allclose(expected, plain)
    for method, module in [(Adapter(2), nn.LayerNorm(6)), (Adapter(2, "norm"), nn.Linear(6, 6))]:
        with pytest.raises(InputError, match="expected L"):
            insert(module, method, ["one"], where="")


@pytest.mark.parametrize("on", ["output", "input"])
def test_what_ia3_scales_and_folds(on: Any) -> None:
    linear, x = layer()
    inserted = insert(linear, IA3(on), ["one", "two"], where="")
    (scale,) = inserted.parameters_of("two")
    nn.init.normal_(scale)
    bias = linear.bias
    expected = (
        F.linear(x, linear.weight) * scale + bias * scale if on == "output" else F.linear(x * scale, linear.weight, bias)
    )
    with task_scope("two"):
        torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(inserted.fold("two")(x), expected)


def test_parameters_by_task_take_any_name_and_shape() -> None:
    parameters = TaskParameters({"training": torch.ones(2, 3), "b": torch.full((2, 3), 2.0)})
    x = torch.zeros(3, 5, 2, 3)
    with task_scope(["b", "training"], torch.tensor([0, 1, 0])):
        assert parameters(x).shape == (3, 1, 2, 3)
        assert (x + parameters(x))[:, 0, 0, 0].tolist() == [2, 1, 2]
    with task_scope("training"):
        assert parameters(x) is not None and torch.equal(parameters(x), parameters["training"])
    assert parameters.training is True and list(parameters.of("no such task")) == []


@pytest.mark.parametrize(
    "make", [lambda: Adapter(0), lambda: Adapter(place="beside"), lambda: Adapter(activation="geluu"), lambda: IA3("inputs")]
)
def test_settings_that_cannot_be(make: Any) -> None:
    with pytest.raises(InputError, match=r"^(adapter|ia3): "):
        make()
