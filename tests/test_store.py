"""Models on disk: round trips, other processes, and folders that are damaged, newer, foreign or cannot be written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import small_table
from torch import Tensor, nn

import polytask as pt
from polytask.errors import InputError
from polytask.store import FORMAT, encoders, load, save


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pt.DataSet:
    return small_table.dataset(small_table.write(tmp_path_factory.mktemp("data") / "table.csv", 200))


def all_kinds() -> list[pt.Task]:
    return [
        pt.Task.binary("bin", classes=["no", "yes"], positive_weight=2.0),
        pt.Task.classification("cls", classes=["a", "b", "c"], class_weights=[1.0, 2.0, 3.0], label_smoothing=0.1),
        pt.Task.multilabel("multi", labels=["x", "y"]),
        pt.Task.ordinal("ord", classes=4, metric="mae"),
        pt.Task.regression("reg", outputs=["u", "v"], scale=([1.0, 2.0], [3.0, 4.0]), robust="huber"),
    ]


class Own(nn.Module):
    """An encoder that the package does not know."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(4, width)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layer(inputs).tanh()
        return features

    def settings(self) -> dict[str, Any]:
        return {"width": self.width}


# Round trips


def test_a_loaded_model_predicts_the_same_bits(data: pt.DataSet, tmp_path: Path) -> None:
    model = small_table.model(data)
    save(model, tmp_path / "model", dataset=data)
    saved = load(tmp_path / "model")
    expected = model.predict(data.test.inputs)
    found = saved.model.predict(data.test.inputs)
    assert list(found) == list(small_table.TARGETS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not saved.model.training
    raw = small_table.frame(50, seed=9)
    transformed = saved.schema.transform(raw) if saved.schema else {}
    assert all(torch.equal(transformed[key], value) for key, value in data.schema.transform(raw).items())


def test_a_model_with_tasks_of_all_kinds_comes_back(tmp_path: Path) -> None:
    model = pt.Model(pt.nn.conv.ConvEncoder(channels=(1, 4), width=6, size=8), all_kinds()).eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model").model
    assert list(again.tasks.values()) == all_kinds()
    images = torch.rand(3, 1, 8, 8)
    for name, prediction in model.predict(images).items():
        assert torch.equal(again.predict(images)[name], prediction)


def test_another_process_predicts_the_same_bits(data: pt.DataSet, tmp_path: Path) -> None:
    model = small_table.model(data)
    save(model, tmp_path / "model", dataset=data)
    small_table.write(tmp_path / "new.csv", 40, seed=3)
    code = """
import sys, polars as pl, polytask as pt
saved = pt.load(sys.argv[1])
inputs = saved.schema.transform(pl.read_csv(sys.argv[2], schema_overrides={"zone": pl.String}))
print({name: prediction.double().flatten().tolist() for name, prediction in saved.model.predict(inputs).items()})
"""
    words = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "new.csv")]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    expected = model.predict(data.schema.transform(small_table.frame(40, seed=3)))
    assert eval(found) == {name: prediction.double().flatten().tolist() for name, prediction in expected.items()}


def test_weights_keep_their_types(tmp_path: Path) -> None:
    model = pt.Model(Own().to(torch.bfloat16), [pt.Task.binary("b")])
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", encoder=Own()).model
    assert again.encoder.layer.weight.dtype == torch.bfloat16
    assert torch.equal(again.encoder.layer.weight, model.encoder.layer.weight)
    assert again.heads["b"].weight.dtype == torch.float32


def test_weights_that_are_tied_stay_tied(tmp_path: Path) -> None:
    class Tied(Own):
        def __init__(self) -> None:
            super().__init__(width=4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.layer.weight

    model = pt.Model(Tied(), [pt.Task.binary("b")])
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", encoder=Tied()).model
    assert again.encoder.second.weight is again.encoder.layer.weight
    assert torch.equal(again.encoder.layer.weight, model.encoder.layer.weight)


def test_loading_leaves_the_random_state_alone(data: pt.DataSet, tmp_path: Path) -> None:
    save(small_table.model(data), tmp_path / "model", dataset=data)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_the_folder_says_what_the_model_is_made_of_and_holds_no_pickle(data: pt.DataSet, tmp_path: Path) -> None:
    model = small_table.model(data)
    (tmp_path / "history.jsonl").write_text("{}\n")
    save(
        model,
        tmp_path / "model",
        dataset=data,
        recipe={"seed": 3, "score": float("nan")},
        beside=[tmp_path / "history.jsonl"],
    )
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"model.json", "model.safetensors", "schema.json", "schema.safetensors", "history.jsonl"}
    about = load(tmp_path / "model").about
    assert about == json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["format"] == FORMAT and about["polytask"] == pt.__version__
    assert about["recipe"] == {"seed": 3, "score": None}
    assert about["data"]["sha256"] == data.provenance["sha256"]
    counts = about["parameters"]
    assert counts["shared"] + sum(counts["tasks"].values()) == sum(p.numel() for p in model.parameters())
    assert set(about["files"]) == names - {"model.json", "history.jsonl"}
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1  # all can be read by whom one can


