"""Adapters read as whole models: equal to the formula, to PEFT's own merge, and whatever piece is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.merge.checkpoint import Checkpoint, adapter, open_adapter, open_checkpoint

RANK = 4


def make(folder: Path, base: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], **settings: Any) -> Checkpoint:
    """Write a base and an adapter, and open the adapter."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(base, folder / "base.safetensors")
    full = {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(full, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "revision": None} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return open_adapter(folder, open_checkpoint(folder / "base.safetensors"))


def pair(out: int, inner: int, rank: int = RANK, module: str = "fc") -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": torch.randn(rank, inner), f"{module}.lora_B.weight": torch.randn(out, rank)}


BASE = {"fc.weight": torch.randn(10, 7), "fc.bias": torch.randn(10), "norm.weight": torch.randn(7)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_linear_layer(dtype: torch.dtype, tmp_path: Path) -> None:
    base = {name: value.to(dtype) for name, value in BASE.items()}
    factors = pair(10, 7)
    found = make(tmp_path, base, factors)
    assert found.path == tmp_path and found.files == (tmp_path / "base.safetensors", tmp_path / "adapter_model.safetensors")
    assert list(found.entries) == sorted(base) and found.entries["fc.weight"].dtype == dtype
    exact = (
        base["fc.weight"].double() + 6 / RANK * factors["fc.lora_B.weight"].double() @ factors["fc.lora_A.weight"].double()
    )
    got = found.read("fc.weight")
    assert got.dtype == dtype
    torch.testing.assert_close(got.view(10, 7).double(), exact, rtol=max(torch.finfo(dtype).eps, 2e-6), atol=2e-6)
    for name in ("fc.bias", "norm.weight"):
        assert torch.equal(found.read(name), base[name])
    found.release("fc.weight")
    assert torch.equal(found.read("fc.weight"), got)
    assert found.bytes_read == sum(value.nbytes for value in base.values()) + got.nbytes


@given(rows=st.integers(1, 9), width=st.integers(1, 9), block=st.integers(1, 40), data=st.data())
def test_the_same_bits_whatever_piece_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, block: int, data: st.DataObject
) -> None:
    torch.manual_seed(rows * 10 + width)
    found = make(tmp_path_factory.getbasetemp() / "pieces", {"fc.weight": torch.randn(rows, width)}, pair(rows, width))
    start = data.draw(st.integers(0, rows * width))
    stop = data.draw(st.integers(start, rows * width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "BLOCK", block)
        whole = found.read("fc.weight")
        assert torch.equal(found.read("fc.weight", start, stop), whole[start:stop])


def test_scaling_by_rank_and_by_pattern(tmp_path: Path) -> None:
    base = {f"layers.{n}.{part}.weight": torch.zeros(5, 5) for n in range(2) for part in ("q", "v")}
    ranks = {"layers.0.q": 4, "layers.0.v": 2, "layers.1.q": 1, "layers.1.v": 2}
    alphas = {"layers.0.q": 8, "layers.0.v": 6, "layers.1.q": 3, "layers.1.v": 6}
    tensors = {}
    for module, rank in ranks.items():
        tensors |= pair(5, 5, rank, module)
    for rslora in (False, True):
        settings = {"rank_pattern": {"v": 2, "layers\\.1\\..*": 1}, "alpha_pattern": {"^layers.1.q": 3, "0.q": 8}}
        found = make(tmp_path, base, tensors, use_rslora=rslora, **settings)
        for module, rank in ranks.items():
            product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
            scaling = alphas[module] / (rank**0.5 if rslora else rank)
            torch.testing.assert_close(found.read(f"{module}.weight").view(5, 5), scaling * product)


@pytest.mark.parametrize(("inner", "fan_in_fan_out"), [(7, False), (7, True), (10, True)])
def test_a_layer_that_stores_its_weight_the_other_way(inner: int, fan_in_fan_out: bool, tmp_path: Path) -> None:
    weight, factors = torch.randn(inner, 10), pair(10, inner)
    found = make(tmp_path, {"fc.weight": weight}, factors, fan_in_fan_out=fan_in_fan_out)
    expected = weight + 6 / RANK * (factors["fc.lora_B.weight"] @ factors["fc.lora_A.weight"]).T
    torch.testing.assert_close(found.read("fc.weight").view_as(weight), expected)


@pytest.mark.parametrize("size", [(20, 6), (6, 6)])
def test_an_embedding(size: tuple[int, int], tmp_path: Path) -> None:
    weight, a, b = torch.randn(size), torch.randn(RANK, size[0]), torch.randn(size[1], RANK)
    found = make(tmp_path, {"emb.weight": weight}, {"emb.lora_embedding_A": a, "emb.lora_embedding_B": b})
    torch.testing.assert_close(found.read("emb.weight").view(size), weight + 6 / RANK * (b @ a).T)


@pytest.mark.parametrize("kernel", [(), (3,), (1, 1), (3, 2), (2, 1, 2)])
def test_a_convolution(kernel: tuple[int, ...], tmp_path: Path) -> None:
    weight, a = torch.randn(5, 6, *kernel), torch.randn(RANK, 6, *kernel)
    b = torch.randn(5, RANK, *[1] * len(kernel))
    found = make(tmp_path, {"conv.weight": weight}, {"conv.lora_A.weight": a, "conv.lora_B.weight": b})
    expected = weight + 6 / RANK * torch.einsum("or,ri...->oi...", b.flatten(1), a)
    torch.testing.assert_close(found.read("conv.weight").view_as(weight), expected)


def test_modules_saved_whole(tmp_path: Path) -> None:
    base = BASE | {"emb.weight": torch.randn(9, 7)}
    tensors = pair(10, 7) | {
        "norm.weight": torch.ones(7),
        "fc.base_layer.bias": torch.full((10,), 2.0),
        "fc.lora_B.bias": torch.arange(10.0),
        "emb.base_layer.weight": torch.zeros(12, 7),  # a larger vocabulary, and adapted on top of that
        "emb.lora_embedding_A": torch.randn(RANK, 12),
        "emb.lora_embedding_B": torch.randn(7, RANK),
        "head.modules_to_save.weight": torch.full((2, 7), 3.0, dtype=torch.float16),
    }
    found = make(tmp_path, base, tensors)
    assert list(found.entries) == ["emb.weight", "fc.bias", "fc.weight", "head.weight", "norm.weight"]
    assert found.read("norm.weight").tolist() == [1] * 7
    torch.testing.assert_close(found.read("fc.bias"), 2 + 6 / RANK * torch.arange(10.0))
    assert found.entries["emb.weight"].shape == (12, 7)
    embedding = 6 / RANK * (tensors["emb.lora_embedding_B"] @ tensors["emb.lora_embedding_A"]).T
    torch.testing.assert_close(found.read("emb.weight").view(12, 7), embedding)
    assert found.entries["head.weight"].dtype == torch.float16 and found.read("head.weight", 10).tolist() == [3] * 4


def test_names_that_differ_by_a_leading_part(tmp_path: Path) -> None:
    weight, factors = torch.randn(10, 7), pair(10, 7, module="encoder.fc")
    expected = weight + 6 / RANK * factors["encoder.fc.lora_B.weight"] @ factors["encoder.fc.lora_A.weight"]
    for name in ("fc", "encoder.fc", "bert.encoder.fc"):
        tensors = factors | {"encoder.norm.weight": torch.zeros(3), "head.out.weight": torch.ones(3)}
        base = {f"{name}.weight": weight, f"{name.removesuffix('fc')}norm.weight": torch.ones(3)}
        found = make(tmp_path, base, tensors)
        assert list(found.entries) == sorted([*base, "head.out.weight"])
        torch.testing.assert_close(found.read(f"{name}.weight").view(10, 7), expected)
        assert found.read(f"{name.removesuffix('fc')}norm.weight").tolist() == [0, 0, 0]


def test_an_adapter_on_an_adapter_and_closing(tmp_path: Path) -> None:
    first = make(tmp_path, BASE, pair(10, 7))
    once = first.read("fc.weight")
    with open_adapter(tmp_path, first) as second:
        torch.testing.assert_close(second.read("fc.weight"), 2 * once - BASE["fc.weight"].flatten(), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="closed"):
        second.read("fc.weight")
    assert torch.equal(first.read("fc.weight"), once), "the base stays open"


A, B = "fc.lora_A.weight", "fc.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "settings", "says"),
    [
        ({}, {"use_dora": True}, "use_dora True"),
        ({}, {"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({}, {"peft_type": None}, "peft_type"),
        ({}, {"r": 0}, "r 0"),
        ({}, {"r": "many"}, "r 'many'"),
        ({}, {"lora_alpha": "inf"}, "lora_alpha"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({}, {"rank_pattern": {"(": 2}}, "pattern '('"),
        ({}, {"r": 8}, "A is (4, 7), expected rank 8"),
        ({}, {"layer_replication": [[0, 2]]}, "layer_replication"),
        ({A: None, B: None}, {}, "no LoRA factors"),
        ({B: None}, {}, "module 'fc': factors A, expected A and B"),
        ({B: torch.zeros(9, RANK)}, {}, "do not fit the base's fc.weight of shape (10, 7)"),
        ({B: torch.zeros(10, 3)}, {}, "do not fit"),
        ({B: torch.zeros(40)}, {}, "do not fit"),
        ({A: torch.zeros(RANK)}, {}, "expected rank 4"),
        ({A: torch.zeros(RANK, 7, dtype=torch.int8)}, {}, "expected numbers"),
        ({"fc.lora_magnitude_vector": torch.zeros(10)}, {}, "factors of plain LoRA"),
        ({"fc.modules_to_save.bias": torch.zeros(10), "fc.bias": torch.zeros(10)}, {}, "stand for the same"),
        ({"norm.lora_B.bias": torch.zeros(7)}, {}, "module 'norm': factors bias"),
        ({"fc.lora_B.bias": torch.zeros(3)}, {}, "no bias like it"),
        (pair(10, 7, module="fd"), {}, "'fd.weight', which"),
    ],
)
def test_an_adapter_that_does_not_fit(
    tensors: dict[str, torch.Tensor | None], settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    chosen = {name: value for name, value in (pair(10, 7) | tensors).items() if value is not None}
    with pytest.raises(InputError) as error:
        make(tmp_path, BASE, chosen or {"norm.weight": torch.zeros(7)}, **settings)
    assert says in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_to_integers_and_a_folder_without_factors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the base's fc\.weight is torch\.int8"):
        make(tmp_path, {"fc.weight": torch.zeros(10, 7, dtype=torch.int8)}, pair(10, 7))
    base = open_checkpoint(tmp_path / "base.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no factors, expected adapter_model"):
        open_adapter(tmp_path, base)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match="a list, expected a JSON object"):
        open_adapter(tmp_path, base)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json: cannot be read"):
        open_adapter(tmp_path, base)


class Net(torch.nn.Module):
    """Every kind of layer that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(20, 8)
        self.fc = torch.nn.Linear(8, 6)
        self.square = torch.nn.Linear(6, 6)
        self.conv = torch.nn.Conv2d(3, 4, (3, 2))
        self.point = torch.nn.Conv1d(3, 4, 1)
        self.head = torch.nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.square(self.fc(self.emb(x))))


def merged_by_peft(model: torch.nn.Module, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Adapt a model with random factors, save base and adapter, and let PEFT merge them."""
    peft = pytest.importorskip("peft")
    safetensors.torch.save_file(model.state_dict(), folder / "base.safetensors")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(folder, safe_serialization=True)
    return adapted.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 5},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "bias": "all"},
        {"r": 3, "rank_pattern": {"square": 1, "conv": 2}, "alpha_pattern": {"f.": 7, "square": 2}},
        {"r": 2, "modules_to_save": ["head"], "lora_bias": True},
        {"r": 2, "lora_alpha": 5, "init_lora_weights": "gaussian", "fan_in_fan_out": False},
    ],
)
def test_equal_to_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    targets = ["fc", "square", "conv", "point"] + ["emb"] * ("lora_bias" not in settings)
    expected = merged_by_peft(Net(), tmp_path, target_modules=targets, **settings)
    found = open_adapter(tmp_path, open_checkpoint(tmp_path / "base.safetensors"))
    assert set(found.entries) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.read(name).view(value.shape), value, rtol=1e-6, atol=1e-6)


def test_equal_to_peft_on_gpt2_saved_without_its_head(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))
    model.transformer.save_pretrained(tmp_path / "base")
    # c_proj of the attention is square, and lies the other way.
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj", "c_fc"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().transformer.state_dict()
    found = open_adapter(tmp_path / "adapter", open_checkpoint(tmp_path / "base"))
    assert set(found.entries) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.read(name).view(value.shape), value, rtol=1e-6, atol=1e-6)
