"""Which modules of an encoder depend on the task."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import polytask as pt
from polytask.scope import current
from polytask.share import LoRA, TaskDependent, insert, task_dependent


class Shifted(TaskDependent):
    """A task's own vector is added to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ParameterDict({"a": torch.zeros(3), "b": torch.ones(3)})

    def forward(self, x: Tensor) -> Tensor:
        scope = current()
        assert scope is not None
        return x + self.own[scope.names[0]]

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return iter([self.own[task]] if task in self.own else [])


def test_a_model_opens_a_scope_for_each_task_where_a_module_depends_on_it() -> None:
    encoder = nn.Sequential(nn.Linear(2, 3), Shifted())
    model = pt.Model(encoder, [pt.Task.regression("a"), pt.Task.regression("b")], width=3)
    x = torch.randn(4, 2)
    outputs = model(x)
    torch.testing.assert_close(outputs["a"], model.heads["a"](encoder[0](x)))
    torch.testing.assert_close(outputs["b"], model.heads["b"](encoder[0](x) + 1))
    shared, own = list(model.shared_parameters()), list(model.parameters_of("a"))
    assert len(shared) == 2 and own[0] is encoder[1].own["a"] and len(own) == 3


def test_what_is_inserted_depends_on_the_task_and_a_plain_module_does_not() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    assert list(task_dependent(network)) == []
    inserted = insert(network, LoRA(rank=1), ["a"], where="1")
    assert list(task_dependent(network)) == list(inserted.parts.values())
