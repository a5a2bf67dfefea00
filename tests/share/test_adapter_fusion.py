"""AdapterFusion: equality with attention written out, its special cases, and the penalty on its values."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask import task_scope
from polytask.errors import InputError
from polytask.model import Model
from polytask.share import Adapter, AdapterFusion, Inserted, insert, penalties, transferred
from polytask.task import Task

SOURCES = ("one", "two", "three")


def fused(place: Any = "norm", sources: tuple[str, ...] = SOURCES, width: int = 6) -> tuple[Inserted, Inserted, Tensor]:
    """Adapters of three tasks at one module, and a fusion of some of them for two tasks in their place."""
    torch.manual_seed(0)
    module = nn.LayerNorm(width) if place == "norm" else nn.Linear(width, 4)
    inserted = insert(module, Adapter(2, place, "relu"), SOURCES, where="")
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    found = transferred(inserted, AdapterFusion(dropout=0.0), ["new", "other"], sources)
    return inserted, found, torch.randn(5, 3, width)


def run(inserted: Inserted, x: Tensor, task: str = "new") -> Tensor:
    with task_scope(task):
        output: Tensor = inserted.model(x)
    return output


@pytest.mark.parametrize("place", ["norm", "sequential", "parallel"])
def test_it_is_attention_over_the_sources_of_each_token(place: Any) -> None:
    """Keys and values of every source, written out, where the part multiplies once a token."""
    inserted, found, x = fused(place)
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    adapters: Any = inserted.parts[""]
    part: Any = found.parts[""]
    plain = F.layer_norm(x, (6,)) if place == "norm" else F.linear(x, found.model.weight, found.model.bias)
    read = x if place == "parallel" else plain
    ups = [adapters.of(source).up(adapters.of(source).down(read).relu()) for source in SOURCES]
    query = F.linear(read, part.query["other"], part.query_bias["other"])
    keys = [F.linear(up, part.key["other"], part.key_bias["other"]) for up in ups]
    shares = torch.stack([(query * key).sum(-1) for key in keys]).softmax(0)
    added = sum(share[..., None] * F.linear(up, part.value["other"]) for share, up in zip(shares, ups, strict=True))
    expected = F.layer_norm(x + added, (6,)) if place == "norm" else plain + added
    torch.testing.assert_close(run(found, x, "other"), expected, rtol=1e-4, atol=1e-5)


def test_count_at_the_papers_scale() -> None:
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.LayerNorm(768) for _ in range(12)))
        adapters = insert(layers, Adapter(48, "norm"), [str(task) for task in range(8)])
        found = transferred(adapters, AdapterFusion(), ["new"])
    assert found.count()["inserted"] == found.count()["task new"] == 12 * (3 * 768**2 + 2 * 768) == 21_252_096


def test_how_it_begins() -> None:
    _, found, x = fused(width=64)
    part: Any = found.parts[""]
    for weight in (part.query["new"], part.key["new"]):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not part.query_bias["new"].any() and not part.key_bias["new"].any()
    value = part.value["new"].detach()
    assert torch.equal(value.diagonal(), torch.ones(64))
    assert torch.equal(value[~torch.eye(64, dtype=torch.bool)], torch.full((64 * 63,), 1e-6))
    with torch.no_grad():  # with a query of 0 it is the mean of the sources
        part.query["new"].zero_()
        added = part.sources(F.layer_norm(x, (64,))).mean(-2)
    torch.testing.assert_close(run(found, x), F.layer_norm(x + added, (64,)), atol=1e-3, rtol=0)


def test_one_source_is_its_adapter() -> None:
    inserted, found, x = fused(sources=("two",))
    part: Any = found.parts[""]
    with torch.no_grad():
        part.value["new"].copy_(torch.eye(6))
    fusion = run(found, x)
    found.remove()
    read = F.layer_norm(x, (6,))
    adapter: Any = inserted.parts[""]
    expected = F.layer_norm(x + adapter.of("two").up(adapter.of("two").down(read).relu()), (6,))
    torch.testing.assert_close(fusion, expected)


def test_the_order_of_sources_does_not_matter() -> None:
    _, found, x = fused()
    _, other, _ = fused(sources=("three", "one", "two"))
    torch.testing.assert_close(run(found, x), run(other, x))


def test_dropout_is_of_scores_and_while_training() -> None:
    inserted, _, x = fused()
    found = transferred(inserted, AdapterFusion(dropout=0.5), ["new"])
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(run(found, x), run(found, x))
    found.model.eval()
    assert torch.equal(run(found, x), run(found, x))


def test_the_penalty_draws_values_to_the_identity() -> None:
    _, found, x = fused()
    part: Any = found.parts[""]
    with torch.no_grad():
        part.value["new"].copy_(torch.eye(6) + 0.5)
        part.value["other"].copy_(torch.eye(6))

    def penalty(names: list[str], index: list[int]) -> Tensor:
        with penalties(found.model) as terms, task_scope(names, torch.tensor(index)):
            found.model(x)
        (term,) = terms
        return term

    for index, expected in ([0] * 5, 0.01 * 36 * 0.25), ([1] * 5, 0.0), ([1, 0, 0, 1, 0], 0.01 * 36 * 0.25):
        assert penalty(["new", "other"], index).item() == pytest.approx(expected)
    with penalties(found.model) as terms:
        run(found, x)
    assert terms[0].item() == pytest.approx(0.09)
    terms[0].backward()
    torch.testing.assert_close(part.value["new"].grad, torch.full((6, 6), 0.01))
    assert part.value["other"].grad is None
    found.model.eval()
    with penalties(found.model) as terms:
        run(found, x)
    assert terms == []


def test_a_model_adds_the_penalty_to_its_loss() -> None:
    _, found, x = fused()
    model = Model(nn.Sequential(found.model, nn.Flatten()), [Task.regression("new")], width=18)
    target = torch.zeros(5, 1)
    part: Any = found.parts[""]
    with torch.no_grad():
        part.value["new"].add_(1.0)
    loss = model.losses({"new": (x, target)})["new"]
    plain = model.tasks["new"].loss(model(x)["new"], target)
    distance = (part.value["new"] - torch.eye(6)).square().sum()
    torch.testing.assert_close(loss, plain + 0.01 * distance)


def test_only_the_fusion_is_trained() -> None:
    _, found, x = fused()
    found.freeze()
    run(found, x).square().sum().backward()
    assert {p for p in found.model.parameters() if p.grad is not None} == set(found.parameters_of("new"))
    more = found.add_tasks(["late"])
    assert more.count()["task late"] == more.count()["task new"] == 3 * 36 + 12


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"penalty": -1.0}, {"sources": 0}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^adapter_fusion: "):
        AdapterFusion(**settings)
