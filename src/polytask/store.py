"""Models on disk: a folder of safetensors and JSON, whole or absent, that any other process can load."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from polytask import __version__
from polytask.data.examples import DataSet, Inputs
from polytask.errors import InputError
from polytask.files import read_json, replacing_folder, sha256, write_json
from polytask.method import way_of_sharing
from polytask.model import Model
from polytask.nn.conv import ConvEncoder
from polytask.nn.graph import GraphEncoder
from polytask.nn.tabular import TabularEncoder
from polytask.register import Register
from polytask.shrink import Shrunk, resize
from polytask.task import Task
from polytask.training.history import finite

if TYPE_CHECKING:
    from polytask.data.graph import GraphSchema
    from polytask.data.table import Schema

FORMAT = 1
"""The version of the folder's layout. A reader takes this one and all before it."""

ABOUT, WEIGHTS, SCHEMA, SCHEMA_TENSORS = "model.json", "model.safetensors", "schema.json", "schema.safetensors"

EVENTS = "events"
"""The part of ``model.json`` that says what a model of events is, in the place of encoder and sharing."""

encoders: Register[Callable[..., nn.Module]] = Register("encoder")
"""Encoders that `load` builds again by name, from what their method ``settings()`` returned. Add your own class with
``@polytask.store.encoders.add("name")``, or pass a built one to `load`."""

encoders.add("conv")(ConvEncoder)
encoders.add("tabular")(TabularEncoder)
encoders.add("graph")(GraphEncoder.like)


@dataclass(frozen=True)
class Saved:
    """A model that was read from disk.

    Attributes:
        path: its folder.
        model: the model, in evaluation mode, on the CPU.
        schema: for a model of a table: the fitted preprocessing that turns rows into inputs; for a model of a graph: the
            names of its nodes, by which rows ask about them; otherwise ``None``.
        about: everything that ``model.json`` says, as docs/models.md lists it: tasks, recipe, data, versions, hashes.
    """

    path: Path
    model: Model
    schema: Schema | GraphSchema | None
    about: Mapping[str, Any]


def save(
    model: Model,
    path: Path | str,
    *,
    dataset: DataSet | None = None,
    recipe: Mapping[str, Any] | None = None,
    beside: Sequence[Path] = (),
    like: Saved | None = None,
) -> None:
    """Write ``model`` to the folder ``path``: beside it first, then in its place.

    Args:
        model: the model. Its encoder is built again on loading when its class is in `encoders`.
        path: a new or empty folder, or an earlier model, which is replaced.
        dataset: what it was trained on: brings the table's schema, the provenance, and the inputs' shapes.
        recipe: how it was trained, JSON values that are kept as they are (method, settings, seed, metrics, ...).
        beside: files and folders to keep in the model's folder too, such as the run's history.
        like: without ``dataset``: a model that was read, such as the one that this was made of, whose schema and provenance
            are this one's too.

    Raises:
        InputError: the folder cannot be written or holds other files, or the disk is full. Nothing is left behind then.
    """
    path = Path(path)
    schema = dataset.schema if dataset is not None else like.schema if like is not None else None
    before = like.about if like is not None else {}
    with replacing_folder(path) as folder:
        tensors = {WEIGHTS: model, **({SCHEMA_TENSORS: schema.tensors()} if schema is not None else {})}
        for name, content in tensors.items():
            write_tensors(folder / name, content, path)
        if schema is not None:
            write_json(folder / SCHEMA, schema.to_json())
        about = {
            **stamp(),
            "tasks": [task.to_dict() for task in model.tasks.values()],
            "encoder": _describe_encoder(model.encoder),
            "width": model.width,
            "sharing": {"name": model.sharing.name, **model.sharing.settings()},
            "parameters": {
                "shared": _count(model.shared_parameters()),
                "tasks": {name: _count(model.parameters_of(name)) for name in model.tasks},
            },
            "shrunk": {
                name: asdict(module.shrunk)
                for name, module in model.named_modules()
                if isinstance(getattr(module, "shrunk", None), Shrunk)
            },
            "inputs": _describe_inputs(dataset.train.inputs) if dataset is not None else before.get("inputs"),
            "data": {"name": dataset.name, **dataset.provenance} if dataset is not None else before.get("data"),
            "recipe": dict(recipe or {}),
            "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        }
        write_json(folder / ABOUT, finite(about))
        keep(beside, folder)


def load(path: Path | str, encoder: nn.Module | None = None) -> Saved:
    """The model in the folder ``path``, as it was when it was saved.

    Args:
        path: a folder that `save` wrote.
        encoder: a module of the saved encoder's architecture, for an encoder whose class is not in `encoders`; it takes
            the saved weights.

    Raises:
        InputError: there is no model, it is of a newer format, a file is missing, truncated or altered, or the encoder
            cannot be built or does not fit.
    """
    path = Path(path)
    about = read_about(path)
    if EVENTS in about:
        raise InputError(f"{path}: is a model of events, which evaluate, predict and explain take (polytask.events.load)")
    check_files(path, about)
    tensors = _read_tensors(path / WEIGHTS)
    try:
        tasks = [Task.from_dict(values) for values in about["tasks"]]
        sharing = dict(about["sharing"])
        with torch.random.fork_rng(devices=[]):  # new weights are drawn only to be replaced
            encoder = encoder if encoder is not None else _build_encoder(path, about["encoder"])
            model = Model(encoder, tasks, way_of_sharing(sharing.pop("name"))(**sharing), about["width"])
        for name, shrunk in about.get("shrunk", {}).items():
            resize(model.get_submodule(name), Shrunk(**shrunk))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path / ABOUT}: does not describe a model ({error!r})") from error
    for name, value in model.state_dict(keep_vars=True).items():
        if name in tensors:
            value.data = value.data.to(tensors[name].dtype)
    try:
        safetensors.load_model(model, path / WEIGHTS)
    except RuntimeError as error:
        reason = shorten(str(error), 300, placeholder=" ...")
        raise InputError(f"{path / WEIGHTS}: does not fit the encoder {about['encoder']['class']} ({reason})") from error
    schema = None
    if SCHEMA in about["files"]:
        schema = _read_schema(path)
    return Saved(path, model.eval(), schema, about)


