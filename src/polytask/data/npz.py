"""Arrays in npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError


def integers(array: NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers as int64; what does not fit is its largest number, which is too large for anything's place."""
    return (np.minimum(array, np.uint64(2**63 - 1)) if array.dtype == np.uint64 else array).astype(np.int64)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file, by name; nothing is unpickled. `InputError` for a file that is no whole one of these."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = f"damaged, or not an npz file of plain arrays: {error}"
        raise InputError(f"{path}: cannot be read as an npz file ({reason})") from error
