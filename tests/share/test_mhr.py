"""Multi-head adapter routing and Polytropon: closed forms, what they reduce to, transfer, and equality with PEFT."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import MHR, Insertable, Inserted, LoRA, Polytropon, _low_rank, as_lora, averaged, insert, load_inserted

TASKS = ("one", "two", "three")
INDEX = torch.tensor([2, 0, 1, 2, 2])


def made(method: Insertable, tasks: tuple[str, ...] = TASKS, inputs: int = 8, outputs: int = 4) -> tuple[nn.Linear, Any]:
    """A layer in evaluation mode whose part is away from its start."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).eval()
    part: Any = insert(layer, method, tasks, where="").parts[""]
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    return layer, part


def network(method: Insertable, spread: float = 0.5) -> tuple[nn.Module, Inserted]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    inserted = insert(model, method, TASKS)
    with torch.no_grad():
        for parameter in inserted.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model, inserted


def output_of(module: nn.Module, task: str, x: Tensor) -> Tensor:
    with task_scope(task), torch.no_grad():
        result: Tensor = module(x)
    return result


def test_each_block_by_itself() -> None:
    """``A_q = sum_i w_qi A_i[q]`` from the inputs of block q, ``B_q`` into its outputs, both with the block's weights."""
    layer, part = made(MHR(skills=3, heads=2, rank=2, alpha=6))
    x = torch.randn(5, 8)
    for task in TASKS:
        chances = part.logits[task].sigmoid()
        hidden = torch.zeros(5, 2)
        weights = [[chances[q, s] / chances[q].sum() for s in range(3)] for q in range(2)]
        for q in range(2):
            a = sum(weights[q][s] * part.a[s][:, 4 * q : 4 * q + 4] for s in range(3))
            hidden = hidden + x[:, 4 * q : 4 * q + 4] @ a.T
        wanted = nn.functional.linear(x, layer.weight, layer.bias)
        for q in range(2):
            b = sum(weights[q][s] * part.b[s][:, 2 * q : 2 * q + 2] for s in range(3))
            wanted[:, 2 * q : 2 * q + 2] += 6 / 2 * hidden @ b
        torch.testing.assert_close(output_of(layer, task, x), wanted.detach())


def test_factors_are_mixed_and_not_their_products() -> None:
    """Two skills that are each 0 as a product: together they are not."""
    layer, part = made(Polytropon(skills=2, rank=1), ("only",), 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        part.a.copy_(torch.tensor([2.0, 0.0]).view(2, 1, 1))
        part.b.copy_(torch.tensor([0.0, 6.0]).view(2, 1, 1))
        part.logits["only"].zero_()
    assert float(output_of(layer, "only", torch.ones(1, 1))) == pytest.approx(1.0 * 3.0)


def test_one_head_is_polytropon() -> None:
    x = torch.randn(5, 8)
    outputs = []
    for method in (MHR(skills=4, heads=1, rank=2), Polytropon(skills=4, rank=2)):
        layer, _ = made(method)
        with task_scope(TASKS, INDEX):
            outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_heads_only_divide() -> None:
    """With the same weights in every head it is what one head gives."""
    one, part = made(Polytropon(skills=4, rank=2))
    many, other = made(MHR(skills=4, heads=4, rank=2))
    with torch.no_grad():
        other.a.copy_(part.a)
        other.b.copy_(part.b)
        for task in TASKS:
            other.logits[task].copy_(part.logits[task].expand(4, -1))
    x = torch.randn(5, 8)
    for task in TASKS:
        torch.testing.assert_close(output_of(many, task, x), output_of(one, task, x))


def test_one_skill_is_lora_for_any_logits() -> None:
    layer, part = made(MHR(skills=1, heads=2, rank=2, alpha=6))
    plain, lora = made(LoRA(rank=2, alpha=6))
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "." not in name}, strict=False)
    with torch.no_grad():
        part.logits["one"].fill_(-10)
        for task in TASKS:
            lora.of(task).a.copy_(part.a[0])
            lora.of(task).b.copy_(part.b[0].T)
    x = torch.randn(5, 8)
    for task in TASKS:
        torch.testing.assert_close(output_of(layer, task, x), output_of(plain, task, x))


def test_skills_have_no_order() -> None:
    layer, part = made(MHR(skills=4, heads=2, rank=2))
    x, order = torch.randn(5, 8), torch.tensor([2, 0, 3, 1])
    before = [output_of(layer, task, x) for task in TASKS]
    with torch.no_grad():
        part.a.copy_(part.a[order].clone())
        part.b.copy_(part.b[order].clone())
        for task in TASKS:
            part.logits[task].copy_(part.logits[task][:, order].clone())
    for task, output in zip(TASKS, before, strict=True):
        torch.testing.assert_close(output_of(layer, task, x), output)