def read_about(path: Path | str) -> dict[str, Any]:
    """What ``model.json`` in the folder ``path`` says, its format checked; raises as `load` does."""
    path = Path(path)
    if not (path / ABOUT).is_file():
        raise InputError(f"{path}: is no saved model, expected a folder with {ABOUT}")
    about: dict[str, Any] = read_json(path / ABOUT)
    number = about.get("format") if isinstance(about, dict) else None
    if not isinstance(number, int):
        raise InputError(f"{path / ABOUT}: has no format number, expected a file that polytask wrote")
    if number > FORMAT:
        raise InputError(
            f"{path / ABOUT}: format {number}, written by polytask {about.get('polytask')}; "
            f"polytask {__version__} reads formats up to {FORMAT}: upgrade polytask"
        )
    parts = (EVENTS,) if EVENTS in about else ("encoder", "width", "sharing")
    missing = [key for key in ("tasks", *parts, "parameters", "recipe", "files") if key not in about]
    if missing:
        raise InputError(f"{path / ABOUT}: does not describe a model (no {', '.join(missing)})")
    return about


def check_files(path: Path, about: Mapping[str, Any]) -> None:
    """Raise `InputError` where a file of the model in ``path`` is missing, or is not what ``about`` says."""
    for name, expected in about["files"].items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: is missing, {ABOUT} lists it")
        if sha256(file) != expected:
            raise InputError(f"{file}: damaged or altered: its SHA-256 differs from the one in {ABOUT}, {expected}")


def stamp() -> dict[str, Any]:
    """By what, when and where a model's folder is written."""
    return {
        "format": FORMAT,
        "polytask": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform()},
    }


def keep(beside: Iterable[Path], folder: Path) -> None:
    """Copy files and folders into a model's folder."""
    for kept in beside:
        if kept.is_dir():
            shutil.copytree(kept, folder / kept.name)
        else:
            shutil.copy2(kept, folder)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _read_schema(path: Path) -> Schema | GraphSchema:
    from polytask.data.graph import GraphSchema
    from polytask.data.table import Schema

    values = read_json(path / SCHEMA)
    if values.get("kind") == "graph":
        return GraphSchema.from_json(values)
    return Schema.from_json(values, _read_tensors(path / SCHEMA_TENSORS))


def _describe_encoder(encoder: nn.Module) -> dict[str, Any]:
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    for name, known in encoders.items():
        if type(encoder) in (known, getattr(known, "__self__", None)):  # a class, or a class method that makes one
            return {"name": name, "class": kind, "settings": encoder.settings()}  # type: ignore[operator]
    return {"name": None, "class": kind, "settings": {}}


def _build_encoder(path: Path, values: Mapping[str, Any]) -> nn.Module:
    if values["name"] is None:
        raise InputError(f"{path}: its encoder is a {values['class']}: build one and pass it as encoder=")
    return encoders[values["name"]](**values["settings"])


def _describe_inputs(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """For each input tensor (``""`` when there is one without a name) its type, an example's shape, its values' range."""
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    return {name: _describe_tensor(tensor) for name, tensor in named.items()}


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    # Codes have a range for each position: only what is below every position's largest is safe for all.
    high = tensor.max() if tensor.is_floating_point() else tensor.amax(0).min()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape[1:]),
        "low": tensor.min().item(),
        "high": high.item(),
    }


def write_tensors(file: Path, content: Model | Mapping[str, Tensor], path: Path) -> None:
    """Write the state of a model, or tensors, to a file of the model ``path``; `InputError` where that fails."""
    try:
        if isinstance(content, Model):
            safetensors.save_model(content, str(file))
        else:
            safetensors.save_file(dict(content), file)
        file.chmod(
            file.parent.stat().st_mode & 0o666
        )  # safetensors keeps a file to its owner; a model is for whoever reads it
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged, not a whole safetensors file ({error})") from error
    return tensors
