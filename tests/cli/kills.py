"""Trains a small model again and again, killed at every second point where it touches a file.

``python kills.py FOLDER``: a child process is killed by SIGKILL at its first change of a file, the next at its third, and
so on, each followed by a run that is let go to its end. An earlier model is in its place at the start, and a whole one must
be there at every moment. What it finds goes to standard output as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import lightning_fabric.strategies
import torch
import torchmetrics.classification

import polytask as pt
from polytask.errors import InputError
from polytask.files import sha256
from polytask.fitting import Recipe, fit_and_save
from polytask.method import Method

CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
    "os.chmod",
}
"""The audit events of what changes a folder; opening for writing is one too."""


# What every child needs is loaded once, before they are born.
LOADED = (lightning_fabric.strategies, torchmetrics.classification)
DATA = pt.multidigits(("left", "ink"), size=64)


def train(folder: Path) -> None:
    recipe = Recipe(Method.parse("uncertainty"), settings={"steps": 2, "batch_size": 32})
    fit_and_save(DATA, folder / "model", recipe)


def in_child(folder: Path, kill_at: int | None = None) -> int:
    """Train in a child that is killed before its ``kill_at``-th change of a file; the child's exit status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in CHANGES) and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train(folder)
    os._exit(0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    (folder / "whole").mkdir(parents=True)
    assert in_child(folder / "whole") == 0
    expected = sha256(folder / "whole" / "model" / "model.safetensors")
    pt.save(Recipe(seed=1).build(DATA), folder / "earlier")
    kills, broken, differing, failed, left = 0, [], [], [], []
    for change in itertools.count(1, 2):
        here = folder / str(change)
        shutil.copytree(folder / "earlier", here / "model")
        status = in_child(here, change)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        try:
            pt.load(here / "model")
        except InputError as error:
            broken.append(str(error))
        if in_child(here) != 0:
            failed.append(change)
        elif sha256(here / "model" / "model.safetensors") != expected:
            differing.append(change)
        if (here / "model.run").exists():
            left.append(change)
        shutil.rmtree(here)
    print(json.dumps({"kills": kills, "broken": broken, "differing": differing, "failed": failed, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
