"""Folders and indices: which files a path stands for, and every way in which an index can be wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from polytask.errors import InputError
from polytask.merge.checkpoint import open_checkpoint

STATE = {name: torch.full((2, 3), float(number)) for number, name in enumerate("abcd")}
INDEX = "model.safetensors.index.json"


def shards(folder: Path, placed: Any = None) -> Path:
    """A folder with two shards; ``placed`` changes what the index says."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: STATE[name] for name in "ac"}, folder / "one.safetensors", {"format": "pt", "n": "1"})
    safetensors.torch.save_file({name: STATE[name] for name in "bd"}, folder / "two.safetensors", {"format": "pt", "n": "2"})
    good = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors", "d": "two.safetensors"}
    index = {"metadata": {"total_size": 96.0}, "weight_map": good | (placed or {})}
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def refused(path: Path, *says: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert all(part in message for part in says) and "\n" not in message and len(message) < 1000, message


def check_whole(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.entries) == list("abcd")
        for name, value in STATE.items():
            assert torch.equal(checkpoint.read(name).view(2, 3), value)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    check_whole(folder)
    check_whole(folder / INDEX)
    check_whole(Path(os.path.relpath(folder)))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.files == (folder / "one.safetensors", folder / "two.safetensors")
    assert checkpoint.metadata == {"format": "pt", "n": "1"}
    assert "4 tensors in 2 files" in repr(checkpoint)


def test_shards_of_torch_save(tmp_path: Path) -> None:
    torch.save({name: STATE[name] for name in "ab"}, tmp_path / "one.bin")
    torch.save({name: STATE[name] for name in "cd"}, tmp_path / "two.bin")
    placed = {"a": "one.bin", "b": "one.bin", "c": "two.bin", "d": "two.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    check_whole(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "diffusion_model.safetensors"])
def test_safetensors_come_before_torch_save(name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(open_checkpoint(tmp_path).entries) == ["w"]
    safetensors.torch.save_file(STATE, tmp_path / name)
    (tmp_path / "training_args.bin").write_bytes(b"not ours")
    check_whole(tmp_path)
    check_whole(tmp_path / name)


def test_several_candidates(tmp_path: Path) -> None:
    folder = shards(tmp_path / "indices")
    (folder / "model.fp16.safetensors.index.json").write_text("{}")
    refused(folder, "model.fp16.safetensors.index.json", INDEX)
    folder = shards(tmp_path / "both")
    safetensors.torch.save_file(STATE, folder / "model.safetensors")
    refused(folder, f"{INDEX}, model.safetensors")
    (folder / INDEX).unlink()
    check_whole(folder)
    (folder / "model.safetensors").unlink()
    refused(folder, "one.safetensors, two.safetensors")


def test_nothing_to_open(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "no checkpoint, expected")
    refused(tmp_path / "absent", "no such file or folder")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", "expected a folder or a file that ends in .safetensors")


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, str(tmp_path), "adapter, which needs its base")


@pytest.mark.parametrize(
    ("placed", "says"),
    [
        ({"a": "two.safetensors"}, ["one.safetensors", "tensor 'a'", "has it in 'two.safetensors'"]),
        ({"e": "two.safetensors"}, ["two.safetensors", "no tensor 'e'"]),
        ({"d": None}, ["two.safetensors", "tensor 'd' is not in"]),
        ({"a": "three.safetensors"}, [INDEX, "'three.safetensors'", "no such file"]),
        ({"a": "./one.safetensors"}, ["tensor 'c'"]),
        ({"a": "one.bin"}, ["'one.bin'", "of the kind"]),
        ({"a": "../secret.safetensors"}, ["'../secret.safetensors'", "plain name"]),
        ({"a": "sub/../../secret.safetensors"}, ["secret.safetensors'", "plain name"]),
        ({"a": "/etc/secret.safetensors"}, ["'/etc/secret.safetensors'", "plain name"]),
        ({"a": "C:\\secret.safetensors"}, ["plain name"]),
        ({"a": "C:secret.safetensors"}, ["plain name"]),
        ({"a": "..\\secret.safetensors"}, ["plain name"]),
        ({"a": "a\0.safetensors"}, ["plain name"]),
        ({"a": ""}, ["plain name"]),
        ({"a": "."}, ["plain name"]),
        ({"a": "x" * 5000 + ".safetensors"}, [INDEX]),
        ({"a": 3}, [INDEX, "expected a weight_map"]),
        ({"a": ["one.safetensors"]}, [INDEX, "expected a weight_map"]),
    ],
)
def test_an_index_that_is_wrong(placed: Any, says: list[str], tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": STATE["a"]}, tmp_path / "secret.safetensors")
    refused(shards(tmp_path / "model", placed), *says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "expected a weight_map"),
        ("{}", "expected a weight_map"),
        ('{"weight_map": {}}', "expected a weight_map"),
        ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "'a' is there twice"),
        ('{"weight_map": ', "not valid JSON"),
    ],
)
def test_an_index_that_is_no_index(text: str, says: str, tmp_path: Path) -> None:
    folder = shards(tmp_path)
    (folder / INDEX).write_text(text)
    refused(folder, INDEX, says)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    safetensors.torch.save_file({name: STATE[name] for name in "abd"}, folder / "two.safetensors")
    refused(folder, "two.safetensors", "tensor 'a'", "has it in 'one.safetensors'")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    os.replace(folder / "two.safetensors", tmp_path / "two.safetensors")
    (folder / "two.safetensors").symlink_to("../two.safetensors")
    refused(folder, INDEX, "'two.safetensors'", "a link to")
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").symlink_to("two.safetensors")
    refused(folder, INDEX, "'two.safetensors'")
    (folder / "two.safetensors").unlink()
    (folder / "sub").symlink_to("..")
    (folder / INDEX).write_text((folder / INDEX).read_text().replace("two.", "sub/two."))
    refused(folder, INDEX, "'sub/two.safetensors'", "a link to")


def test_links_within_the_folder_and_into_the_hugging_face_cache(tmp_path: Path) -> None:
    folder = shards(tmp_path / "here")
    os.replace(folder / "two.safetensors", folder / "stored")
    (folder / "two.safetensors").symlink_to("stored")
    check_whole(folder)

    cache = tmp_path / "models--someone--model"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    folder = shards(cache / "snapshots" / "0123")
    for number, path in enumerate(sorted(folder.iterdir())):
        os.replace(path, cache / "blobs" / f"{number}")
        path.symlink_to(f"../../blobs/{number}")
    check_whole(folder)
    (cache / "elsewhere").write_bytes((cache / "blobs" / "1").read_bytes())
    (folder / "one.safetensors").unlink()
    (folder / "one.safetensors").symlink_to("../../elsewhere")
    refused(folder, "'one.safetensors'", "a link to")
