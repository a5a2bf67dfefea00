"""From a path to a checkpoint: which files hold its tensors, and that they hold those which they should."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint._checkpoint import Checkpoint, File
from polytask.merge.checkpoint.header import LIMIT, open_regular, parse
from polytask.merge.checkpoint.mapped import Maps, SafetensorsFile
from polytask.merge.checkpoint.pickled import TorchFile

TORCH = (".bin", ".pt", ".pth")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint: its headers are read and checked now, its tensors a piece at a time as they are asked for.

    Args:
        path: one of

            - a ``.safetensors`` file;
            - a ``.bin``, ``.pt`` or ``.pth`` file of ``torch.save`` with a state dict, also under ``state_dict`` or
              ``model`` (read with ``weights_only=True``; files from before torch 1.6 are loaded whole);
            - the ``.index.json`` file of either kind, its shards beside it;
            - a folder, such as a `transformers` model's, with ``model.safetensors`` (or another ``.safetensors`` file, if it
              is the only one) or a ``.safetensors.index.json``, or else ``pytorch_model.bin`` or a ``.bin.index.json``.

    Safetensors come before files of ``torch.save``; a folder with several candidates of one kind is an error that names
    them. A PEFT adapter needs its base: `open_adapter`.

    Raises `InputError` in one line that names file and tensor for whatever is missing, truncated, damaged or hostile:
    a header that cannot be, an index that leads out of its folder (links into the blobs of a Hugging Face cache are
    followed), an index and shards that disagree, a pickle with anything else than tensors.
    """
    path = Path(path)
    chosen = _choose(path) if path.is_dir() else path
    maps = Maps()
    if chosen.name.endswith(".index.json"):
        return _join(path, _shards(chosen, maps))
    return _join(path, [_open_file(chosen, maps)])


def _open_file(path: Path, maps: Maps) -> File:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path, maps)
    if path.suffix in TORCH:
        return TorchFile(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected a checkpoint")
    raise InputError(f"{path}: expected a folder or a file that ends in .safetensors, {', '.join(TORCH)} or .index.json")


def _choose(folder: Path) -> Path:
    """The file, or the index, that a folder's tensors are to be read from."""
    if is_adapter(folder):
        raise InputError(f"{folder}: an adapter, which needs its base: expected a model, or open_adapter(path, base)")
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    tensors = [name for name in names if name.endswith(".safetensors")]
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    single = ["model.safetensors"] if "model.safetensors" in names else tensors * (not indices)
    found = indices + single
    if not found:
        found = [name for name in names if name.endswith(".bin.index.json") or name == "pytorch_model.bin"]
    if len(found) != 1:
        there = f"several checkpoints ({', '.join(found)})" if found else "no checkpoint"
        raise InputError(f"{folder}: {there}, expected one model.safetensors, pytorch_model.bin or index of shards")
    return folder / found[0]


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter's: settings and factors, but no whole model."""
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTERS)


def _shards(index: Path, maps: Maps) -> list[File]:
    """The shards of an index, which hold the tensors that it lists and no others."""
    placed = _weight_map(index)
    shards = {name: _open_file(_inside(index, name), maps) for name in sorted(set(placed.values()))}
    for file, shard in shards.items():
        for name in shard.entries:
            if placed.get(name, file) != file:
                raise InputError(f"{shard.path}: tensor {quoted(name)}: {index.name} has it in {quoted(placed[name])}")
            if name not in placed:
                raise InputError(f"{shard.path}: tensor {quoted(name)} is not in {index.name}, expected all tensors listed")
    for name, file in placed.items():
        if name not in shards[file].entries:
            raise InputError(f"{shards[file].path}: no tensor {quoted(name)}, which {index.name} says it has")
    return list(shards.values())


def _weight_map(index: Path) -> dict[str, str]:
    with open_regular(index) as file:
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise InputError(f"{index}: more than {LIMIT} bytes, expected an index of shards")
    parsed = parse(content, str(index))
    placed = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise InputError(f"{index}: expected a weight_map from each tensor's name to its file")
    return placed


def _inside(index: Path, name: str) -> Path:
    """The path of a shard, which must lie in the folder of its index, also after all links are followed."""
    where = f"{index}: shard {quoted(name)}"
    pure = PurePosixPath(name)
    if not pure.name or pure.is_absolute() or ".." in pure.parts or PureWindowsPath(name).anchor or set(name) & set("\\\0"):
        raise InputError(f"{where}: expected the plain name of a file beside the index")
    if (pure.suffix == ".safetensors") != index.name.endswith(".safetensors.index.json"):
        raise InputError(f"{where}: expected a file of the kind that the index is for")
    path = index.parent / name
    folder = index.parent.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":  # the Hugging Face cache: a snapshot is links to ../../blobs
        roots.append(folder.parent.parent / "blobs")
    try:
        target, there = path.resolve(), path.exists()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be followed to a file") from error
    if not any(target.is_relative_to(root) for root in roots):
        raise InputError(f"{where}: a link to {target}, expected a file in {folder}")
    if not there:
        raise InputError(f"{where}: no such file in {folder}")
    return path


def _join(path: Path, files: Iterable[File]) -> Checkpoint:
    files = list(files)
    entries = {name: entry for file in files for name, entry in file.entries.items()}
    metadata = {key: value for file in reversed(files) for key, value in file.metadata.items()}
    sources = {name: file for file in files for name in file.entries}
    return Checkpoint(path, [file.path for file in files], entries, metadata, sources)
