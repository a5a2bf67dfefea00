"""ScaLearn: its oracles, one by one; what is taken over from adapters, and what one adapter of it costs."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask import task_scope
from polytask.errors import InputError
from polytask.share import Adapter, Inserted, ScaLearn, as_adapter, insert, load_inserted, soup, transferred

SOURCES = ("one", "two", "three")
VARIANTS = [(coefficients, per) for coefficients in ("vector", "scalar") for per in ("layer", "model")]


class Block(nn.Module):
    """The feed-forward half of a BERT layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.up, self.down, self.LayerNorm = nn.Linear(width, 9), nn.Linear(9, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.down(F.gelu(self.up(x))) + x)
        return normed


def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval(), torch.randn(5, 4, 6)


def trained(method: Adapter | None = None) -> tuple[nn.Sequential, Tensor, Inserted]:
    """Adapters of three tasks that do something."""
    model, x = network()
    inserted = insert(model, method or Adapter(2, "norm", "relu"), SOURCES)
    for parameter in inserted.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, x, inserted


def scaled(inserted: Inserted, tasks: tuple[str, ...] = ("new",), **settings: Any) -> Inserted:
    found = transferred(inserted, ScaLearn(**settings), tasks)
    found.model.eval()
    return found


def fill(inserted: Inserted, value: Tensor | float) -> None:
    with torch.no_grad():
        for parameter in inserted.parameters():
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))


def output(inserted: Inserted, x: Tensor, task: str = "new") -> Tensor:
    with task_scope(task):
        found: Tensor = inserted.model(x)
    return found


