"""What is written during a run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training.small import examples, model, without_time

from polytask.errors import InputError
from polytask.training import fit
from polytask.training.history import HistoryFile, TensorBoard, finite

RECORD: dict[str, Any] = {"step": 2, "loss": {"a": 1.0}, "validation": {"a": {"rmse": math.nan}}, "score": 0.5}


def read(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_history_is_json_lines_of_the_records(tmp_path: Path) -> None:
    data = examples(40, seed=1)
    data.targets["round"][:] = math.nan
    fitted = fit(model(), examples(), data, steps=10, batch_size=32, evaluate_every=3, conflicts=True, out=tmp_path)
    lines = read(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert [line["epoch"] for line in lines] == pytest.approx([1, 2, 3, 10 / 3])
    assert lines == finite(fitted.history)
    assert lines[0]["validation"]["round"]["auroc"] is None
    assert set(lines[0]) == {"step", "epoch", "seconds", "lr", "loss", "validation", "score", "conflicts"}
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(lines))
    assert lines[-1]["lr"] == 0 and lines[0]["lr"] == pytest.approx(1e-3 * (1 + math.cos(0.3 * math.pi)) / 2)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"ste')
    file = HistoryFile(tmp_path, [{"step": 2}])
    file.record({"step": 3})
    assert read(tmp_path) == [{"step": 2}, {"step": 3}]
    file.close()


def test_each_record_is_on_disk_when_it_is_made(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path, [])
    file.step(1, {"a": 1.0})
    file.record(RECORD)
    assert read(tmp_path) == [RECORD | {"validation": {"a": {"rmse": None}}}]
    file.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(InputError, match=r"history\.jsonl: cannot be written"):
        HistoryFile(tmp_path, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"):
        fit(model(), examples(), steps=1, batch_size=8, out=tmp_path / "file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_finite_is_json_and_leaves_the_rest(value: Any) -> None:
    text = json.dumps(finite(value), allow_nan=False)
    assert json.loads(text) == finite(value)
    assert finite(finite(value)) == finite(value)


def test_tensorboard_holds_every_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted = fit(
        model(), examples(), examples(40, seed=1), steps=6, batch_size=32, evaluate_every=2, out=tmp_path, tensorboard=True
    )
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [event.step for event in written.Scalars("score")] == [2, 4, 6]
    for record, event in zip(fitted.history, written.Scalars("validation/weight/rmse"), strict=True):
        assert event.value == pytest.approx(record["validation"]["weight"]["rmse"], rel=1e-6)
    for record, event in zip(fitted.history, written.Scalars("loss/colour"), strict=True):
        assert event.value == pytest.approx(record["loss"]["colour"], rel=1e-6)
    assert [event.value for event in written.Scalars("score")] == pytest.approx([r["score"] for r in fitted.history])


def test_tensorboard_drops_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        killed.record(RECORD | {"step": step, "validation": {}, "score": 0.0})
    killed.close()
    again = TensorBoard(tmp_path, done=1)
    again.record(RECORD | {"step": 2, "validation": {}, "score": 1.0})
    again.close()
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [(event.step, event.value) for event in written.Scalars("score")] == [(1, 0.0), (2, 1.0)]


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from polytask.training.history import TensorBoard\n"
        "from pathlib import Path\n"
        "try: TensorBoard(Path(sys.argv[1]))\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout == "this needs the package 'tensorboard': pip install 'polytask[tensorboard]'\n"


def test_without_time_drops_only_the_time() -> None:
    assert without_time([{"seconds": 1.0, "step": 2}]) == [{"step": 2}]
