"""Merged checkpoints on disk: whole or absent, resumed, read by others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import TIES, Average, TaskArithmetic, make_plan, merge_checkpoints, merge_state_dicts, open_checkpoint
from polytask.merge import output as module
from polytask.merge.output import Output


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (64, 100), "b.bias": (), "layers.0.w": (5000,), "layers.1.w": (3, 3, 3)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return made | {"ids": torch.arange(5)}


def inputs(folder: Path, dtype: torch.dtype = torch.float32, count: int = 3) -> tuple[list[Path], list[dict[str, Tensor]]]:
    states = [tensors(k, dtype) for k in range(count)]
    paths = [folder / f"{k}.safetensors" for k in range(count)]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return paths, states


def whole(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard", [100, 20_000, 10**9])
def test_what_is_on_disk_is_what_merging_in_memory_gives(tmp_path: Path, shard: int) -> None:
    paths, states = inputs(tmp_path)
    plan = make_plan([open_checkpoint(p) for p in paths[1:]], open_checkpoint(paths[0]))
    merge_checkpoints(TIES(), plan, tmp_path / "out", about="rule: ties", shard=shard)
    expected = merge_state_dicts(TIES(), states[1:], states[0])
    found = whole(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "rule: ties" in (tmp_path / "out" / "README.md").read_text()
    opened = open_checkpoint(tmp_path / "out")  # with its index, if there are several shards
    assert list(opened.entries) == sorted(expected)
    assert len(opened.files) > 1 or shard > 20_000


def test_threads_change_no_byte_and_a_bad_tensor_stops_all(tmp_path: Path) -> None:
    paths, states = inputs(tmp_path, torch.bfloat16)
    for threads in (1, 4):
        plan = make_plan([open_checkpoint(p) for p in paths[1:]], open_checkpoint(paths[0]))
        out = tmp_path / str(threads)
        merge_checkpoints(TIES(scope="tensor"), plan, out, about="", shard=20_000, threads=threads)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "4").iterdir()) and len(files) > 2
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes() for name in files)
    states[1]["layers.0.w"][7] = torch.nan
    save_file(states[1], paths[1])
    plan = make_plan([open_checkpoint(p) for p in paths[1:]], open_checkpoint(paths[0]))
    with pytest.raises(InputError, match=r"'layers\.0\.w': the merged values are not finite; neither are those of model 1"):
        merge_checkpoints(TaskArithmetic(), plan, tmp_path / "bad", about="", threads=4)
    assert not (tmp_path / "bad").exists()


def test_the_card_says_what_rounding_cost(tmp_path: Path) -> None:
    paths, states = inputs(tmp_path, torch.bfloat16)
    plan = make_plan([open_checkpoint(p) for p in paths[1:]], open_checkpoint(paths[0]))
    cost = merge_checkpoints(TaskArithmetic(), plan, tmp_path / "out", about="")
    names = [name for name in states[0] if name != "ids"]
    exact = merge_state_dicts(
        TaskArithmetic(),
        [{n: s[n].float() for n in names} for s in states[1:]],
        {n: states[0][n].float() for n in names},
    )
    flat = torch.cat([exact[n].flatten() for n in names])
    base = torch.cat([states[0][n].float().flatten() for n in names])
    expected = (flat - flat.bfloat16().float()).norm() / (flat - base).norm()
    assert cost.relative == pytest.approx(float(expected), rel=1e-4)
    assert "Rounding moved the result by" in (tmp_path / "out" / "README.md").read_text()
    full = merge_checkpoints(TaskArithmetic(), plan, tmp_path / "full", about="", out_dtype=torch.float32)
    assert full.relative is None
    assert whole(tmp_path / "full")["a.weight"].dtype == torch.float32


def test_the_files_of_a_model_folder_are_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors(0), folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "vocab.txt", "optimizer.json", "notes.md", "run.sh"):
        (folder / name).write_text("{}")
    plan = make_plan([open_checkpoint(folder), open_checkpoint(folder)], None)
    merge_checkpoints(Average(), plan, tmp_path / "out", about="")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt",
    }  # fmt: skip


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InputError, match="exists already"):
        Output(tmp_path / "out", {"a": (torch.float32, (1,))}, "")
    (tmp_path / "out" / "precious").unlink()
    Output(tmp_path / "out", {"a": (torch.float32, (1,))}, "").finish({})
    assert whole(tmp_path / "out")["a"].shape == (1,)


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs [\d,]+ bytes, and the disk has [\d,]+ left"):
        Output(tmp_path / "out", {"a": (torch.float32, (2**50,))}, "")
    assert not list(tmp_path.iterdir())


def test_what_was_begun_with_other_inputs_is_begun_anew(tmp_path: Path) -> None:
    shapes = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    first = Output(tmp_path / "out", shapes, "one")
    first.write("a", 0, torch.ones(2))
    first.done.append("a")
    first._note()
    first.close()
    assert Output(tmp_path / "out", shapes, "one").done == ["a"]
    assert Output(tmp_path / "out", shapes, "two").done == []


SCRIPT = """
import sys, time
from polytask.merge import TIES, make_plan, merge_checkpoints, open_checkpoint
from polytask.merge import output
output.NOTED_EVERY = 0.0
slow = sys.argv[2] == "slow"
folder = sys.argv[1]
plan = make_plan([open_checkpoint(f"{folder}/{k}.safetensors") for k in (1, 2)], open_checkpoint(f"{folder}/0.safetensors"))
def progress(name, elements):
    print(name, flush=True)
    if slow: time.sleep(0.5)
merge_checkpoints(TIES(), plan, f"{folder}/out", about="", progress=progress)
"""


def test_a_run_that_is_killed_leaves_nothing_that_looks_finished_and_goes_on(tmp_path: Path) -> None:
    _, states = inputs(tmp_path)
    env = dict(os.environ, OMP_NUM_THREADS="1")
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), "slow"], stdout=subprocess.PIPE, text=True, env=env)
    assert run.stdout is not None
    seen = [run.stdout.readline().strip() for _ in range(2)]
    time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "fast"], stdout=subprocess.PIPE, text=True, env=env, check=True
    ).stdout.split()
    assert seen[0] not in done and len(done) < 4
    expected = merge_state_dicts(TIES(), states[1:], states[0])
    found = whole(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(tmp_path.glob(f".out*{module.JOURNAL}"))