# Oracles


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (ScaLearn(), 73_728),
        (ScaLearn("scalar"), 96),
        (ScaLearn(per="model"), 6_144),
        (ScaLearn("scalar", "model", dropout=0), 8),
    ],
)
def test_counts_at_the_papers_scale(method: ScaLearn, parameters: int) -> None:
    """Eight sources in the twelve layers of a RoBERTa-base; frozen sources are no parameters."""
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.LayerNorm(768) for _ in range(12)))
        adapters = insert(layers, Adapter(48, "norm"), [str(task) for task in range(8)])
        assert adapters.count()["task 0"] == 894_528
        found = transferred(adapters, method, ["new"]).freeze()
    assert found.count()["inserted"] == found.count()["task new"] == parameters
    assert sum(p.numel() for p in layers.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("coefficients", ["vector", "scalar"])
def test_one_source_with_coefficient_one_is_the_adapter_bit_by_bit(coefficients: Literal["vector", "scalar"]) -> None:
    _, x, inserted = trained()
    expected = output(inserted, x, "two")
    found = transferred(inserted, ScaLearn(coefficients), ["new"], sources=["two"])
    fill(found, 1.0)
    assert torch.equal(output(found, x), expected)


@pytest.mark.parametrize(("coefficients", "per"), VARIANTS)
def test_one_hot_coefficients_run_one_adapter(coefficients: Any, per: Any) -> None:
    for i, source in enumerate(SOURCES):
        _, x, inserted = trained()
        expected = output(inserted, x, source)
        found = scaled(inserted, coefficients=coefficients, per=per)
        fill(found, torch.eye(3)[i][:, None])
        torch.testing.assert_close(output(found, x), expected)


def test_coefficients_of_zero_leave_the_encoder() -> None:
    plain, x = network()
    _, _, inserted = trained()
    found = scaled(inserted)
    fill(found, 0.0)
    torch.testing.assert_close(output(found, x), plain(x), rtol=0, atol=1e-7)


def test_even_coefficients_average_outputs_and_not_weights() -> None:
    layer, x = nn.LayerNorm(6), torch.randn(5, 4, 6)
    inserted = insert(layer, Adapter(2, "norm", "relu"), SOURCES, where="")
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    part: Any = inserted.parts[""]
    plain = F.layer_norm(x, (6,))
    added = torch.stack([part.of(source).up(part.of(source).down(plain).relu()) for source in SOURCES])
    with task_scope("soup"):
        averaged = soup(inserted, "soup").model(x)
    found = scaled(inserted, coefficients="scalar")
    fill(found, 1 / 3)
    mean = output(found, x)
    torch.testing.assert_close(mean, F.layer_norm(x + added.mean(0), (6,)))
    assert not torch.allclose(mean, averaged, atol=1e-2)


def test_gradient_of_a_number_that_all_layers_share() -> None:
    """It is the sum over layers and tokens of ``<dL/dz, up_s>``."""
    model, x, inserted = trained()
    adapters = inserted.parts
    found = scaled(inserted, coefficients="scalar", per="model", dropout=0)
    (omega,) = found.parameters()
    blocks: list[tuple[Tensor, Tensor]] = []
    # The network by hand: z is the sum that the normalisation is taken of a second time.
    h, coefficients = x, omega.detach().clone().requires_grad_(True)
    for i, block in enumerate(model):
        base = block.down(F.gelu(block.up(h))) + h
        norm = (block.LayerNorm.weight, block.LayerNorm.bias)
        read = F.layer_norm(base, (6,), *norm)
        part: Any = adapters[f"{i}.LayerNorm"]
        ups = torch.stack([part.of(source).up(part.of(source).down(read).relu()) for source in SOURCES])
        z = base + (coefficients[:, :, None, None] * ups).sum(0)
        z.retain_grad()
        blocks.append((z, ups))
        h = F.layer_norm(z, (6,), *norm)
    direction = torch.randn_like(h)
    (h * direction).sum().backward()
    expected = sum((z.grad * ups).sum((1, 2, 3)) for z, ups in blocks)  # type: ignore[operator]
    (output(found, x) * direction).sum().backward()
    torch.testing.assert_close(omega.grad, torch.as_tensor(expected)[:, None])


# What it is beside them


@pytest.mark.parametrize("place", ["sequential", "parallel"])
def test_it_adds_scaled_outputs_at_a_linear_layer(place: Any) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(5, 7, 4)
    plain = layer(x)
    inserted = insert(layer, ScaLearn(sources=2, adapter=Adapter(2, place, "tanh", scale=0.5)), ["new", "other"], where="")
    for parameter in inserted.parameters():
        nn.init.normal_(parameter)
    layer.eval()
    bank: Any = inserted.parts[""].sources
    read = plain if place == "sequential" else x
    added = torch.zeros_like(plain)
    for i, coefficient in enumerate(next(iter(inserted.parameters_of("new")))):
        added += coefficient * F.linear(F.linear(read, bank.down[i], bank.down_bias[i]).tanh(), bank.up[i], bank.up_bias[i])
    with task_scope("new"):
        torch.testing.assert_close(layer(x), plain + 0.5 * added)
    assert inserted.count()["shared"] == sum(p.numel() for p in bank.parameters()) > 0  # new sources are trained along


def test_coefficients_begin_at_two_over_the_number_of_sources() -> None:
    part: Any = insert(nn.Linear(64, 512), ScaLearn(), ["new"], where="").parts[""]
    omega = part.coefficients["new"].detach()
    assert omega.shape == (8, 512) and float(omega.mean()) == pytest.approx(0.25, abs=1e-4)
    assert float(omega.std()) == pytest.approx(0.001, rel=0.05)
    part = insert(nn.Linear(64, 512), ScaLearn(start=3, sources=6), ["new"], where="").parts[""]
    assert float(part.coefficients["new"].detach().mean()) == pytest.approx(0.5, abs=1e-4)


def test_dropout_is_of_coefficients_and_one_draw_a_pass() -> None:
    _, x, inserted = trained()
    found = scaled(inserted, ("new", "other"), dropout=0.3)
    part: Any = found.parts["0.LayerNorm"]
    omega = part.coefficients["new"].detach()
    assert torch.equal(part._dropped(omega), omega)  # in evaluation
    part.train()
    torch.manual_seed(0)
    rates = torch.stack([part._dropped(omega) / omega for _ in range(400)])
    torch.testing.assert_close(rates[rates > 0], torch.full_like(rates[rates > 0], 1 / 0.7))
    assert float((rates == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    for scope in ((("new", "other"), torch.tensor([0, 1, 1, 0, 1])), ("new", None)):  # mixed and not: the same draw
        torch.manual_seed(1)
        with task_scope(*scope):
            rows = found.model(x[[0, 0, 0, 0, 0]])
        torch.testing.assert_close(rows[0], rows[3])
        torch.manual_seed(1)
        with task_scope("new"):
            torch.testing.assert_close(found.model(x[:1])[0], rows[0])


def test_normalised_coefficients() -> None:
    _, x, inserted = trained()
    part: Any = scaled(inserted, normalise="sum").parts["0.LayerNorm"]
    omega = torch.tensor([[1.0, 2.0], [3.0, 2.0], [0.0, -2.0]])
    torch.testing.assert_close(part._normalised(omega), omega / torch.tensor([4.0, 2.0]))
    part = scaled(inserted, normalise="softmax").parts["0.LayerNorm"]
    torch.testing.assert_close(part._normalised(omega).sum(0), torch.ones(2))
    found = scaled(inserted, normalise="sum", coefficients="scalar")
    fill(found, 7.0)
    expected = output(found, x)
    found = scaled(inserted, coefficients="scalar")
    fill(found, 1 / 3)
    torch.testing.assert_close(output(found, x), expected)


# From adapters, and to them


def test_sources_stay_as_they_are_and_serve_other_methods() -> None:
    model, x, inserted = trained()
    before = output(inserted, x, "two")
    found = scaled(inserted, ("new", "two"), dropout=0).freeze()
    assert found.method == ScaLearn(dropout=0, sources=SOURCES, adapter=inserted.method)  # type: ignore[arg-type]
    assert {p for p in model.parameters() if p.requires_grad} == set(found.parameters())
    bank = {name: t.clone() for name, t in found.state_dict().items() if ".sources." in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output(found, x).square().sum().backward()
        optimizer.step()
    assert len(bank) == 8 and all(torch.equal(found.state_dict()[name], tensor) for name, tensor in bank.items())
    again = transferred(inserted, ScaLearn("scalar"), ["new"], ["three", "two"])
    fill(again, torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(output(again, x), before)


def test_the_file_has_the_sources_and_their_order(tmp_path: Path) -> None:
    _, x, inserted = trained()
    found = transferred(inserted, ScaLearn("scalar", "model"), ["new"], ["three", "one"])
    expected = output(found, x)
    found.save(tmp_path / "scaled.safetensors")
    fresh, _ = network()
    again = load_inserted(fresh, tmp_path / "scaled.safetensors")
    assert again.method == found.method and again.method.names == ("three", "one")  # type: ignore[attr-defined]
    assert torch.equal(output(again, x), expected)
    assert list(again.parameters()) == list(again.freeze().parameters_of("new"))


@pytest.mark.parametrize(("coefficients", "per"), VARIANTS)
def test_folded_into_one_adapter_for_each_task(coefficients: Any, per: Any) -> None:
    _, x, inserted = trained(Adapter(2, "norm", "relu", scale=0.5))
    found = scaled(inserted, ("new", "two"), coefficients=coefficients, per=per)
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    expected = {task: output(found, x, task) for task in found.tasks}
    adapters = as_adapter(found)
    assert adapters.method == Adapter(6, "norm", "relu", scale=0.5) and adapters.tasks == ("new", "two")
    for task, value in expected.items():
        torch.testing.assert_close(output(adapters, x, task), value)
    # One task is one bottleneck before, too: the two products of an adapter three times as wide.
    assert adapters.count()["task new"] == 2 * (2 * 6 * 6 + 6 + 6)


@pytest.mark.parametrize("per", ["layer", "model"])
def test_further_tasks(per: Any) -> None:
    _, x, inserted = trained()
    found = scaled(inserted, per=per)
    before = output(found, x)
    more = found.add_tasks(["late"])
    assert torch.equal(output(more, x), before)
    assert more.count()["task late"] == more.count()["task new"] == (36 if per == "layer" else 18)
    with task_scope(["late", "new"], torch.tensor([0, 1, 1, 0, 1])):
        more.model(x)


def test_in_half_precision_coefficients_are_in_float32() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    inserted = insert(layer, ScaLearn(sources=2), ["new"], where="").freeze()
    assert {p.dtype for p in inserted.parameters()} == {torch.float32}
    with task_scope("new"):
        assert layer(torch.randn(3, 4).bfloat16()).dtype == torch.bfloat16


def test_what_cannot_be() -> None:
    for make, message in [
        (lambda: ScaLearn("matrix"), "coefficients 'matrix'"),  # type: ignore[arg-type]
        (lambda: ScaLearn(per="block"), "per 'block'"),  # type: ignore[arg-type]
        (lambda: ScaLearn(normalise="max"), "normalise 'max'"),  # type: ignore[arg-type]
        (lambda: ScaLearn(dropout=1), "dropout 1"),
        (lambda: ScaLearn(sources=0), "sources 0"),
        (lambda: ScaLearn(sources=["a", "a"]), "no name twice"),
    ]:
        with pytest.raises(InputError, match=f"^scalearn: {message}|^scalearn: .*{message}"):
            make()  # type: ignore[no-untyped-call]
    uneven = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    with pytest.raises(InputError, match="expected one width for one vector per model"):
        insert(uneven, ScaLearn(per="model"), ["new"])
    _, _, inserted = trained()
    with pytest.raises(InputError, match="unknown source 'twoo': did you mean 'two'"):
        transferred(inserted, ScaLearn(), ["new"], ["twoo"])
    with pytest.raises(InputError, match="expected one of adapter"):
        transferred(scaled(inserted), ScaLearn(), ["new"])
    with pytest.raises(InputError, match="expected one of scalearn"):
        as_adapter(inserted)