# Encoders that are the user's


def test_an_encoder_of_ones_own_is_passed_on_loading(tmp_path: Path) -> None:
    model = pt.Model(Own(), [pt.Task.binary("b")]).eval()
    save(model, tmp_path / "model")
    with pytest.raises(InputError, match=r"its encoder is a .*Own: build one and pass it as encoder="):
        load(tmp_path / "model")
    x = torch.randn(5, 4)
    assert torch.equal(load(tmp_path / "model", encoder=Own()).model.predict(x)["b"], model.predict(x)["b"])
    with pytest.raises(InputError, match=r"model.safetensors: does not fit the encoder .*size mismatch"):
        load(tmp_path / "model", encoder=Own(width=16))


def test_an_encoder_that_is_registered_is_built_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_entries", dict(encoders.items()))
    encoders.add("own")(Own)
    save(pt.Model(Own(width=6), [pt.Task.binary("b")]), tmp_path / "model")
    assert load(tmp_path / "model").model.width == 6


# Folders that are damaged, newer or none


@pytest.fixture
def folder(data: pt.DataSet, tmp_path: Path) -> Path:
    save(small_table.model(data), tmp_path / "model", dataset=data)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "schema.safetensors", "schema.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_file_is_named(folder: Path, name: str, how: str) -> None:
    file = folder / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"truncated": content[:middle], "flipped": flipped, "empty": b""}[how])
    with pytest.raises(InputError, match=rf"^\S*{name}: (damaged or altered|is missing)"):
        load(folder)


def test_a_truncated_description_is_named_with_its_line(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"model.json: line \d+: not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"format": FORMAT + 1, "polytask": "9.0"},
            r"written by polytask 9\.0; .* reads formats up to \d+: upgrade polytask",
        ),
        ({"format": "one"}, "has no format number"),
        ({"tasks": [{"kind": "binery", "name": "b"}]}, "unknown kind 'binery': did you mean 'binary'"),
        ({"sharing": {"name": "mmoee"}}, "unknown way of sharing 'mmoee': did you mean 'mmoe'"),
        ({"sharing": {"name": "mmoe", "expert": 2}}, "does not describe a model"),
        ({"encoder": {"name": "tabla", "class": "", "settings": {}}}, "unknown encoder 'tabla'"),
    ],
)
def test_a_description_that_cannot_be_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(InputError, match=words):
        load(folder)


def test_a_description_that_lacks_a_part_is_refused(folder: Path) -> None:
    about = json.loads((folder / "model.json").read_text())
    del about["files"]
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"model.json: does not describe a model \(no files\)"):
        load(folder)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: is no saved model, expected a folder with model.json"):
        load(tmp_path / "none")


# Folders that cannot be written


def test_a_folder_with_other_files_is_kept(data: pt.DataSet, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        save(small_table.model(data), tmp_path, dataset=data)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file, expected a folder"):
        save(small_table.model(data), tmp_path / "thesis.txt", dataset=data)


def test_an_earlier_model_is_replaced_whole(folder: Path, data: pt.DataSet) -> None:
    model = small_table.model(data, seed=1)
    save(model, folder, dataset=data)
    found = load(folder).model.predict(data.test.inputs)
    assert all(torch.equal(found[name], value) for name, value in model.predict(data.test.inputs).items())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_on_a_full_disk_the_earlier_model_stays(folder: Path, data: pt.DataSet) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with largest_file(20_000), pytest.raises(InputError, match=rf"{folder}: cannot be written \(.*(too large|os error 27)"):
        save(small_table.model(data, seed=1), folder, dataset=data)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_in_a_read_only_folder_nothing_is_written(data: pt.DataSet, tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(InputError, match=r"model: cannot be written \((Operation not|Permission)"):
        save(small_table.model(data), tmp_path / "model", dataset=data)
    assert not list(tmp_path.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of a file fails, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write to ``folder``, root included: root is held off by the file system's flag."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root can write everywhere here: the file system has no immutable flag")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
