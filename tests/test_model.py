"""The model: what is asked for is computed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import polytask as pt
from polytask.errors import InputError
from polytask.model import Losses
from polytask.scope import current, task_index
from polytask.share import sharings

TASKS = [pt.Task.classification("left", classes=3), pt.Task.binary("right"), pt.Task.regression("type")]


def build(sharing: Any = None, encoder: nn.Module | None = None) -> pt.Model:
    torch.manual_seed(0)
    return pt.Model(encoder or nn.Sequential(nn.Linear(5, 6), nn.Tanh()), TASKS, sharing=sharing, width=6)


def batch(size: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    x = torch.randn(size, 5)
    return x, {"left": torch.arange(size) % 3, "right": (x[:, 0] > 0).float(), "type": x[:, 1]}


def test_outputs_are_heads_of_what_the_pathway_makes_of_the_features() -> None:
    model, (x, _) = build(), batch()
    outputs = model(x)
    assert list(outputs) == ["left", "right", "type"]
    for name, output in outputs.items():
        assert torch.equal(output, model.heads[name](model.encoder(x)))
    assert isinstance(model, Losses)


@pytest.mark.parametrize("sharing", sharings)
def test_one_task_alone_runs_its_own_head_only_and_gives_the_same(sharing: str) -> None:
    model, (x, _) = build(sharings[sharing]()).eval(), batch()
    together = model(x)
    ran: list[str] = []
    for name in model.tasks:
        model.heads[name].register_forward_hook(lambda *_, name=name: ran.append(name))
    alone = model(x, tasks=["right"])
    assert list(alone) == ran == ["right"]
    torch.testing.assert_close(alone["right"], together["right"])
    ran.clear()
    assert list(model(x, tasks=["type", "left"])) == ran == ["type", "left"]


@pytest.mark.parametrize("sharing", sharings)
def test_parameters_are_shared_or_one_tasks_own(sharing: str) -> None:
    model = build(sharings[sharing]())
    parts = [list(model.shared_parameters()), *(list(model.parameters_of(name)) for name in model.tasks)]
    assert sorted(id(p) for part in parts for p in part) == sorted(id(p) for p in model.parameters())


def test_losses_are_those_of_the_tasks_with_targets() -> None:
    model, (x, targets) = build(), batch()
    losses = model.losses((x, targets))
    outputs = model(x)
    torch.testing.assert_close(losses["left"], F.cross_entropy(outputs["left"], targets["left"]))
    torch.testing.assert_close(losses["right"], F.binary_cross_entropy_with_logits(outputs["right"][:, 0], targets["right"]))
    torch.testing.assert_close(losses["type"], F.mse_loss(outputs["type"][:, 0], targets["type"]))
    some = model.losses((x, {"right": targets["right"]}))
    assert list(some) == ["right"] and torch.equal(some["right"], losses["right"])
    each = model.losses({name: (x, target) for name, target in targets.items()})
    torch.testing.assert_close(each, losses)
    assert model.losses((x, {})) == {}
    counts = model.label_counts((x, targets))
    assert counts == model.label_counts({name: (x, target) for name, target in targets.items()})
    assert {name: int(count) for name, count in counts.items()} == {"left": 8, "right": 8, "type": 8}


def test_named_inputs_reach_the_encoder() -> None:
    class Two(nn.Module):
        width = 6

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 6), nn.Linear(3, 6)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.a(x["a"]) + self.b(x["b"])  # type: ignore[no-any-return]

    data = pt.Examples({"a": torch.randn(9, 2), "b": torch.randn(9, 3)}, batch(9)[1])
    model = pt.Model(Two(), TASKS)
    fitted = pt.fit(model, data, data, steps=3, batch_size=4)
    assert list(fitted.metrics) == ["left", "right", "type"]


def test_predictions_are_in_the_users_units_and_need_no_gradient() -> None:
    task = pt.Task.regression("type", scale=((100.0,), (10.0,)))
    model = pt.Model(nn.Linear(5, 6), [TASKS[0], TASKS[1], task], width=6)
    x, _ = batch()
    predictions, outputs = model.predict(x), model(x)
    torch.testing.assert_close(predictions["left"].sum(1), torch.ones(8))
    torch.testing.assert_close(predictions["right"], outputs["right"][:, 0].sigmoid().detach())
    torch.testing.assert_close(predictions["type"], outputs["type"].detach() * 10 + 100)
    assert not any(p.requires_grad for p in predictions.values())
    assert list(model.predict(x, ["type"])) == ["type"] and model.training


class Told(nn.Module):
    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.token = nn.Linear(5, 6), nn.Embedding(3, 6)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(current())
        out: Tensor = self.linear(x) + self.token(task_index(x, ["left", "right", "type"]))
        return out


def test_the_scope_is_open_wherever_one_task_runs() -> None:
    model, (x, targets) = build(encoder=Told()), batch()
    model.losses({name: (x, target) for name, target in targets.items()})
    model.losses((x, {"type": targets["type"]}))
    model.predict(x, ["right"])
    with pt.task_scope("left"):
        model(x, ["left"])
    assert [seen.names for seen in model.encoder.seen] == [
        ("left",),
        ("right",),
        ("type",),
        ("type",),
        ("right",),
        ("left",),
    ]
    with pytest.raises(InputError, match="no task scope is open"):
        model.losses((x, targets))
    mixed = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    with pt.task_scope(["left", "right", "type"], mixed):
        outputs = model(x)
    for i, name in enumerate(("left", "right", "type")):
        with pt.task_scope(name):
            torch.testing.assert_close(model(x, [name])[name][mixed == i], outputs[name][mixed == i])


@pytest.mark.parametrize("name", ["type", "values", "training", "forward", "a b", "a,b", "ü"])
def test_a_task_may_have_any_name_that_a_column_has(name: str) -> None:
    for sharing in sharings:
        model = pt.Model(nn.Linear(5, 6), [pt.Task.binary(name), pt.Task.binary("other")], sharings[sharing](), width=6)
        x, targets = batch()
        data = pt.Examples(x, {name: targets["right"], "other": 1 - targets["right"]})
        assert list(pt.fit(model, data, data, steps=2, batch_size=4).metrics) == [name, "other"]
        again = pt.Model(nn.Linear(5, 6), [pt.Task.binary(name), pt.Task.binary("other")], sharings[sharing](), width=6)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(x)[name], model.eval()(x)[name])


def test_errors_name_the_task_or_what_is_missing() -> None:
    model, (x, targets) = build(), batch()
    with pytest.raises(InputError, match="unknown task 'lefd': did you mean 'left'"):
        model(x, ["lefd"])
    with pytest.raises(InputError, match="unknown task 'rigth': did you mean 'right'"):
        model.losses((x, {"rigth": targets["right"]}))
    with pytest.raises(InputError, match="unknown task 'tpe'"):
        list(model.parameters_of("tpe"))
    with pytest.raises(InputError, match="pass width="):
        pt.Model(nn.Linear(5, 6), TASKS)
    with pytest.raises(InputError, match="two tasks are named 'left'"):
        pt.Model(nn.Linear(5, 6), [TASKS[0], TASKS[0]], width=6)
    with pytest.raises(InputError, match="no task was given"):
        pt.Model(nn.Linear(5, 6), [], width=6)


def test_polytask_has_the_names_that_it_lists_and_no_other() -> None:
    for name in pt.__all__:
        assert getattr(pt, name) is not None
    assert set(pt.__all__) <= set(dir(pt))
    with pytest.raises(AttributeError, match="module 'polytask' has no attribute 'modell'"):
        _ = pt.modell
