"""The data sets that a user has copies of: tests on them are skipped where they are not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polytask.data import DataSet


def folder_with(files: Sequence[str]) -> Path:
    """The folder that POLYTASK_DATA names; the test is skipped where it lacks one of ``files``."""
    folder = os.environ.get("POLYTASK_DATA")
    missing = [name for name in files if not folder or not (Path(folder) / name).exists()]
    if missing or not folder:
        pytest.skip(f"{', '.join(missing)}: not in the folder that POLYTASK_DATA names")
    return Path(folder)


def with_few_frames(claim: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, for one epoch on 17 frames of each split in the module ``claim`` of a paper on road scenes."""
    folder, whole = folder_with(claim.FILES), claim.camvid

    def few(folder: Path, shrink: int) -> DataSet:
        data = whole(folder, shrink)
        every = {split: getattr(data, split).subset(torch.arange(0, 100, 6)) for split in ("train", "validation", "test")}
        return replace(data, **every)

    monkeypatch.setattr(claim, "camvid", few)
    monkeypatch.setattr(claim, "EPOCHS", 1)
    return folder
