"""Safetensors files written byte by byte, so that they can be wrong in any way."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """``header`` as JSON, or as it is where it is bytes; ``length`` is what the file says its header's length is."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
