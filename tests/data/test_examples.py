"""Examples, data sets and their way to a device."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.data import DataSet, Examples, to_device
from polytask.errors import InputError


def examples(size: int = 7) -> Examples:
    numbers = torch.arange(size)
    return Examples({"a": numbers.float(), "b": numbers[:, None] * 10}, {"left": numbers * 2, "right": -numbers.float()})


@given(st.integers(1, 9), st.data())
def test_an_index_takes_the_same_rows_of_every_tensor(size: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, size - 1), max_size=12))
    inputs, targets = examples(size)[torch.tensor(index, dtype=torch.int64)]
    assert isinstance(inputs, dict)
    assert inputs["a"].tolist() == index and inputs["b"][:, 0].tolist() == [10 * i for i in index]
    assert targets["left"].tolist() == [2 * i for i in index] and targets["right"].tolist() == [-i for i in index]


def test_integers_slices_and_subsets() -> None:
    data = examples()
    inputs, targets = data[3]
    assert isinstance(inputs, dict) and inputs["a"] == 3 and targets["left"] == 6
    assert data[2:5][1]["left"].tolist() == [4, 6, 8] and len(data) == 7
    subset = data.subset(torch.tensor([6, 0]))
    assert len(subset) == 2 and subset.targets["left"].tolist() == [12, 0]
    subset.targets["left"][0] = 99
    assert data.targets["left"][6] == 12
    only = data.only(["right"])
    assert list(only.targets) == ["right"] and only.inputs is data.inputs
    with pytest.raises(InputError, match="no target 'rigth': did you mean 'right'"):
        data.only(["rigth"])


def test_a_torch_loader_batches_them() -> None:
    inputs, targets = next(iter(DataLoader(examples(), batch_size=3)))
    assert inputs["a"].tolist() == [0, 1, 2] and targets["left"].tolist() == [0, 2, 4]


def test_examples_are_compared_by_identity() -> None:
    one, other = examples(), examples()
    assert one == one and one != other and len({one, other}) == 2


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(InputError, match=r"\{'inputs': 3, \"target 'left'\": 2\}, expected one length"):
        Examples(torch.zeros(3, 2), {"left": torch.zeros(2)})
    with pytest.raises(InputError, match="without inputs"):
        Examples({}, {"left": torch.zeros(2)})


def dataset(**changes: Any) -> DataSet:
    data = examples()
    settings: dict[str, Any] = {
        "name": "small",
        "tasks": [pt.Task.regression("right", scale="standard"), pt.Task.regression("left")],
        "train": data,
        "validation": data.subset(torch.arange(2)),
        "test": data.subset(torch.arange(3)),
        "encoder": lambda: nn.Identity(),
    }
    return DataSet(**(settings | changes))


def test_tasks_learn_their_scale_from_the_training_labels_alone() -> None:
    found = dataset().task("right")
    values = -torch.arange(7.0)
    assert found.settings()["scale"] == [[float(values.mean())], [float(values.std(correction=0))]]
    assert [task.name for task in dataset().tasks] == ["right", "left"]


def test_a_part_of_the_tasks() -> None:
    part = dataset().only(["left"])
    assert [task.name for task in part.tasks] == ["left"]
    assert all(list(split.targets) == ["left"] for split in (part.train, part.validation, part.test))
    with pytest.raises(InputError, match="small: unknown task 'lefd': did you mean 'left'"):
        dataset().only(["lefd"])


def test_splits_that_cannot_be_used_are_named() -> None:
    empty = examples().subset(torch.arange(0))
    with pytest.raises(InputError, match="small: the validation split has no examples"):
        dataset(validation=empty)
    with pytest.raises(InputError, match="small: the test split has no target 'right'"):
        dataset(test=examples().only(["left"]))
    with pytest.raises(InputError, match="two tasks are named"):
        dataset(tasks=[pt.Task.regression("left")] * 2)


Pair = namedtuple("Pair", ["x", "y"])


def test_to_device_keeps_the_structure() -> None:
    meta = torch.device("meta")
    value = {"a": torch.zeros(2), "b": [torch.zeros(1), (torch.zeros(3), "text")], "c": Pair(torch.zeros(4), None)}
    moved = to_device(value, meta)
    assert moved["a"].device == meta and moved["b"][0].device == meta and moved["b"][1][0].device == meta
    assert isinstance(moved["b"], list) and isinstance(moved["b"][1], tuple) and moved["b"][1][1] == "text"
    assert isinstance(moved["c"], Pair) and moved["c"].x.device == meta and moved["c"].y is None
    same = to_device(value, torch.device("cpu"))
    assert same["a"] is value["a"]
