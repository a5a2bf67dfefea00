"""Events from files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.npz import integers, read_npz
from polytask.data.temporal.events import LARGEST, Events
from polytask.errors import InputError, quoted


class _Columns(NamedTuple):
    source: Tensor
    destination: Tensor
    time: Tensor
    features: Tensor | None
    labels: Tensor | None


def load_events(
    path: Path | str, *, bipartite: bool = True, sort: bool = False, ties: bool = True, loops: bool = True
) -> Events:
    """The events at ``path``; rows are counted from 1, the header not counted:

    - ``.csv``, as JODIE's data sets have it (Kumar, Zhang and Leskovec, KDD 2019): a header, then
      ``user, item, timestamp, state label, feature, feature, ...``; label and features may be left out;
    - ``.npz``: ``src``, ``dst`` and ``ts``, each ``(E,)``, and, if there are any, ``features`` ``(E, F)`` and ``labels``
      ``(E,)``. Nothing is unpickled.

    Events of the same time are kept, as are events that repeat in all: they happen in the order of the file.

    Args:
        bipartite: users and items of a ``.csv`` are numbered each from 0; items are then numbered after the users here.
        sort: put the events in order of time, those of the same time as they stand; otherwise a time that falls is refused.
        ties: allow two events at the same time.
        loops: allow events from a node to itself.

    Raises:
        InputError: naming file and row: a stream that goes back in time, a number of a node that is negative or 2^31 or
            larger, what is no number, a loop or a tie where they are forbidden, a row with more or fewer fields than the
            first; or naming the file: damaged, of unknown type, or without events.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected events in .csv or .npz")
    if path.suffix == ".npz":
        columns = _read_npz(path)
    elif path.suffix == ".csv":
        columns = _read_jodie(path, bipartite)
    else:
        raise InputError(f"{path}: unknown type of file, expected events in .csv or .npz")
    count = len(columns.time)
    if count == 0:
        raise InputError(f"{path}: no events, expected at least one")
    rows = torch.arange(1, count + 1)
    if sort and columns.time.isfinite().all():
        order = columns.time.sort(stable=True).indices
        columns, rows = _Columns(*(None if c is None else c[order] for c in columns)), order + 1  # type: ignore[arg-type]
    elif not sort:
        _check_order(path, columns.time)
    events = Events(str(path), *columns, rows=rows)
    same = torch.zeros(count, dtype=torch.bool)
    same[1:] = events.time[1:] == events.time[:-1]
    loop = events.source == events.destination
    if not loops and bool(loop.any()):
        place = int(loop.nonzero()[0])
        raise InputError(
            f"{path}: row {int(rows[place])}: an event from {int(events.source[place])} to itself, expected none "
            "(allow them: loops=True)"
        )
    if not ties and bool(same.any()):
        place = int(same.nonzero()[0])
        raise InputError(
            f"{path}: row {int(rows[place])}: time {events.time[place].item()}, as in row {int(rows[place - 1])}, expected "
            "distinct times (allow them: ties=True)"
        )
    return events


def _check_order(path: Path, time: Tensor) -> None:
    back = time[1:] < time[:-1]
    if bool(back.any()):
        place = int(back.nonzero()[0]) + 1
        raise InputError(
            f"{path}: row {place + 1}: time {time[place].item()} after {time[place - 1].item()}, expected times that never "
            "fall (put them in order: sort=True)"
        )


def _read_npz(path: Path) -> _Columns:
    arrays = read_npz(path)
    for name in ("src", "dst", "ts"):
        if name not in arrays or arrays[name].ndim != 1 or arrays[name].dtype.kind not in ("iuf" if name == "ts" else "iu"):
            found = f"{arrays[name].shape} {arrays[name].dtype}" if name in arrays else "no such array"
            kind = "numbers" if name == "ts" else "integers"
            raise InputError(f"{path}: array {name!r}: {found}, expected {kind} of shape (E,)")
    for name, dimensions in (("features", 2), ("labels", 1)):
        if name in arrays and (arrays[name].ndim != dimensions or arrays[name].dtype.kind not in "iufb"):
            shape = "(E, F)" if dimensions == 2 else "(E,)"
            found = f"{arrays[name].shape} {arrays[name].dtype}"
            raise InputError(f"{path}: array {name!r}: {found}, expected numbers of shape {shape}")
    given = {name: torch.from_numpy(arrays[name]).float() for name in ("features", "labels") if name in arrays}
    source, destination = (torch.from_numpy(integers(arrays[name])) for name in ("src", "dst"))
    time = torch.from_numpy(arrays["ts"].astype(np.float64))
    return _Columns(source, destination, time, given.get("features"), given.get("labels"))


def _read_jodie(path: Path, bipartite: bool) -> _Columns:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        header = not first.split(",")[0].strip().isdigit()
        frame = pl.read_csv(path, has_header=False, skip_rows=int(header), infer_schema=False)
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: no events, expected at least one") from None
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: {_uneven(path) or 'damaged, or no text of comma-separated numbers'}") from error
    if frame.width < 3:
        raise InputError(f"{path}: row 1: {frame.width} fields, expected at least user, item and timestamp")
    user, item = (_numbers(frame, place, what, pl.Int64, path) for place, what in enumerate(("user", "item")))
    time = _numbers(frame, 2, "timestamp", pl.Float64, path)
    labels = _numbers(frame, 3, "state label", pl.Float32, path) if frame.width > 3 else None
    each = [_numbers(frame, place, f"feature {place - 3}", pl.Float32, path) for place in range(4, frame.width)]
    if bipartite:
        wrong = (item < 0) | (item > LARGEST)
        item = torch.where(wrong, item, item + user.max() + 1)
    return _Columns(user, item, time, torch.stack(each, 1) if each else None, labels)


def _numbers(frame: pl.DataFrame, place: int, what: str, kind: type[pl.DataType], path: Path) -> Tensor:
    text = frame[:, place].str.strip_chars()
    numbers = text.cast(kind, strict=False)
    if numbers.null_count():
        row = int(numbers.is_null().arg_true()[0])
        expected = "an integer" if kind == pl.Int64 else "a number"
        found = "missing" if text[row] is None else quoted(text[row])
        raise InputError(f"{path}: row {row + 1}, {what}: {found}, expected {expected}")
    return torch.from_numpy(numbers.to_numpy().copy())


def _uneven(path: Path) -> str | None:
    """What to say of the first row that has more or fewer fields than row 1."""
    with path.open(encoding="utf-8", errors="replace") as file:
        fields = [line.count(",") + 1 for line in file][1:]
    for row, count in enumerate(fields, 1):
        if count != fields[0]:
            return f"row {row}: {count} fields, expected {fields[0]}, as row 1 has"
    return None
