"""``evaluate``, ``predict``, ``explain``, ``diff`` and ``export`` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from tests import small_table
from tests.cli.command import polytask, refused

import polytask as pt
from polytask.store import load, save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of the small table, made by the command line, beside its training table."""
    folder = tmp_path_factory.mktemp("model")
    small_table.write(folder / "table.csv", 400)
    targets = [word for target in small_table.TARGETS for word in ("-t", target)]
    ran = polytask("fit", folder / "table.csv", *targets, "-o", folder / "model", "--steps", 25, "-m", "uncertainty", "-q")
    assert ran.code == 0, ran.err
    return folder / "model"


@pytest.fixture
def worse(model: Path, tmp_path: Path) -> Path:
    """The same model with the head of one task as it was before training."""
    saved = load(model)
    torch.manual_seed(0)
    saved.model.heads["spend"].reset_parameters()
    save(saved.model, tmp_path / "worse")
    about = json.loads((tmp_path / "worse" / "model.json").read_text())
    for name in ("schema.json", "schema.safetensors"):
        shutil.copy(model / name, tmp_path / "worse")
        about["files"][name] = saved.about["files"][name]
    (tmp_path / "worse" / "model.json").write_text(json.dumps(about))
    return tmp_path / "worse"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return small_table.write(tmp_path / "new.csv", 120, seed=2)


def test_evaluate_measures_every_labelled_row(model: Path, new: Path) -> None:
    ran = polytask("evaluate", model, new)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"spend +120 +rmse +\d+\.\d{4}", ran.out)
    told = json.loads(polytask("evaluate", model, new, "--json").out)
    assert set(told) == set(small_table.TARGETS)
    assert f"{told['spend']['rmse']:.4f}" in ran.out
    truth = small_table.frame(120, seed=2)["spend"].std(ddof=0)
    assert isinstance(truth, float) and told["spend"]["rmse"] < truth


def test_evaluate_warns_of_the_training_rows(model: Path) -> None:
    ran = polytask("evaluate", model, model.parent / "table.csv")
    assert ran.code == 0 and "was trained on rows of" in ran.err.replace("\n", " ")


def test_evaluate_measures_image_data_on_the_test_split_that_fit_showed(tmp_path: Path) -> None:
    words = ("multidigits", "--task", "left", "--task", "ink")
    assert polytask("fit", *words, "-o", tmp_path / "digits", "--steps", 3, "-q", "--seed", 5).code == 0
    told = json.loads(polytask("evaluate", tmp_path / "digits", "multidigits", "--json").out)
    assert told == load(tmp_path / "digits").about["recipe"]["test"]


def test_predict_writes_classes_probabilities_and_row_numbers(model: Path, new: Path) -> None:
    ran = polytask("predict", model, new, "-o", new.with_name("out.parquet"))
    assert (ran.code, ran.out) == (0, "") and "120 rows predicted" in ran.err
    found = pl.read_parquet(new.with_name("out.parquet"))
    assert found["row"].to_list() == list(range(1, 121))
    assert set(found["segment"]) <= {"low", "mid", "top"}
    right = (found["segment"] == small_table.frame(120, seed=2)["segment"]).mean()
    assert isinstance(right, float) and right > 0.5
    total = found.select(pl.sum_horizontal(pl.col("^segment_.*$"))).to_series()
    assert (total - 1).abs().max() < 1e-5  # type: ignore[operator]


def test_predict_reports_rows_that_cannot_be_read_and_exits_with_3(model: Path, new: Path) -> None:
    lines = new.read_text().splitlines()
    lines[5] = lines[5].replace(lines[5].split(",")[0], "old", 1)
    new.write_text("\n".join(lines) + "\n")
    words = ["predict", str(model), str(new), "-o", str(new.with_name("out.csv"))]
    ran = subprocess.run(
        [sys.executable, "-m", "polytask.cli.main", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 3
    assert ran.stderr.splitlines()[0] == f"{new}: row 5: column 'age': 'old', expected a number"
    assert ran.stderr.splitlines()[-1].endswith("119 rows predicted, 1 could not be read")
    assert 5 not in pl.read_csv(new.with_name("out.csv"))["row"]


def test_explain_says_what_the_model_is_made_of(model: Path) -> None:
    ran = polytask("explain", model)
    assert ran.code == 0
    about = load(model).about
    shared, own = about["parameters"]["shared"], about["parameters"]["tasks"]["churn"]
    assert re.search(rf"churn +binary +auroc +0\.\d+ +0\.\d+ +{own:,} +{shared + own:,}", ran.out)
    text = " ".join(ran.out.split())
    for words in (
        "method hard+uncertainty",
        "seed 0",
        "steps 25",
        f"polytask {pt.__version__}",
        "how random",
        f"torch {torch.__version__}",
    ):
        assert words in text
    assert about["data"]["sha256"] in ran.out.replace("\n", "").replace(" ", "")
    assert json.loads(polytask("explain", model, "--json").out) == about


def test_diff_raises_the_alarm_for_the_task_that_got_worse(model: Path, worse: Path, new: Path) -> None:
    ran = polytask("diff", model, worse, new)
    assert ran.code == 1, ran
    verdicts = {line.split()[0]: line.split()[-1] for line in ran.out.splitlines() if line.split()[0] in small_table.TARGETS}
    assert verdicts == {"churn": "undecided", "spend": "worse", "segment": "undecided"}
    told = json.loads(polytask("diff", model, worse, new, "--json").out)
    spend = next(task for task in told if task["task"] == "spend")
    assert 0 < spend["low"] < spend["difference"] < spend["high"] and spend["p"] < 0.05
    turned = polytask("diff", worse, model, new)
    assert turned.code == 0 and "better" in turned.out


@pytest.mark.soak
def test_export_writes_a_file_that_agrees(model: Path, new: Path) -> None:
    pytest.importorskip("onnxruntime")
    ran = polytask("export", model, "-o", new.with_name("model.onnx"), "--check", new)
    assert ran.code == 0, ran.err
    assert re.search(r"model.onnx: written; onnxruntime differs by \d\.\de-\d\d at most", ran.err.replace("\n", " "))


def test_models_that_cannot_be_used_are_refused_in_a_line(model: Path, new: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    about = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**about, "format": 99, "polytask": "9.9"}))
    out = ("-o", tmp_path / "out.csv")
    for words in (("evaluate", copy, new), ("predict", copy, new, *out), ("explain", copy), ("diff", model, copy, new)):
        assert "written by polytask 9.9" in refused(*words)
    (copy / "model.json").write_text(json.dumps(about))
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-1])
    assert "model.safetensors: damaged or altered" in refused("predict", copy, new, *out)
    assert "is no saved model" in refused("evaluate", tmp_path / "none", new)
    assert "no such file" in refused("evaluate", model, tmp_path / "none.csv")
    assert "no such file" in refused("predict", model, tmp_path / "none.csv", *out)
    assert "unknown type of file" in refused("predict", model, new, "-o", tmp_path / "out.xls")
    assert not (tmp_path / "out.csv").exists()