def test_what_it_begins_with() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 256)
    x = torch.randn(3, 512)
    before = layer(x)
    part: Any = insert(layer, MHR(skills=8, heads=64, rank=4), TASKS, where="").parts[""]
    bound = math.sqrt(2 / 6) / math.sqrt(512)  # a gain of sqrt(2 / (1 + 5)), over all inputs rather than those of a head
    assert 0.99 * bound < part.a.abs().max() <= bound and not part.b.any()
    for task in TASKS:
        logits = part.logits[task]
        assert logits.shape == (64, 8) and 0.9e-3 < logits.abs().max() <= 1e-3
        assert torch.equal(output_of(layer, task, x), before)
        a, _ = part.mixed(logits[None])
        torch.testing.assert_close(a[0], part.a.mean(0), atol=1e-3 * bound, rtol=0)


@pytest.mark.parametrize("shape", [(2, 8), (6, 8), (6, 5, 8)])
def test_every_way_of_multiplying_agrees(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer examples than tasks, with more, and with more ranks than one product takes."""
    layer, _ = made(MHR(skills=3, heads=2, rank=2))
    x, index = torch.randn(shape), torch.tensor([2, 0, 1, 2, 2, 0])[: shape[0]]
    wanted = torch.cat([output_of(layer, TASKS[int(task)], row[None]) for task, row in zip(index, x, strict=True)])
    for widest in (0, 256):
        monkeypatch.setattr(_low_rank, "WIDEST", widest)
        with task_scope(TASKS, index):
            torch.testing.assert_close(layer(x), wanted)


def test_weights_of_a_layer_in_half_precision_are_in_single() -> None:
    layer = nn.Linear(8, 4).bfloat16()
    part: Any = insert(layer, MHR(skills=3, heads=2), TASKS, where="").parts[""]
    assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert part.mixed(part.logits["one"][None])[0].dtype == torch.float32
    assert output_of(layer, "one", torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


# Relaxation


def test_weights_are_drawn_while_training_alone() -> None:
    _, part = made(MHR(skills=3, heads=2, temperature=1.0))
    logits = part.logits["one"][None]
    assert torch.equal(part.mixed(logits)[0], part.mixed(logits)[0])
    part.train()
    assert not torch.equal(part.mixed(logits)[0], part.mixed(logits)[0])
    _, fixed = made(MHR(skills=3, heads=2))
    assert torch.equal(fixed.train().mixed(logits)[0], fixed.mixed(logits)[0])


def test_drawn_weights_are_relaxed_bernoulli_variables() -> None:
    """Above a half as often as ``sigmoid(z)`` says, and mostly near 0 or 1; seen beside a skill that is always on."""
    method = Polytropon(skills=2, rank=1, temperature=0.1)
    _, part = made(method, ("only",), 1, 1)
    part.train()
    with torch.no_grad():
        part.a.copy_(torch.tensor([0.0, 1.0]).view(2, 1, 1))
    logits = torch.tensor([[30.0, -0.7]]).expand(20_000, 1, 2)
    weight = part.mixed(logits)[0].flatten()  # g / (1 + g)
    gates = (weight / (1 - weight)).detach()
    chance = float(torch.tensor(-0.7).sigmoid())
    assert float((gates > 0.5).float().mean()) == pytest.approx(chance, abs=0.015)
    assert float(((gates < 0.1) | (gates > 0.9)).float().mean()) > 0.85


# Routing that layers share


def test_layers_share_their_logits_as_they_are_told() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            queried: Tensor = self.query(x)
            return queried + self.key(x)

    tables = {"layer": 4, "model": 1, r"^\d+": 2, r"query|key": 2}
    for routing, count in tables.items():
        torch.manual_seed(0)
        model = nn.Sequential(Block(), Block())
        inserted = insert(model, MHR(skills=3, heads=2, routing=routing), TASKS)
        parts: Any = inserted.parts
        assert len({id(part.logits["one"]) for part in parts.values()}) == count
        assert inserted.count()["task one"] == count * 2 * 3
        assert (parts["0.query"].logits is parts["0.key"].logits) == (routing in ("model", r"^\d+"))
        grown = inserted.add_tasks(["four"])
        assert grown.tasks == (*TASKS, "four") and grown.count()["task four"] == count * 2 * 3
        output_of(model, "four", torch.randn(2, 8))
    with pytest.raises(InputError, match=r"routing 'block' is not found in '0\.query', the name of a layer"):
        insert(nn.Sequential(Block()), MHR(skills=3, heads=2, routing="block"), TASKS)


def test_shared_logits_are_saved_once(tmp_path: Path) -> None:
    model, inserted = network(MHR(skills=3, heads=2, routing="model"))
    inserted.save(tmp_path / "skills.safetensors")
    assert len([name for name in inserted.state_dict() if "logits" in name]) == len(TASKS)
    other = copy.deepcopy(model)
    Inserted(other, inserted.method, TASKS, "mhr", inserted.parts).remove()
    load_inserted(other, tmp_path / "skills.safetensors")
    x = torch.randn(3, 8)
    for task in TASKS:
        torch.testing.assert_close(output_of(other, task, x), output_of(model, task, x))


# Transfer to other tasks


def test_a_new_task_has_even_weights_and_changes_no_other() -> None:
    model, inserted = network(MHR(skills=3, heads=2))
    x = torch.randn(5, 8)
    before = [output_of(model, task, x) for task in TASKS]
    grown = inserted.add_tasks(["four"])
    for task, output in zip(TASKS, before, strict=True):
        assert torch.equal(output_of(model, task, x), output)
    parts: Any = grown.parts
    for part in parts.values():
        assert part.logits["four"].shape == (2, 3) and part.logits["four"].abs().max() <= 1e-3
        assert part.logits["four"].any()
    with pytest.raises(InputError, match="task 'four' is there already"):
        grown.add_tasks(["four"])


def test_routing_alone_is_trained() -> None:
    """MHR-z: as many numbers as layers x heads x skills, and nothing else moves."""
    model, inserted = network(MHR(skills=3, heads=2))
    grown = inserted.add_tasks(["four"]).freeze("*.logits.*")
    trained = {p for p in model.parameters() if p.requires_grad}
    assert grown.count()["task four"] == 2 * 2 * 3 and set(grown.parameters_of("four")) <= trained
    assert not any(p in trained for p in grown.shared_parameters())
    kept = copy.deepcopy(grown.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with task_scope("four"):
        model(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in grown.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert len(moved) == 2 and all(".logits." in name and name.endswith("four") for name in moved)


def test_as_loras_of_the_tasks_it_does_the_same() -> None:
    model, inserted = network(MHR(skills=3, heads=2, rank=2, alpha=6, dropout=0.1, temperature=1.0))
    x = torch.randn(5, 8)
    before = {task: output_of(model, task, x) for task in TASKS}
    lora = as_lora(inserted)
    assert lora.method == LoRA(rank=2, alpha=6, dropout=0.1) and lora.tasks == TASKS
    for task, output in before.items():
        torch.testing.assert_close(output_of(model, task, x), output)
    assert not any(name.endswith("logits") for name, _ in model.named_modules())
    folded = lora.fold("two")
    torch.testing.assert_close(folded(x), before["two"])


def test_written_into_the_weights() -> None:
    model, inserted = network(MHR(skills=3, heads=2, rank=2, alpha=6))
    x = torch.randn(5, 8)
    wanted = output_of(model, "two", x)
    plain = inserted.fold("two")
    torch.testing.assert_close(plain(x), wanted)
    assert [type(module) for module in plain] == [nn.Linear, nn.Tanh, nn.Linear]


def test_averaged_skills_are_one_adapter_with_the_mean_of_the_factors() -> None:
    model, inserted = network(MHR(skills=3, heads=2, rank=2, alpha=6))
    parts: Any = inserted.parts
    means = {place: (part.a.mean(0), part.b.mean(0)) for place, part in parts.items()}
    grown = inserted.add_tasks(["new"])
    for part in parts.values():
        nn.init.zeros_(part.logits["new"])
    x = torch.randn(5, 8)
    even = output_of(model, "new", x)
    lora: Any = averaged(grown, ["new"])
    for place, (a, b) in means.items():
        torch.testing.assert_close(lora.parts[place].of("new").a, a)
        torch.testing.assert_close(lora.parts[place].of("new").b, b.mT)
    torch.testing.assert_close(output_of(model, "new", x), even)
    assert lora.count()["inserted"] == 2 * (8 + 12) + 2 * (12 + 4)


def test_under_equal_weights_a_skill_gets_its_share_of_the_means_gradient() -> None:
    """So the paths of an adaptive optimizer differ between fixed equal weights and the averaged form."""
    layer, part = made(MHR(skills=4, heads=2, rank=2), ("one",))
    nn.init.zeros_(part.logits["one"])
    other = copy.deepcopy(layer)
    mean: Any = averaged(
        Inserted(other, MHR(skills=4, heads=2, rank=2), ("one",), "mhr", {"": other.task_parts["mhr"]}), ["one"]
    )
    x = torch.randn(5, 8)
    for module in (layer, other):
        with task_scope("one"):
            module(x).square().sum().backward()
    factors = mean.parts[""].of("one")
    for skill in range(4):
        torch.testing.assert_close(4 * part.a.grad[skill], factors.a.grad)
        torch.testing.assert_close(4 * part.b.grad[skill], factors.b.grad.mT)


def test_only_skills_can_be_averaged() -> None:
    for change in (as_lora, lambda inserted: averaged(inserted, ["new"])):
        _, inserted = network(LoRA())
        with pytest.raises(InputError, match="an insertion of lora, expected one of mhr or polytropon"):
            change(inserted)


# Counts and settings


@pytest.mark.parametrize(("inputs", "outputs"), [(2048, 2048), (2048, 5120), (5120, 2048)])
def test_counts_at_the_size_of_the_papers_layers(inputs: int, outputs: int) -> None:
    """Polytropon adds ``S r (in + out) + T S`` numbers to a layer, more heads ``T S (h - 1)`` besides."""
    counts = {}
    for heads in (1, 64):
        with torch.device("meta"):
            inserted = insert(nn.Linear(inputs, outputs), MHR(skills=8, heads=heads, rank=1), TASKS, where="")
        counts[heads] = inserted.count()
        assert counts[heads]["inserted"] == 8 * (inputs + outputs) + 3 * 8 * heads
    assert counts[64]["task one"] == 512
    assert counts[64]["inserted"] - counts[1]["inserted"] == 3 * 8 * 63


@pytest.mark.parametrize(("inputs", "outputs", "message"), [(9, 8, "9 inputs"), (8, 9, "8 outputs|9 outputs")])
def test_heads_that_do_not_divide_a_layer_are_refused(inputs: int, outputs: int, message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(inputs, outputs))
    with pytest.raises(InputError, match=f"mhr: ({message}) cannot be cut into 4 heads of equal size"):
        insert(model, MHR(heads=4), TASKS)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear] and not hasattr(model[0], "task_parts")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skills": 0}, "mhr: 0 skills, 8 heads, rank 1: expected at least 1 of each"),
        ({"heads": 0}, "expected at least 1 of each"),
        ({"temperature": 0.0}, "mhr: temperature 0.0, expected more than 0, or None"),
        ({"routing": "("}, r"mhr: routing '\(': not a regular expression"),
        ({"dropout": 1.0}, "mhr: dropout 1.0, expected from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MHR(**settings)


# PEFT


@pytest.mark.parametrize("heads", [1, 4])
def test_equal_to_peft(heads: int) -> None:
    """The same skills and logits in both, on tokens of mixed tasks: outputs and gradients."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    config = peft.PolyConfig(r=2, n_tasks=3, n_skills=5, n_splits=heads, target_modules=["0", "2"], init_weights=False)
    ours = copy.deepcopy(base).eval()
    inserted: Any = insert(ours, MHR(skills=5, heads=heads, rank=2, alpha=1), TASKS).freeze()
    theirs = peft.get_peft_model(base, config).eval()
    for place, part in inserted.parts.items():
        layer = theirs.base_model.model.get_submodule(place)
        with torch.no_grad():
            part.a.copy_(layer.poly_lora_A["default"].permute(1, 3, 0, 2).flatten(2))
            part.b.copy_(layer.poly_lora_B["default"].permute(1, 2, 0, 3).flatten(2))
            layer.poly_router["default"].module_logits.normal_()
            for task, row in zip(TASKS, layer.poly_router["default"].module_logits, strict=True):
                part.logits[task].copy_(row.view(heads, 5))
    x = torch.randn(5, 7, 8)
    with task_scope(TASKS, INDEX):
        mine = ours(x)
    other = theirs.base_model(x, task_ids=INDEX)
    torch.testing.assert_close(mine, other)
    mine.square().sum().backward()
    other.square().sum().backward()
    for place, part in inserted.parts.items():
        layer = theirs.base_model.model.get_submodule(place)
        torch.testing.assert_close(part.a.grad, layer.poly_lora_A["default"].grad.permute(1, 3, 0, 2).flatten(2))
        torch.testing.assert_close(part.b.grad, layer.poly_lora_B["default"].grad.permute(1, 2, 0, 3).flatten(2))
        logits = torch.stack([part.logits[task].grad.flatten() for task in TASKS])
        torch.testing.assert_close(logits, layer.poly_router["default"].module_logits.grad, atol=1e-5, rtol=1e-4)
