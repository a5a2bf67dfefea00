"""Models of events on disk: weights and memory in one folder, as `polytask.store` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from polytask.data.temporal import EventSchema
from polytask.errors import InputError
from polytask.events.model import EventModel
from polytask.events.settings import EventSettings, event_models
from polytask.files import read_json, replacing_folder, sha256, write_json
from polytask.store import ABOUT, EVENTS, SCHEMA, WEIGHTS, check_files, keep, read_about, stamp, write_tensors
from polytask.training.history import finite

LINKS = "links"
"""The one task: which events come."""


@dataclass(frozen=True)
class SavedEvents:
    """A model of events that was read from disk.

    Attributes:
        path: its folder.
        model: the model, in evaluation mode, on the CPU; its memory is as it was saved.
        settings: what built it.
        schema: the ids of its nodes, and the columns of its events.
        about: what ``model.json`` says.
    """

    path: Path
    model: EventModel
    settings: EventSettings
    schema: EventSchema
    about: Mapping[str, Any]


def save(
    model: EventModel,
    settings: EventSettings,
    schema: EventSchema,
    path: Path | str,
    *,
    data: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    beside: Sequence[Path] = (),
) -> None:
    """Write ``model`` with its memory to the folder ``path``: beside it first, then in its place.

    Args:
        model: the model.
        settings: what built it; their class is in `event_models`.
        schema: the ids of its nodes.
        path: a new or empty folder, or an earlier model, which is replaced.
        data: what it was trained on, JSON values.
        recipe: how it was trained, JSON values.
        beside: files and folders to keep in the model's folder too.

    Raises:
        InputError: the folder cannot be written or holds other files, or the disk is full. Nothing is left behind then.
    """
    path = Path(path)
    count, time = model.seen
    with replacing_folder(path) as folder:
        write_tensors(folder / WEIGHTS, _tensors(model), path)
        write_json(folder / SCHEMA, schema.to_json())
        about = {
            **stamp(),
            "tasks": [{"name": LINKS, "kind": "events", "metric": "ap"}],
            EVENTS: {
                "name": next((name for name, known in event_models.items() if type(settings) is known), None),
                "class": f"{type(model).__module__}.{type(model).__qualname__}",
                "settings": asdict(settings),
                "seen": {"events": count, "until": time},
            },
            "parameters": {"shared": sum(p.numel() for p in model.parameters()), "tasks": {LINKS: 0}},
            "data": dict(data) if data is not None else None,
            "recipe": dict(recipe or {}),
            "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        }
        write_json(folder / ABOUT, finite(about))
        keep(beside, folder)


def save_again(saved: SavedEvents, path: Path | str) -> None:
    """Write a model that was read, with the memory that it has now, to ``path``, which may be its own folder."""
    beside = [file for file in saved.path.iterdir() if file.name not in (ABOUT, *saved.about["files"])]
    about = saved.about
    save(saved.model, saved.settings, saved.schema, path, data=about.get("data"), recipe=about["recipe"], beside=beside)


def load(path: Path | str) -> SavedEvents:
    """The model in the folder ``path``, with its memory.

    Raises:
        InputError: there is no model of events, a file is missing, truncated or altered, or its settings are of a class
            that nothing has enrolled in `event_models`: import the module that does.
    """
    path = Path(path)
    about = read_about(path)
    if EVENTS not in about:
        raise InputError(f"{path}: is no model of events, expected one that 'fit --events' saved")
    check_files(path, about)
    try:
        what = about[EVENTS]
        if what["name"] not in event_models:
            raise InputError(f"{path}: is a {what['class']}: import its module first, which enrols its settings")
        settings = event_models[what["name"]](**what["settings"])
        with torch.random.fork_rng(devices=[]):  # new weights are drawn only to be replaced
            model = settings.build()
        schema = EventSchema.from_json(read_json(path / SCHEMA))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path / ABOUT}: does not describe a model of events ({error!r})") from error
    try:
        safetensors.load_model(model, path / WEIGHTS)
    except (RuntimeError, SafetensorError) as error:
        reason = shorten(str(error), 300, placeholder=" ...")
        raise InputError(f"{path / WEIGHTS}: does not fit {what['class']} ({reason})") from error
    return SavedEvents(path, model.eval(), settings, schema, about)


def _tensors(model: EventModel) -> dict[str, Tensor]:
    """The model's state, what is shared under its first name: safetensors would choose one of its names by chance."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if first.setdefault(id(value), name) == name}
