"""AdapterSoup: weights are averaged, which is the mean of outputs where the same units are active."""

from typing import Any

import pytest
import torch
from torch import nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import Adapter, Inserted, LoRA, insert, soup


def adapters(alike: bool = False) -> tuple[Inserted, torch.Tensor]:
    torch.manual_seed(0)
    inserted = insert(nn.Linear(4, 3), Adapter(5, "parallel", "relu"), ["one", "two", "three"], where="")
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    if alike:
        part: Any = inserted.parts[""]
        for task in ("two", "three"):
            part.of(task).down.load_state_dict(part.of("one").down.state_dict())
    return inserted, torch.randn(6, 4)


def output(inserted: Inserted, x: torch.Tensor, task: str) -> torch.Tensor:
    with task_scope(task):
        found: torch.Tensor = inserted.model(x)
    return found


def test_it_has_the_mean_weights_and_leaves_the_others() -> None:
    inserted, _ = adapters()
    before = [p.clone() for p in inserted.parameters()]
    further = soup(inserted, "new", of=["one", "three"])
    assert further.tasks == ("one", "two", "three", "new") and inserted.tasks == ("one", "two", "three")
    part: Any = further.parts[""]
    for name, parameter in part.of("new").named_parameters():
        both = (part.of("one").get_parameter(name) + part.of("three").get_parameter(name)) / 2
        torch.testing.assert_close(parameter, both)
        assert parameter.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, further.parameters(), strict=False))


def test_of_one_it_is_a_copy() -> None:
    inserted, x = adapters()
    further = soup(inserted, "new", of=["two"])
    assert torch.equal(output(further, x, "new"), output(further, x, "two"))


@pytest.mark.parametrize("alike", [True, False])
def test_outputs_are_averaged_where_the_same_units_are_active(alike: bool) -> None:
    inserted, x = adapters(alike)
    mean = torch.stack([output(inserted, x, task) for task in inserted.tasks]).mean(0)
    assert torch.allclose(output(soup(inserted, "new"), x, "new"), mean, atol=1e-5) is alike


def test_what_cannot_be() -> None:
    inserted, _ = adapters()
    for task, of, message in (
        ("new", ["twoo"], "unknown task 'twoo': did you mean 'two'"),
        ("new", [], "expected at least one"),
        ("two", None, "is there already"),
    ):
        with pytest.raises(InputError, match=message):
            soup(inserted, task, of)
    with pytest.raises(InputError, match="an insertion of lora, expected one of adapter"):
        soup(insert(nn.Linear(4, 3), LoRA(2), ["one"], where=""), "new")
