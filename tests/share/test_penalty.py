"""Penalties: they join the losses of the pass that they were added in, and of no other."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask.data import Examples
from polytask.model import Model
from polytask.share import LoRA, Penalty, insert, penalties
from polytask.task import Task
from polytask.training import fit


class Shy(nn.Module):
    """A linear layer that wants to be small."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.penalty = nn.Linear(4, 3), Penalty()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.penalty.wanted:
            self.penalty.add(self.layer.weight.square().sum())
        output: Tensor = self.layer(x)
        return output


def model() -> Model:
    torch.manual_seed(0)
    return Model(Shy(), [Task.regression("a"), Task.regression("b")], width=3)


def test_the_tasks_of_a_pass_share_it_and_each_pass_has_its_own() -> None:
    made, x, y = model(), torch.randn(6, 4), torch.randn(6)
    shy = made.encoder.layer.weight.square().sum().item()  # type: ignore[union-attr, operator, arg-type]
    with_penalty = made.losses((x, {"a": y, "b": y}))
    alone = made.losses({"a": (x, y), "b": (x, y)})
    without = made.eval().losses((x, {"a": y, "b": y}))
    for task in ("a", "b"):
        assert float(with_penalty[task] - without[task]) == pytest.approx(shy / 2, rel=1e-4)
        assert float(alone[task] - without[task]) == pytest.approx(shy, rel=1e-4)
    insert(made.encoder, LoRA(), ["a", "b"])  # a pass for each task of the batch
    passes = made.train().losses((x, {"a": y, "b": y}))
    assert float(passes["a"] - without["a"]) == pytest.approx(shy, rel=1e-4)


def test_only_what_is_collected_is_computed_and_copies_hold_nothing() -> None:
    shy = Shy()
    shy(torch.ones(1, 4))
    assert not shy.penalty.wanted and shy.penalty.take() is None
    with penalties(shy) as found:
        shy(torch.ones(1, 4))
        shy(torch.ones(1, 4))
        assert copy.deepcopy(shy).penalty.take() is None
    torch.testing.assert_close(sum(found), 2 * shy.layer.weight.square().sum())
    with penalties(shy.eval()) as found:
        shy(torch.ones(1, 4))
    assert found == []


def test_what_is_computed_again_in_the_backward_pass_adds_nothing() -> None:
    shy, x = Shy(), torch.randn(2, 4, requires_grad=True)
    with penalties(shy) as found:
        y = checkpoint(shy, x, use_reentrant=False)
    (y.sum() + sum(found)).backward()
    plain = torch.autograd.grad(shy.layer(x).sum() + shy.layer.weight.square().sum(), shy.layer.weight)
    torch.testing.assert_close(shy.layer.weight.grad, plain[0])
    assert shy.penalty.take() is None


def test_compiled_once_and_trained() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    shy, x = Shy(), torch.randn(2, 4)
    compiled = torch.compile(shy, backend=count, fullgraph=True)
    for _ in range(3):
        with penalties(shy) as found:
            compiled(x)
        torch.testing.assert_close(found[0], shy.layer.weight.square().sum())
    assert len(graphs) == 1
    made = model()
    start = made.encoder.layer.weight.square().sum().item()  # type: ignore[union-attr, operator, arg-type]
    zeros = dict.fromkeys(("a", "b"), torch.zeros(8))
    fit(made, Examples(torch.zeros(8, 4), zeros), steps=60, batch_size=8, optimizer=partial(torch.optim.SGD, lr=0.05))
    assert made.encoder.layer.weight.square().sum().item() < 0.1 * start  # type: ignore[union-attr, operator, arg-type]
