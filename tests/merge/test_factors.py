"""Adapters merged as factors: closed forms, and equality with PEFT on real networks."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.merge.folders import make_adapter

from polytask.errors import InputError
from polytask.merge.factors import cut, merge_adapters, stacked


def factors(seed: int, rank: int, rows: int = 5, columns: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, columns, generator=generator, dtype=torch.float64),
        torch.randn(rows, rank, generator=generator, dtype=torch.float64),
    )


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 4), st.floats(-2, 2)), min_size=1, max_size=4), st.integers(1, 9)
)
@settings(deadline=None, max_examples=50)
def test_stacked_is_the_sum_and_a_cut_is_the_best_of_its_rank(parts: list[tuple[int, int, float]], rank: int) -> None:
    pairs = [factors(seed, r) for seed, r, _ in parts]
    dense = sum(scale * (b @ a) for (a, b), (_, _, scale) in zip(pairs, parts, strict=True))
    a, b = stacked(pairs, [scale for *_, scale in parts])
    torch.testing.assert_close(b @ a, dense)
    a, b, lost = cut(a, b, rank)
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(b @ a, best, atol=1e-9, rtol=0)
    assert len(a) <= rank or len(a) == sum(r for _, r, _ in parts) <= rank
    assert lost == pytest.approx(float((dense - best).norm()), abs=1e-9)


def delta(folder: Path, module: str) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
    config = json.loads((folder / "adapter_config.json").read_text())
    rank = config["rank_pattern"].get(module, config["r"]) if "rank_pattern" in config else config["r"]
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    assert len(a) == rank
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * (b @ a)


def test_ranks_scalings_and_modules_may_differ(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", {"x.q": factors(0, 2), "x.k": factors(1, 2)})
    two = make_adapter(tmp_path / "two", {"x.q": factors(2, 3)}, use_rslora=True, layers_to_transform=[0])
    found = merge_adapters([one, two], tmp_path / "out", weights=[0.5, -1.0])
    assert found.ranks == {"x.q": 5, "x.k": 2} and found.lost == 0
    torch.testing.assert_close(
        delta(tmp_path / "out", "x.q"), 0.5 * delta(one, "x.q") - delta(two, "x.q"), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(delta(tmp_path / "out", "x.k"), 0.5 * delta(one, "x.k"), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["x.k", "x.q"] and config["use_rslora"] is False


def test_a_rank_is_kept_to_and_what_it_costs_is_told(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", {"x.q": factors(0, 2), "x.k": factors(1, 2)})
    two = make_adapter(tmp_path / "two", {"x.q": factors(2, 2), "x.k": factors(3, 2)})
    found = merge_adapters([one, two], tmp_path / "out", rank=3)
    assert set(found.ranks.values()) == {3}
    whole = {m: delta(one, m) + delta(two, m) for m in ("x.q", "x.k")}
    off = sum(float((delta(tmp_path / "out", m) - w).square().sum()) for m, w in whole.items())
    assert found.lost == pytest.approx(math.sqrt(off / sum(float(w.square().sum()) for w in whole.values())), rel=1e-4)
    assert 0 < found.lost < 1
    assert merge_adapters([one, one], tmp_path / "same", rank=2).lost < 1e-6  # two equal deltas have one's rank


def test_what_does_not_fit_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", {"x.q": factors(0, 2)})
    other = make_adapter(tmp_path / "other", {"x.q": factors(0, 2, rows=6)})
    head = make_adapter(tmp_path / "head", {"x.q": factors(0, 2)}, more={"base_model.model.score.weight": torch.zeros(2, 2)})
    dora = make_adapter(tmp_path / "dora", {"x.q": factors(0, 2)}, use_dora=True)
    for wrong, message in [
        ([one, other], r"other/adapter_model\.safetensors: module 'x\.q' has B \(6, 2\) and A \(2, 7\)"),
        ([one, head], r"head/.*holds 'score\.weight' beside its factors"),
        ([one, dora], "use_dora"),
        ([], "no adapters"),
        ([one, tmp_path / "none"], "none"),
    ]:
        with pytest.raises(InputError, match=message):
            merge_adapters(wrong, tmp_path / "out")
    with pytest.raises(InputError, match="weights has 1 numbers, expected one for each of 2"):
        merge_adapters([one, one], tmp_path / "out", weights=[1.0])
    with pytest.raises(InputError, match="rank 0"):
        merge_adapters([one], tmp_path / "out", rank=0)
    with pytest.raises(InputError, match="holds other files"):
        merge_adapters([one], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dora", "head", "one", "other"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "embedding"])
def test_equal_to_peft(kind: str, tmp_path: Path) -> None:
    """PEFT's ``cat`` of the same adapters, in the network's outputs; and its own loading of what was written."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        base = transformers.GPT2Model(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32))
        target, more = ["c_attn"], {"fan_in_fan_out": True}
    else:
        base = transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
            )
        )
        target, more = (["embed_tokens"], {}) if kind == "embedding" else (["q_proj", "down_proj"], {})
    base.save_pretrained(tmp_path / "base")
    model = None
    for seed, (name, rank) in enumerate({"one": 2, "two": 4}.items()):
        config = peft.LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=target, init_lora_weights=False, **more)
        torch.manual_seed(seed)
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name in ("one", "two"):
        model.save_pretrained(tmp_path, selected_adapters=[name], save_embedding_layers=False)
    merge_adapters([tmp_path / "one", tmp_path / "two"], tmp_path / "out", weights=[0.7, 0.2])
    model.add_weighted_adapter(["one", "two"], [0.7, 0.2], "both", combination_type="cat")
    model.set_adapter("both")
    tokens = torch.randint(0, 50, (2, 9))
    plain = type(base).from_pretrained(tmp_path / "base")
    mine = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    with torch.no_grad():
        ours, theirs = (m(tokens).last_hidden_state for m in (mine, model.eval()))
        without = type(base).from_pretrained(tmp_path / "base").eval()(tokens).last_hidden_state
    assert float((theirs - without).abs().max()) > 1e-2
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
