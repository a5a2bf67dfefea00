"""Columns of text that a pretrained encoder reads: codes, schemas, and models that are saved, loaded and used."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from tests import small_text
from tests.cli.command import polytask, refused

import polytask as pt
from polytask.data.table.schema import Schema
from polytask.errors import InputError
from polytask.nn.tabular import TabularEncoder
from polytask.share import SMoRA

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_text.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_text.table(tmp_path_factory.mktemp("data") / "reviews.csv")


def test_texts_become_the_tokens_ids(folder: Path, table: Path) -> None:
    data = pt.load_table(table, small_text.TARGETS, text_encoder=folder)
    schema = data.schema
    frame = pl.DataFrame({"review": ["the food was good", None, "good " * 200, "unheard"], "visits": [1, 2, 3, 4]})
    codes = schema.transform(frame)["text"]
    length = codes.shape[-1]
    assert codes.shape == (4, 1, length) and 10 < length < 30
    words = dict(zip(small_text.WORDS, range(5, 5 + len(small_text.WORDS)), strict=True))  # 1 + the id
    assert codes[0, 0, :6].tolist() == [3, words["the"], words["food"], words["was"], words["good"], 4]
    assert codes[0, 0, 6:].sum() == 0 and codes[1].sum() == 0
    assert codes[2, 0, -1] == 4 and codes[3, 0, :3].tolist() == [3, 2, 4]
    again = Schema.from_json(schema.to_json(), schema.tensors())
    assert torch.equal(again.transform(frame)["text"], codes)


def test_adapted_saved_and_loaded_without_the_encoders_folder(folder: Path, table: Path, tmp_path: Path) -> None:
    copied = tmp_path / "encoder"
    shutil.copytree(folder, copied)
    arguments = ("-t", "liked", "-t", "about", "--text-encoder", copied, "-m", "smora+nash", "--steps", 3)
    ran = polytask("fit", table, *arguments, "-o", tmp_path / "model")
    assert ran.code == 0, ran.err
    shutil.rmtree(copied)
    saved = pt.load(tmp_path / "model")
    assert isinstance(saved.model.sharing, SMoRA) and saved.model.inserted is not None
    transformer = [name for name, _ in saved.model.named_parameters() if "transformer" in name and "task_parts" not in name]
    original = TabularEncoder(
        **pt.load_table(table, small_text.TARGETS, text_encoder=folder).schema.encoder_settings(), pretrained=folder
    )
    before = dict(original.named_parameters())
    assert all(torch.equal(saved.model.get_parameter(name), before[name.removeprefix("encoder.")]) for name in transformer)
    moved = saved.model.get_parameter("encoder.text.transformer.encoder.layer.1.output.dense.task_parts.smora.b")
    assert moved.abs().sum() > 0
    ran = polytask("predict", tmp_path / "model", table, "-o", tmp_path / "out.csv")
    assert ran.code == 0, ran.err
    assert len(pl.read_csv(tmp_path / "out.csv")) == 120


def test_compared_with_every_way_of_sharing_that_fits(folder: Path, table: Path) -> None:
    from polytask.method import parse_methods

    data = pt.load_table(table, small_text.TARGETS, text_encoder=folder)
    names = {method.sharing for method in parse_methods(["all-sharing"], pretrained=data.encoder().pretrained is not None)}
    assert {"hard", "mmoe", "lora", "smora", "mhr", "adapter"} <= names
    assert "lora" not in {method.sharing for method in parse_methods(["all-sharing"])}
    plain = {"learning_rates": [1e-3], "weight_trials": 0, "transfer": False, "equal_time": False, "workers": 1}
    results = pt.compare(data, ["lora"], seeds=2, steps=1, **plain)
    assert {"hard+equal", "lora+equal"} <= {row["name"] for row in results["methods"]}


def test_what_cannot_be_is_one_line(folder: Path, table: Path, tmp_path: Path) -> None:
    rest = ("-m", "lora", "--steps", 3, "-o", tmp_path / "model")
    for data, encoder in (((table, "-t", "liked"), "TabularEncoder"), (("multidigits",), "ConvEncoder")):
        line = refused("fit", *data, *rest)
        assert f"lora adapts what was trained before, and this {encoder} has no such part" in line
    with pytest.raises(InputError, match="no column of text for the text encoder"):
        pt.load_table(pl.DataFrame({"a": range(50), "b": ["x", "y"] * 25}), ["b"], text_encoder=folder)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        pt.load_table(table, ["liked"], text_encoder=broken)
