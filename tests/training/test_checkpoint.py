"""The checkpoint file: whole or absent, and refused in one line when it cannot be used."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import examples, model, processes
from torch import Tensor

from polytask.errors import InputError
from polytask.training import checkpoint, fit

STATE: dict[str, Any] = {
    "settings": {"steps": 3},
    "step": 2,
    "model": {"w": torch.arange(5.0)},
    "history": [{"score": None}],
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, {"steps": 3}) is None
    checkpoint.save(tmp_path, STATE)
    state = checkpoint.load(tmp_path, {"steps": 3})
    assert state is not None and torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert {key: state[key] for key in ("settings", "step", "history")} == {
        k: STATE[k] for k in ("settings", "step", "history")
    }
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -200])
def test_a_truncated_file_is_named(keep: int, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"checkpoint\.pt: damaged checkpoint .*remove it to start again") as error:
        checkpoint.load(tmp_path, {"steps": 3})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 100])
def test_a_file_that_is_something_else_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt: "):
        checkpoint.load(tmp_path, {})


@pytest.mark.parametrize("other", [[1, 2], {"model": {}}, {"settings": 3}, torch.zeros(2)])
def test_another_programs_file_is_named(other: Any, tmp_path: Path) -> None:
    torch.save(other, tmp_path / checkpoint.FILE)
    with pytest.raises(InputError, match="not a checkpoint of a run"):
        checkpoint.load(tmp_path, {})


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm-was-done"),))


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": {}, "model": Harmful()}, tmp_path / checkpoint.FILE)
    with pytest.raises(InputError, match="damaged checkpoint"):
        checkpoint.load(tmp_path, {})
    assert not (tmp_path / "harm-was-done").exists()


def test_other_settings_are_told_one_by_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    with pytest.raises(InputError, match=r"\(steps 3 -> 4, lr None -> 0.1\); choose another folder"):
        checkpoint.load(tmp_path, {"steps": 4, "lr": 0.1})


def test_a_fingerprint_is_that_of_the_values() -> None:
    assert checkpoint.fingerprint({"a": 1, "b": [2]}) == checkpoint.fingerprint({"b": [2], "a": 1})
    assert checkpoint.fingerprint({"a": 1}) != checkpoint.fingerprint({"a": 2})


def test_random_state_goes_back_and_forth_also_as_a_row() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    torch.rand(5)
    state = checkpoint.random_state(cpu)
    first = torch.rand(9)
    checkpoint.set_random_state(state, cpu)
    assert torch.equal(first, torch.rand(9))
    rows = torch.stack([torch.zeros_like(state[0]), state[0]])
    checkpoint.set_random_state([rows[1]], cpu)
    assert torch.equal(first, torch.rand(9))


def test_whole_leaves_whole_tensors_as_they_are() -> None:
    state = {"a": torch.ones(2), "b": [{"c": torch.zeros(1)}, 3], "d": None}
    assert checkpoint.whole(state) == {"a": state["a"], "b": state["b"], "d": None}
    like: Tensor = torch.zeros(2)
    assert checkpoint.in_pieces(like, torch.ones(2)) is like


def on_a_full_disk(folder: str, limit: int) -> None:
    """Train, with files that cannot grow beyond ``limit`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        fit(model(), examples(), steps=4, batch_size=32, evaluate_every=2, out=folder)
    except InputError as error:
        Path(folder, "error.txt").write_text(str(error)[:200])
        raise SystemExit(3) from error


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path: Path) -> None:
    fit(model(), examples(), steps=4, batch_size=32, evaluate_every=2, out=tmp_path)
    path = tmp_path / checkpoint.FILE
    state = torch.load(path, weights_only=True)
    torch.save(state | {"step": 2, "finished": False, "history": state["history"][:1]}, path)
    before = path.read_bytes()
    process = processes.Process(target=on_a_full_disk, args=(str(tmp_path), 4000))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    error = (tmp_path / "error.txt").read_text()
    assert "checkpoint.pt: cannot be written" in error and "\n" not in error
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_run_was_writing_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.abc.part").write_bytes(b"half")
    (tmp_path / ".other.part").write_bytes(b"kept")
    assert checkpoint.load(tmp_path, {}) is None
    assert [path.name for path in tmp_path.iterdir()] == [".other.part"]
