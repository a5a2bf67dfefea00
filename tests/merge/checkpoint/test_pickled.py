"""Files of torch.save: the same numbers as torch, mapped and not loaded, and nothing in them is ever run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.merge.checkpoint import open_checkpoint


def refused(path: Path, says: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert message.startswith(str(path)) and says in message and "\n" not in message and len(message) < 1000, message


def states() -> dict[str, torch.Tensor]:
    """Tied weights, and views of one storage with every kind of strides."""
    table = torch.arange(120, dtype=torch.float32)
    return {
        "whole": table,
        "tied": table,
        "row": table[13:29],
        "turned": table.view(10, 12).T,
        "permuted": table.view(2, 3, 4, 5).permute(3, 0, 2, 1),
        "one of many": table.view(1, 1, 10, 12).transpose(2, 3),
        "every other": table[::2],
        "spread": table[5].expand(3, 4),
        "scalar": table[7],
        "empty": table[:0].view(0, 4),
        "half": torch.randn(3, 4).half(),
        "bf16": torch.randn(3, 4).bfloat16(),
        "steps": torch.tensor(12),
        "mask": torch.tensor([True, False]),
        "unsigned": torch.tensor([1, 2], dtype=torch.uint16),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@given(data=st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, zipped: bool, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / f"round-{zipped}.bin"
    state = states()
    if not zipped:
        del state["unsigned"], state["fp8"]  # younger than the format
    if not path.exists():
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    state = torch.load(path, weights_only=True)
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.entries) == sorted(state)
    name = data.draw(st.sampled_from(sorted(state)))
    value = state[name].detach()
    entry = checkpoint.entries[name]
    assert (entry.dtype, entry.shape) == (value.dtype, tuple(value.shape))
    start = data.draw(st.integers(0, value.numel()))
    stop = data.draw(st.integers(start, value.numel()))
    piece = checkpoint.read(name, start, stop)
    assert not piece.requires_grad and piece.dtype == value.dtype
    assert piece.tolist() == value.flatten()[start:stop].tolist()
    checkpoint.release(name)
    assert checkpoint.read(name).tolist() == value.flatten().tolist()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of its memory")
def test_a_zipped_file_is_mapped(tmp_path: Path) -> None:
    def anonymous() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1])

    torch.save({"w": torch.ones(10_000_000)}, tmp_path / "large.pt")
    before = anonymous()
    checkpoint = open_checkpoint(tmp_path / "large.pt")
    assert checkpoint.read("w").sum() == 10_000_000
    assert anonymous() - before < 5_000, "40 MB were read"


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_script_keeps_the_state_dict_under_a_name(key: str, tmp_path: Path) -> None:
    state = OrderedDict(w=torch.arange(3.0))
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1, "seen": [1, None]}}, tmp_path / "run.pth")
    checkpoint = open_checkpoint(tmp_path / "run.pth")
    assert list(checkpoint.entries) == ["w"] and checkpoint.read("w", 1).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({"w": torch.zeros(2), "epoch": 3}, "tensor 'epoch': a int"),
        ({"state_dict": {"w": "gone"}}, "tensor 'w': a str"),
        ({"state_dict": {}, "model": {}}, "holds both 'state_dict' and 'model'"),
        ({3: torch.zeros(2)}, "key 3"),
        ({"w": torch.eye(3).to_sparse()}, "tensor 'w': Tensor torch.sparse_coo"),
        ({"w": torch.empty(3, device="meta")}, "on meta"),
    ],
)
def test_what_is_no_state_dict(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", says)


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_tensor(tmp_path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", "tensor 'w': Tensor torch.strided torch.qint8")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_malicious_pickle_is_refused_and_not_run(zipped: bool | None, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bad.bin"
    content = {"w": torch.zeros(2), "x": Malicious(mark)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, "mkdir'" if zipped is not None else "")
    assert not mark.exists()
    if zipped is not None:
        torch.load(path, weights_only=False)
        assert mark.exists(), "it would have run"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"w": torch.arange(100.0)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in [0, 1, 4, 100, *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path, "")


def test_a_compressed_archive_cannot_be_mapped(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "bad.pt", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    refused(tmp_path / "bad.pt", "is compressed")


@pytest.mark.parametrize(("before", "after"), [(b"K\nt", b"K\x7ft"), (b"K\nt", b"K\x09t"), (b"K\n\x85", b"K\x7f\x85")])
def test_storages_and_tensors_of_a_size_that_the_archive_has_not(before: bytes, after: bytes, tmp_path: Path) -> None:
    """The pickle says 127 or 9 elements where the archive has 10; a tensor of 127 elements in a storage of 10."""
    torch.save({"w": torch.arange(10.0), "x": torch.zeros(2)}, tmp_path / "good.pt")
    content = (tmp_path / "good.pt").read_bytes()
    assert content.count(before) == 1
    (tmp_path / "bad.pt").write_bytes(content.replace(before, after))
    refused(tmp_path / "bad.pt", "")


def test_torchscript(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "TorchScript")


def test_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "bad.bin", "cannot be read as a file of torch.save")
    (tmp_path / "zip.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    refused(tmp_path / "zip.bin", "truncated or damaged")
