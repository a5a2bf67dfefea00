"""Checkpoints: everything a run needs to go on, in one file that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.files import replacing

FILE = "checkpoint.pt"


def fingerprint(settings: dict[str, Any]) -> str:
    """A short hash of a run's settings, which are JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder``: beside the earlier checkpoint first, then in its place."""
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own error hides the file's, as that the disk is full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state in ``folder``, or ``None`` when there is none.

    Raises `InputError` when the file is damaged, or belongs to a run with other settings.
    """
    path = folder / FILE
    for left in folder.glob(f".{FILE}.*.part"):  # of a run that was killed while it wrote
        left.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or "it ends early"
        raise InputError(f"{path}: damaged checkpoint ({reason}); remove it to start again") from error
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise InputError(f"{path}: not a checkpoint of a run; choose another folder")
    before = state["settings"]
    if before != settings:
        differ = [
            f"{key} {before.get(key)!r} -> {settings.get(key)!r}" for key in settings if before.get(key) != settings[key]
        ]
        raise InputError(f"{path}: belongs to a run with other settings ({', '.join(differ)}); choose another folder")
    return state


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of torch's random generators that a run draws from, the CPU's first."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    # Cloned: torch reads a view, such as one process's row, from where its storage starts, or crashes.
    torch.set_rng_state(states[0].clone())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].clone(), device)


def whole(state: Any) -> Any:
    """``state`` with tensors that are in pieces on several processes put together; every process takes part."""
    if isinstance(state, Tensor):
        return state.full_tensor() if hasattr(state, "full_tensor") else state
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def in_pieces(state: Tensor, like: Any) -> Tensor:
    """The whole tensor ``state`` as ``like`` is: in pieces on several processes where that is."""
    if not hasattr(like, "device_mesh") or state.shape != like.shape:
        return state
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(state.to(like.device), like.device_mesh, like.placements)


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """The random state after the block is the one before it."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
