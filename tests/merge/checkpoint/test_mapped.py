"""Safetensors files: the same numbers as the safetensors library, without memory of their own."""

import gc
import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.checkpoint.raw import tensor, write

from polytask.errors import InputError
from polytask.merge.checkpoint import Entry, open_checkpoint
from polytask.merge.checkpoint.header import DTYPES
from polytask.merge.checkpoint.mapped import Maps, SafetensorsFile


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits at all, NaN among them; 0 and 1 for bool."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.randint(2, (n,), generator=generator).bool().view(shape)
    raw = torch.randint(256, (n * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bool((one.view(torch.uint8) == other.view(torch.uint8)).all())
    )


def resident(path: Path, kind: str = "Rss") -> int:
    """Kilobytes of the maps of a file that are in memory, from the system."""
    found, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and not line.split(" ")[0].endswith(":"):
            counted = line.endswith(str(path))
        elif counted and line.startswith(f"{kind}:"):
            found += int(line.split()[1])
    return found


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.tuples(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(sorted(DTYPES))),
        min_size=1,
        max_size=5,
    ),
    st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[list[int], str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    state = {name: numbers(tuple(shape), DTYPES[dtype], seed) for seed, (name, (shape, dtype)) in enumerate(kinds.items())}
    safetensors.torch.save_file(state, path, {"format": "pt", "note": "ü"})
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.entries) == sorted(state) and checkpoint.files == (path,)
        assert checkpoint.metadata == {"format": "pt", "note": "ü"}
        handed = 0
        for name, value in state.items():
            assert checkpoint.entries[name] == Entry(name, value.dtype, tuple(value.shape))
            assert checkpoint.entries[name].nbytes == value.nbytes
            assert checkpoint.entries[name].is_float == value.is_floating_point()
            start = data.draw(st.integers(0, value.numel()))
            stop = data.draw(st.integers(start, value.numel()))
            assert same_bits(checkpoint.read(name, start, stop), value.flatten()[start:stop])
            assert same_bits(checkpoint.read(name), value.flatten())
            handed += value.nbytes + (stop - start) * value.dtype.itemsize
        assert checkpoint.bytes_read == handed


@given(st.sampled_from(sorted(DTYPES)), st.integers(0, 9), st.integers(0, 20), st.data())
def test_data_that_is_not_aligned(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shift: int, n: int, data: st.DataObject
) -> None:
    value = numbers((n,), DTYPES[dtype])
    header = {"a": tensor("U8", [shift], 0, shift), "w": tensor(dtype, [n], shift, shift + value.nbytes)}
    path = tmp_path_factory.getbasetemp() / "shifted.safetensors"
    write(path, header, bytes(shift) + bytes(value.view(torch.uint8).tolist()))
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert same_bits(open_checkpoint(path).read("w", start, stop), value[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 7), (4, 3), (7, 7), (-2, None), (7, None)])
def test_a_range_outside_the_tensor(start: int, stop: int | None, tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors: w: elements .* expected a range within 0 to 6"):
        open_checkpoint(tmp_path / "a.safetensors").read("w", start, stop)


def test_an_unknown_name(tmp_path: Path) -> None:
    safetensors.torch.save_file({"layer.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    for act in (checkpoint.read, checkpoint.release):
        with pytest.raises(InputError, match=r"no tensor 'layer.wieght', did you mean 'layer.weight'\?"):
            act("layer.wieght")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of its memory")
def test_reading_costs_no_memory_and_release_gives_the_pages_back(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    value = torch.arange(4_000_000, dtype=torch.float32)
    safetensors.torch.save_file({"w": value, "x": torch.ones(10)}, path)
    checkpoint = open_checkpoint(path)
    piece = checkpoint.read("w")
    assert piece.sum() == value.sum()
    assert resident(path) > 15_000 and resident(path, "Anonymous") == 0
    checkpoint.release("w")
    assert resident(path) < 1000
    assert torch.equal(piece, value), "a hint only"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of its memory")
def test_closing_lets_go_of_the_map_once_no_tensor_lies_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.arange(100_000.0)}, path)
    with open_checkpoint(path) as checkpoint:
        piece = checkpoint.read("w", 50_000)
    with pytest.raises(InputError, match="closed"):
        checkpoint.read("w")
    assert torch.equal(piece, torch.arange(50_000.0, 100_000.0)), "a tensor keeps its map"
    del piece
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_file_replaced_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(10)}, path)
    checkpoint = open_checkpoint(path)
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    os.replace(tmp_path / "b.safetensors", path)
    with pytest.raises(InputError, match="has changed since its header was read"):
        checkpoint.read("w")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.read("w")


def test_few_maps_serve_many_files(tmp_path: Path) -> None:
    maps = Maps(kept=2)
    files = []
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        safetensors.torch.save_file({"w": torch.full((3,), float(number))}, path)
        files.append(SafetensorsFile(path, maps))
    pieces = [file.read("w", 0, 3) for file in files]
    again = [file.read("w", 0, 3) for file in reversed(files)]
    assert [piece.tolist() for piece in pieces] == [[number] * 3 for number in range(5)]
    assert [piece.tolist() for piece in reversed(again)] == [[number] * 3 for number in range(5)]
    del pieces, again
    gc.collect()
    mapped = Path("/proc/self/maps").read_text()
    assert sum(str(file.path) in mapped for file in files) == 2


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    value = torch.arange(50_000, dtype=torch.int32)
    safetensors.torch.save_file({"w": value}, tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    wrong = []

    def work(seed: int) -> None:
        for start in range(seed, 50_000, 500):
            if not torch.equal(checkpoint.read("w", start, start + 1), value[start : start + 1]):
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and checkpoint.bytes_read == 8 * 100 * 4
