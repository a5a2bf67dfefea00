"""Several processes give what one process gives on the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training import several
from tests.training.several import together
from tests.training.small import distance, examples, model, without_time

from polytask.balance import Estimated, Uncertainty, UPGrad
from polytask.training import fit

ROOT = Path(__file__).parents[2]


def assert_close(histories: list[object]) -> None:
    """Equal as far as sums in another order allow."""
    a, b = histories
    if isinstance(a, dict):
        assert isinstance(b, dict) and list(a) == list(b)
        for key in a:
            assert_close([a[key], b[key]])
    elif isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_close(list(pair))
    else:
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("balance", ["equal", "uncertainty", "upgrad", "trimmed_mean", "mgda of losses"])
def test_two_processes_equal_one_on_the_joined_batch(balance: str, accumulate: int, tmp_path: Path) -> None:
    ends = together(several.on_examples, 2, tmp_path, balance, accumulate, None)
    one = several.on_examples(0, 1, balance, 1, None)
    assert distance(ends[0]["model"], ends[1]["model"]) == 0
    assert distance(ends[0]["model"], one["model"]) < 1e-6
    assert json.dumps(ends[0]["history"]) == json.dumps(ends[1]["history"])
    for record in (*ends[0]["history"], *one["history"]):
        assert len(record.pop("conflicts")["cosines"]) == 3  # of the first process's batch: not those of the joined one
    assert_close([ends[0]["history"], one["history"]])
    if balance == "uncertainty":
        assert distance(ends[0]["balancer"], ends[1]["balancer"]) == 0
        assert distance(ends[0]["balancer"], one["balancer"]) < 1e-6


@pytest.mark.parametrize("balance", ["equal", "upgrad"])
@pytest.mark.parametrize("method", several.INSERTED)
def test_what_is_inserted_trains_as_in_one_process(method: str, balance: str, tmp_path: Path) -> None:
    ends = together(several.on_an_adapted_network, 2, tmp_path, method, balance)
    one = several.on_an_adapted_network(0, 1, method, balance)
    assert distance(ends[0]["model"], ends[1]["model"]) == 0
    assert distance(ends[0]["model"], one["model"]) < 1e-6
    moved = {name for name in one["model"] if not torch.equal(one["model"][name], before(method)[name])}
    assert moved == {name for name in one["model"] if "task_parts" in name or name.startswith("heads.")}


def before(method: str) -> dict[str, torch.Tensor]:
    return model(sharing=several.INSERTED[method]).state_dict()


def test_a_balancer_that_writes_gradients_keeps_the_copies_alike(tmp_path: Path) -> None:
    ends = together(several.on_examples, 2, tmp_path, "product", 1, None)
    assert distance(ends[0]["model"], ends[1]["model"]) == 0
    assert distance(ends[0]["model"], several.on_examples(0, 1, "equal", 1, None)["model"]) > 1e-3


@pytest.mark.parametrize("by", ["representation", "sketch", "local"])
def test_cheap_gramians_keep_the_copies_alike(by: str, tmp_path: Path) -> None:
    ends = together(several.on_examples, 2, tmp_path, f"estimated by {by}", 1, None)
    assert distance(ends[0]["model"], ends[1]["model"]) == 0
    one = several.on_examples(0, 1, f"estimated by {by}", 1, None)
    away = distance(ends[0]["model"], one["model"])
    # The gradients of a representation stand side by side over processes; the others are estimates of another kind.
    assert away < 1e-6 if by == "representation" else 0 < away < 0.1


def test_three_processes_share_a_batch_that_three_does_not_divide(tmp_path: Path) -> None:
    ends = together(several.on_examples, 3, tmp_path, "uncertainty", 1, None)
    one = several.on_examples(0, 1, "uncertainty", 1, None)
    for end in ends:
        assert distance(end["model"], one["model"]) < 1e-6


def test_a_task_that_one_process_has_no_label_of(tmp_path: Path) -> None:
    ends = together(several.on_loaders_of_other_tasks, 2, tmp_path)
    one = several.on_loaders_of_other_tasks(0, 1)
    for end in ends:
        assert distance(end["model"], one["model"]) < 1e-6
        assert distance(end["balancer"], one["balancer"]) < 1e-6
        assert_close([end["history"][-1]["loss"], one["history"][-1]["loss"]])


@pytest.mark.parametrize("tasks_per_step", ["one", "all"])
def test_a_mixture_is_shared_among_the_processes(tasks_per_step: str, tmp_path: Path) -> None:
    ends = together(several.on_mixture, 2, tmp_path, tasks_per_step)
    one = several.on_mixture(0, 1, tasks_per_step)
    for end in ends:
        assert distance(end["model"], one["model"]) < 1e-6


def test_several_processes_resume_from_their_checkpoint(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    together(several.on_examples, 2, tmp_path, "uncertainty", 1, str(whole))
    end = torch.load(tmp_path / "rank0.pt", weights_only=True)
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert state["finished"] and state["random"][0].shape[0] == 2  # a random state for each process
    folder.mkdir()
    together(several.stopped, 2, tmp_path, str(folder))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    again = together(several.on_examples, 2, tmp_path, "uncertainty", 1, str(folder))
    assert distance(again[0]["model"], end["model"]) == 0
    assert json.dumps(again[1]["history"]) == json.dumps(end["history"])


@pytest.mark.parametrize("counted", [True, False])
def test_a_loss_that_is_not_finite_in_one_process_stops_all(counted: bool, tmp_path: Path) -> None:
    ends = together(several.with_nan, 2, tmp_path, counted, str(tmp_path / "run"))
    assert "task 'bad' is nan at step 3" in ends[1]["error"]
    assert ("task 'bad' is nan" if counted else "a loss in another process is not finite at step 3") in ends[0]["error"]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2 and bool(state["model"]["weight"].isfinite().all())
    assert torch.equal(ends[0]["weight"], state["model"]["weight"]) and torch.equal(ends[0]["weight"], ends[1]["weight"])


def test_parameters_in_pieces_take_a_gramian_of_the_representation(tmp_path: Path) -> None:
    ends = together(several.in_pieces_by_representation, 2, tmp_path)
    network = model()
    fit(
        network, examples(96), examples(48, seed=1), **(several.SETTINGS | {"conflicts": False}),
        balance=Estimated(UPGrad(), "representation"), optimizer=several.adam,
    )  # fmt: skip
    for end in ends:
        assert distance(end["model"], dict(network.state_dict())) < 1e-5


def test_parameters_in_pieces_give_what_whole_ones_give_and_resume(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    ends = together(several.in_pieces, 2, tmp_path, str(whole))
    network, used = model(), Uncertainty()
    settings = several.SETTINGS | {"conflicts": False}
    one = fit(network, examples(96), examples(48, seed=1), **settings, balance=used, optimizer=several.adam)
    for end in ends:
        assert distance(end["model"], dict(network.state_dict())) < 1e-5
        assert distance(end["balancer"], dict(used.state_dict())) < 1e-5
        assert_close([end["history"], without_time(one.history)])
    total = sum(p.numel() for p in network.parameters())
    assert ends[0]["pieces"] + ends[1]["pieces"] == total and max(end["pieces"] for end in ends) < 0.7 * total
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert {n: v.shape for n, v in state["model"].items()} == {n: v.shape for n, v in network.state_dict().items()}
    # What is saved is whole, so that one process alone could read it; here two go on from it.
    together(several.in_pieces_stopped, 2, tmp_path, str(folder))
    again = together(several.in_pieces, 2, tmp_path, str(folder))
    assert distance(again[1]["model"], ends[1]["model"]) == 0
    assert again[0]["history"] == ends[0]["history"]


def test_parameters_in_pieces_have_no_gradients_to_compare(tmp_path: Path) -> None:
    ends = together(several.in_pieces_by_gradients, 2, tmp_path)
    assert "use a loss weighting" in ends[0]["error"]


@pytest.mark.soak
def test_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "tests.training.several", str(tmp_path)]
    found = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert found.returncode == 0, found.stderr
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    one = several.on_examples(0, 1, "uncertainty", 1, None)
    for end in ends:
        assert distance(end["model"], one["model"]) < 1e-6
        assert distance(end["balancer"], one["balancer"]) < 1e-6
