"""Models with different vocabularies: rows follow their tokens, whatever their places, files and precision."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.merge.folders import make_folder, tokenizer, words, write
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import TIES, Average, Policy, Rule, TaskArithmetic, make_plan, merge_checkpoints, open_checkpoint
from polytask.merge.checkpoint import open_adapter
from polytask.merge.vocabulary.matching import rows_of
from polytask.merge.vocabulary.tokenizer import read_vocabulary

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SCALE = 0.5


def merged(
    folder: Path,
    models: Sequence[str],
    base: str | None = "base",
    policy: str = "union",
    rule: Rule | None = None,
    out: str = "out",
    **settings: Any,
) -> dict[str, Tensor]:
    patterns = settings.pop("patterns", ())
    plan = make_plan(
        [open_checkpoint(folder / name) for name in models],
        None if base is None else open_checkpoint(folder / base),
        Policy(vocabulary=policy, vocabulary_tensors=patterns, missing=settings.pop("missing", "error")),  # type: ignore[arg-type]
    )
    merge_checkpoints(rule or TaskArithmetic(scale=SCALE), plan, folder / out, about="a recipe", **settings)
    return {name: tensor for file in (folder / out).glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_token(
    tokens: Mapping[str, int], base: tuple[Mapping[str, int], Tensor], models: Sequence[tuple[Mapping[str, int], Tensor]]
) -> dict[str, Tensor]:
    """Task arithmetic token by token, float64: the definition, written as a loop."""
    found = {}
    for token in tokens:
        havers = [weight[rows[token]].double() for rows, weight in models if token in rows]
        if token in base[0]:
            start = base[1][base[0][token]].double()
            found[token] = start + SCALE * sum((row - start for row in havers), torch.zeros_like(start))
        else:
            found[token] = sum(havers[1:], havers[0]) / len(havers)
    return found


def check(out: Path, name: str, found: Tensor, expected: Mapping[str, Tensor], rtol: float = 1e-5) -> None:
    rows = read_vocabulary(out).rows
    assert rows.keys() == expected.keys()
    for token, row in rows.items():
        torch.testing.assert_close(found[row].double(), expected[token], rtol=rtol, atol=rtol, msg=f"{name}: {token}")


# Two fine-tunes, each with a token of its own at the same row, and one that lacks a token and has the rest in other places.
BASE = words("a b c d e")
ONE = words("a b c d e <x>")
TWO = words("a b c d e <y> <x>")
ODD = words("e d c <z> a")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_union_adds_each_models_tokens_after_the_bases(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    def make(name: str, trained: dict[str, int], added: dict[str, int], seed: int) -> dict[str, Tensor]:
        return make_folder(tmp_path / name, trained, added, dtype=dtype, shards=shards, seed=seed)

    base = make("base", BASE, {}, 0)
    models = {"one": make("one", BASE, {"<x>": 5}, 1), "two": make("two", BASE, {"<y>": 5, "<x>": 6}, 2)}
    models["odd"] = make("odd", ODD, {}, 3)
    found = merged(tmp_path, list(models), shard=200)
    assert read_vocabulary(tmp_path / "out").rows == words("a b c d e <x> <y> <z>")
    for name in (EMBED, HEAD):
        assert found[name].shape == (8, 3) and found[name].dtype == dtype
        expected = by_token(
            words("a b c d e <x> <y> <z>"),
            (BASE, base[name]),
            [(rows, models[key][name]) for rows, key in ((ONE, "one"), (TWO, "two"), (ODD, "odd"))],
        )
        check(tmp_path / "out", name, found[name], expected, 1e-5 if dtype == torch.float32 else 8e-3)
    exact = base["mlp.weight"].double() + SCALE * sum(m["mlp.weight"].double() - base["mlp.weight"] for m in models.values())
    torch.testing.assert_close(found["mlp.weight"].double(), exact, rtol=1e-2, atol=1e-2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("## Vocabulary", "union", "8 tokens", "'<x>'", "at other rows", "plain mean over the models that have it"):
        assert text in card, text
    assert "'b'" in card and "letter by letter ('<z>')" in card


def test_base_keeps_the_bases_tokens_and_files(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", BASE)
    models = [make_folder(tmp_path / "one", BASE, {"<x>": 5}, seed=1), make_folder(tmp_path / "odd", ODD, seed=2)]
    found = merged(tmp_path, ["one", "odd"], policy="base")
    expected = by_token(BASE, (BASE, base[EMBED]), [(ONE, models[0][EMBED]), (ODD, models[1][EMBED])])
    check(tmp_path / "out", EMBED, found[EMBED], expected)
    assert found[EMBED].shape == (5, 3)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 token that the base lacks, left out ('<x>')" in card
    assert "1 token of the base lacking, for which the base's rows are taken ('b')" in card


def test_a_token_that_a_model_lacks_has_a_task_vector_of_0(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", BASE, dtype=torch.float32)
    make_folder(tmp_path / "odd", ODD, dtype=torch.bfloat16)  # a lower precision must not round the base's row
    found = merged(tmp_path, ["odd"], policy="base")
    assert torch.equal(found[EMBED][BASE["b"]], base[EMBED][BASE["b"]])


@pytest.mark.parametrize("rule", [TIES(density=0.3), Average(weight=[1.0, 3.0]), TaskArithmetic(scale=0.1)])
def test_a_new_tokens_row_is_the_mean_whatever_the_rule(tmp_path: Path, rule: Rule) -> None:
    make_folder(tmp_path / "base", BASE)
    one = make_folder(tmp_path / "one", BASE, {"<x>": 5}, seed=1)
    two = make_folder(tmp_path / "two", BASE, {"<y>": 5, "<x>": 6}, seed=2)
    found = merged(tmp_path, ["one", "two"], rule=rule)
    torch.testing.assert_close(found[EMBED][5], (one[EMBED][5] + two[EMBED][6]) / 2)
    torch.testing.assert_close(found[EMBED][6], two[EMBED][5])


def test_an_order_of_its_own_at_the_same_size_is_found_and_followed(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", words("a b c d"))
    turned = words("d b a c")
    order = [turned[token] for token in "abcd"]
    model = make_folder(tmp_path / "model", turned, seed=1)
    with pytest.raises(InputError, match=r"model: token 'a' has row 2, and row 0 in .*base; .*union those of all$"):
        merged(tmp_path, ["model"], policy="error")
    for policy in ("base", "union"):
        found = merged(tmp_path, ["model"], policy=policy, out=f"by {policy}", rule=TaskArithmetic(scale=1.0))
        torch.testing.assert_close(found[HEAD], model[HEAD][order])
        assert not torch.allclose(found[HEAD], base[HEAD]) and found[HEAD].shape == (4, 3)


def test_an_error_names_the_first_token_that_differs_and_the_answers(tmp_path: Path) -> None:
    make_folder(tmp_path / "base", BASE)
    make_folder(tmp_path / "more", BASE, {"<x>": 5})
    make_folder(tmp_path / "padded", BASE, rows=8)
    make_folder(tmp_path / "odd", words("a b <q> d e"))
    for name, says in {
        "more": "token '<x>' has row 5, and no row in",
        "odd": "token 'c' has no row, and row 2 in",
        "padded": "tensor 'lm_head.weight' has 8 rows, expected 5 as in",
    }.items():
        with pytest.raises(InputError) as error:
            merged(tmp_path, [name], policy="error")
        text = str(error.value)
        assert says in text and "policy vocabulary: error" in text and "vocabulary: base" in text and "union" in text
        assert "\n" not in text and str(tmp_path / name) in text


def test_the_same_vocabularies_are_merged_as_ever(tmp_path: Path) -> None:
    """Also where a token has no row: many a fine-tune names a [PAD] that its embedding never got."""
    base = make_folder(tmp_path / "base", BASE)
    same = make_folder(tmp_path / "same", BASE, seed=1)
    beyond = make_folder(tmp_path / "beyond", BASE, {"[PAD]": 5}, rows=5, seed=2)
    bare = make_folder(tmp_path / "bare", BASE, seed=3)
    (tmp_path / "bare" / "tokenizer.json").unlink()
    found = merged(tmp_path, ["same", "beyond", "bare"], policy="error")
    exact = base[EMBED] + SCALE * sum(m[EMBED] - base[EMBED] for m in (same, beyond, bare))
    torch.testing.assert_close(found[EMBED], exact)
    for policy in ("error", "base", "union"):
        plan = make_plan(
            [open_checkpoint(tmp_path / "same")],
            open_checkpoint(tmp_path / "base"),
            Policy(vocabulary=policy),  # type: ignore[arg-type]
        )
        assert plan.vocabulary is None and plan.base_source() is plan.base
        assert type(plan.sources()[0]).__name__ == "Source", "nothing between"
    with pytest.raises(InputError, match=r"there is none: save a tokenizer\.json"):
        merged(tmp_path, ["bare"], policy="base")
    with pytest.raises(InputError, match=r"token '\[PAD\]' has id 5, but lm_head\.weight in .* has 5 rows"):
        merged(tmp_path, ["beyond"], policy="base")


@pytest.mark.parametrize("which", ["model", "base"])
@pytest.mark.parametrize("policy", ["error", "base", "union"])
def test_hostile_ids(tmp_path: Path, policy: str, which: str) -> None:
    make_folder(tmp_path / "base", BASE)
    make_folder(tmp_path / "model", BASE, seed=1)
    for added, says in [
        ({"<x>": -1}, "has id -1"),
        ({"<x>": 2}, "both have id 2"),
        ({"<x>": 10**12}, "has id 1000000000000"),
    ]:
        write(tmp_path / which / "tokenizer.json", tokenizer(BASE, added))
        if policy == "error" and added["<x>"] > 2:
            merged(tmp_path, ["model"], policy=policy)  # a token without a row moves none
            continue
        with pytest.raises(InputError) as error:
            merged(tmp_path, ["model"], policy=policy)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_padding_is_the_bases(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", BASE, rows=8)
    model = make_folder(tmp_path / "model", BASE, rows=5, seed=1)
    full = make_folder(tmp_path / "full", BASE, rows=8, seed=2)
    found = merged(tmp_path, ["model", "full"], policy="base")
    assert found[EMBED].shape == (8, 3) and torch.equal(found[EMBED][5:], base[EMBED][5:])
    exact = base[EMBED][:5] + SCALE * (model[EMBED] + full[EMBED][:5] - 2 * base[EMBED][:5])
    torch.testing.assert_close(found[EMBED][:5], exact)
    assert "vocab_size" in (tmp_path / "out" / "config.json").read_text()
    other = merged(tmp_path, ["full"], base="model", policy="union", out="narrow")
    assert other[EMBED].shape == (5, 3), "padding that only a model has is no part of the output"


@pytest.mark.parametrize(
    ("rows", "new", "expected"),
    [(64, 3, 64), (64, 59, 64), (64, 60, 128), (24, 20, 32), (7, 3, 8), (5, 3, 8), (128, 130, 256), (192, 200, 256)],
)
def test_new_tokens_take_the_padding_and_rows_are_padded_as_before(
    tmp_path: Path, rows: int, new: int, expected: int
) -> None:
    base = make_folder(tmp_path / "base", BASE, rows=rows)
    added = {f"<{k}>": 5 + k for k in range(new)}
    model = make_folder(tmp_path / "model", BASE, added, seed=1)
    found = merged(tmp_path, ["model"], rule=TaskArithmetic(scale=1.0))
    assert found[EMBED].shape == (expected, 3)
    torch.testing.assert_close(found[EMBED][: 5 + new], model[EMBED])
    if rows > 5:
        padding = [min(row, rows - 1) for row in range(5 + new, expected)]
        assert torch.equal(found[HEAD][5 + new :], base[HEAD][padding])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == expected


def test_biases_and_tied_heads(tmp_path: Path) -> None:
    names = ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "final_logits_bias", "mine.scores"]
    base = make_folder(tmp_path / "base", BASE, names=names)
    model = make_folder(tmp_path / "model", words("b a c d e f"), names=names, seed=1)
    with pytest.raises(InputError, match=r"'mine\.scores' has shape \[6\], expected \[5\] .*policy vocabulary_tensors"):
        merged(tmp_path, ["model"])
    found = merged(tmp_path, ["model"], rule=TaskArithmetic(scale=1.0), patterns=("mine.*",))
    order = [1, 0, 2, 3, 4, 5]
    for name in names:
        wide = model[name][:, order] if name == "final_logits_bias" else model[name][order]
        torch.testing.assert_close(found[name], wide)
        assert found[name].shape != base[name].shape
    with pytest.raises(InputError, match=r"policy vocabulary_tensors: 'his\.\*' matches no tensor of"):
        merged(tmp_path, ["model"], patterns=("his.*",), out="no")


def test_a_tensor_of_as_many_rows_with_an_unknown_name_is_named(tmp_path: Path) -> None:
    names = [EMBED, "mine.weight"]
    make_folder(tmp_path / "base", words("a b c d"), names=names)
    make_folder(tmp_path / "model", words("d b a c"), names=names, seed=1)
    merged(tmp_path, ["model"], policy="base")
    assert "no vocabulary tensor is known by such a name: 'mine.weight'" in (tmp_path / "out" / "README.md").read_text()
    make_folder(tmp_path / "strange", words("a b c d"), names=["mine.weight"])
    with pytest.raises(InputError, match="no tensor is known to have a row for each token, expected patterns"):
        merged(tmp_path, ["model"], base="strange", policy="base", out="no")


def test_names_need_the_rows_that_the_configuration_says(tmp_path: Path) -> None:
    """What is called a head need not be one: here ``head.weight`` has classes for rows."""
    more = {"head.weight": torch.randn(7, 3)}
    make_folder(tmp_path / "base", BASE, **more)
    make_folder(tmp_path / "model", BASE, {"<x>": 5}, **more)
    found = merged(tmp_path, ["model"])
    torch.testing.assert_close(found["head.weight"], more["head.weight"])
    nested = {"model_type": "llava", "text_config": {"vocab_size": 5}}
    make_folder(tmp_path / "nested", BASE, config=nested)
    make_folder(tmp_path / "silent", BASE, config={"model_type": "llama"})
    for base in ("nested", "silent"):
        make_folder(tmp_path / f"more {base}", BASE, {"<x>": 5}, config={})
        assert merged(tmp_path, [f"more {base}"], base=base, out=f"out {base}")[EMBED].shape == (6, 3)
        config = json.loads((tmp_path / f"out {base}" / "config.json").read_text())
        assert config.get("text_config", config)["vocab_size"] == 6


def test_a_head_that_only_one_model_repeats(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", BASE, names=[EMBED])
    tied = make_folder(tmp_path / "tied", BASE, {"<x>": 5}, names=[EMBED], seed=1)
    folder = tmp_path / "untied"
    make_folder(folder, BASE, {"<y>": 5}, names=[EMBED], seed=2)
    weight = load_file(folder / "model.safetensors")
    save_file({**weight, HEAD: weight[EMBED].clone()}, folder / "model.safetensors")
    found = merged(tmp_path, ["tied", "untied"])
    assert HEAD not in found and "tied: repeats" in (tmp_path / "out" / "README.md").read_text()
    torch.testing.assert_close(found[EMBED][5:], torch.stack([tied[EMBED][5], weight[EMBED][5]]))
    with pytest.raises(InputError, match=r"token '<x>' would have no row in lm_head\.weight"):
        merged(tmp_path, ["tied"], base="untied", missing="base", out="no")
    make_folder(tmp_path / "less", words("b a d"), names=[EMBED], seed=3)
    kept = merged(tmp_path, ["less"], base="untied", missing="base", policy="base", out="kept")
    assert torch.equal(kept[HEAD], weight[EMBED]) and not torch.equal(kept[EMBED], base[EMBED])


def test_without_a_base_the_first_model_stands_for_it(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "one", BASE, rows=6)
    odd = make_folder(tmp_path / "odd", ODD, seed=1)
    found = merged(tmp_path, ["one", "odd"], base=None, rule=Average())
    rows = read_vocabulary(tmp_path / "out").rows
    assert rows == words("a b c d e <z>")
    for token, row in rows.items():
        havers = [w[r[token]] for r, w in ((BASE, one[EMBED]), (ODD, odd[EMBED])) if token in r]
        torch.testing.assert_close(found[EMBED][row], torch.stack(havers).mean(0))
    less = merged(tmp_path, ["one", "odd"], base=None, policy="base", rule=Average(), out="less")
    torch.testing.assert_close(less[EMBED][:5], found[EMBED][:5])
    assert torch.equal(less[EMBED][5], one[EMBED][5])
    assert "first model" in (tmp_path / "less" / "README.md").read_text()


def test_adapters_are_left_as_they_are(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", BASE)
    factors = {"lora_A": torch.randn(2, 3), "lora_B": torch.randn(2, 2)}
    (tmp_path / "adapter").mkdir()
    save_file(
        {f"base_model.model.mlp.{name}.weight": value for name, value in factors.items()},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    write(tmp_path / "adapter" / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    more = make_folder(tmp_path / "more", BASE, {"<x>": 5}, seed=1)
    opened = open_checkpoint(tmp_path / "base")
    adapter = open_adapter(tmp_path / "adapter", opened)
    assert make_plan([adapter], opened).vocabulary is None
    plan = make_plan([adapter, open_checkpoint(tmp_path / "more")], opened, Policy(vocabulary="union"))
    merge_checkpoints(TaskArithmetic(scale=1.0), plan, tmp_path / "out", about="")
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found[EMBED], more[EMBED])
    delta = factors["lora_B"] @ factors["lora_A"]
    torch.testing.assert_close(found["mlp.weight"], more["mlp.weight"] + delta)
    assert base[EMBED].shape == (5, 3)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), width=st.sampled_from([1, 3, 1700]), union=st.booleans())
def test_any_vocabularies_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, width: int, union: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    pool = [f"t{k}" for k in range(9)]
    vocabularies = [
        {token: row for row, token in enumerate(data.draw(st.lists(st.sampled_from(pool), min_size=2, unique=True)))}
        for _ in range(3)
    ]
    padding = [data.draw(st.integers(0, 3)) for _ in vocabularies]
    names = ["base", "one", "two"]
    made = [
        make_folder(folder / name, rows, rows=len(rows) + more, width=width, seed=k)
        for k, (name, rows, more) in enumerate(zip(names, vocabularies, padding, strict=True))
    ]
    policy = "union" if union else "base"
    found = merged(folder, names[1:], policy=policy, chunk=1)
    again = merged(folder, names[1:], policy=policy, out="again")
    tokens = dict(vocabularies[0])
    for rows in vocabularies[1:] if union else []:
        tokens |= {token: len(tokens) + k for k, token in enumerate(t for t in rows if t not in tokens)}
    for name in (EMBED, HEAD):
        assert torch.equal(found[name], again[name])
        pairs = [(rows, tensors[name]) for rows, tensors in zip(vocabularies, made, strict=True)]
        expected = by_token(tokens, pairs[0], pairs[1:])
        assert len(found[name]) >= len(made[0][name])
        check(folder / "out", name, found[name], expected)
        assert all(read_vocabulary(folder / "out").rows[token] == row for token, row in tokens.items())


def test_a_run_that_is_begun_with_other_tokens_is_begun_anew(tmp_path: Path) -> None:
    make_folder(tmp_path / "base", BASE)
    make_folder(tmp_path / "model", words("b a c d e"))
    digests = []
    for trained in ("b a c d e", "c b a d e"):
        write(tmp_path / "model" / "tokenizer.json", tokenizer(words(trained)))
        plan = make_plan(
            [open_checkpoint(tmp_path / "model")], open_checkpoint(tmp_path / "base"), Policy(vocabulary="base")
        )
        assert plan.vocabulary is not None
        digests.append(plan.vocabulary.digest())
    assert digests[0] != digests[1]
    assert rows_of(open_checkpoint(tmp_path / "base").entries[EMBED]) == 5
