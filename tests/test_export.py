"""ONNX files: onnxruntime predicts what the model predicts, for any number of rows, or no file is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import small_table
from tests.test_store import all_kinds

import polytask as pt
from polytask import export
from polytask.errors import InputError, MissingExtra
from polytask.export import export_onnx
from polytask.nn.conv import ConvEncoder
from polytask.store import Saved, load, save

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return small_table.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("model") / "model"
    save(pt.Model(ConvEncoder(channels=(1, 4), width=6, size=8), all_kinds()), folder)
    return load(folder)


def run(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}


def test_a_model_of_a_table_is_exported_with_named_inputs_and_outputs(table: Saved, tmp_path: Path) -> None:
    differences = export_onnx(table, tmp_path / "model.onnx")
    assert list(differences) == list(small_table.TARGETS) and max(differences.values()) < 1e-4
    assert table.schema is not None
    for rows in (1, 3, 100):
        inputs = table.schema.transform(small_table.frame(rows, seed=8))
        found = run(tmp_path / "model.onnx", inputs)
        for name, prediction in table.model.predict(inputs).items():
            assert torch.allclose(found[name], prediction, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["tasks"]) == [task.to_dict() for task in table.model.tasks.values()]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_every_kind_of_task_is_exported(images: Saved, tmp_path: Path) -> None:
    sample = torch.rand(5, 1, 8, 8)
    export_onnx(images, tmp_path / "model.onnx", sample)
    found = run(tmp_path / "model.onnx", {"inputs": sample[:2]})
    assert list(found) == [task.name for task in all_kinds()]
    for name, prediction in images.model.predict(sample[:2]).items():
        assert torch.allclose(found[name], prediction, rtol=1e-4, atol=1e-5)


def test_a_file_that_disagrees_is_not_written(table: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = export._exported

    def of_other_weights(model: pt.Model, *rest: Any) -> Any:
        return exported(pt.Model(model.encoder, list(model.tasks.values()), model.sharing, model.width), *rest)

    monkeypatch.setattr(export, "_exported", of_other_weights)
    with pytest.raises(
        InputError, match=r"model.onnx: the exported prediction of task 'churn' differs by .*, expected at most"
    ):
        export_onnx(table, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_a_description_of_its_inputs_a_model_needs_rows(images: Saved, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say what its inputs are: pass some rows as inputs="):
        export_onnx(images, tmp_path / "model.onnx")


def test_a_model_that_cannot_be_exported_is_told_in_a_line(images: Saved, tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        width = 6

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1)[:, :6] * (1.0 if float(inputs.sum()) > 0 else 2.0)

    saved = Saved(images.path, pt.Model(Branches(), all_kinds()).eval(), None, images.about)
    with pytest.raises(InputError, match="a model with Branches cannot be exported") as told:
        export_onnx(saved, tmp_path / "model.onnx", torch.rand(5, 1, 8, 8))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(table: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"'onnxscript': pip install 'polytask\[onnx\]'"):
        export_onnx(table, tmp_path / "model.onnx")
