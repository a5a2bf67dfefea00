"""Tables from files: CSV and TSV (gzip too), Parquet, Arrow; whole for training, in chunks for prediction.

Rows are numbered from 1, the header not counted.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

import polars as pl

from polytask.data.table.kinds import MISSING_WORDS, misfits
from polytask.errors import InputError, suggest

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".arrow", ".feather")
"""What a table's file may end in."""

BLOCK = 8 << 20
"""Bytes of a text file that are read at a time."""

LONGEST = 64 << 20
"""Bytes of a row, beyond which a quote is taken to be left open."""

CHUNK_ROWS = 50_000
"""Rows of a Parquet or Arrow file that are read at a time."""


class Chunk(NamedTuple):
    """Some rows of a file: those that can be read, and what is wrong with those that cannot.

    Attributes:
        frame: the rows that can be read, all columns of the file.
        rows: their numbers, one for each row of ``frame``.
        bad: for the number of each row that cannot be read, the reason in one line.
    """

    frame: pl.DataFrame
    rows: pl.Series
    bad: dict[int, str]


class Reads(Protocol):
    """What rows of a table are for: a table's `Schema`, or a graph's."""

    def check_columns(self, columns: Sequence[str], name: str) -> None:
        """Raise `InputError` where a column is missing."""
        ...

    def misfits(self, frame: pl.DataFrame) -> Mapping[int, str]:
        """For the place of each row that cannot be used, why."""
        ...


def read_table(
    path: Path | str, *, text: Sequence[str] = (), separator: str | None = None, row_limit: int | None = None
) -> pl.DataFrame:
    """The whole table in a file.

    Args:
        path: ends in one of `SUFFIXES`.
        text: columns of a text file to be read as text, whatever their values look like.
        separator: between a text file's fields; by default a comma, or a tab for ``.tsv``.
        row_limit: read the first rows only.

    Raises:
        InputError: in one line, with the row and column where there is one: no such file, a folder, an empty, truncated or
            damaged file, another separator, repeated column names, a row with too few or too many fields, bytes that are
            not UTF-8, text in a column of numbers.
    """
    path = Path(path)
    kind = _format(path)
    try:
        if kind == "csv":
            return _read_csv(path, text, separator, row_limit)
        read = pl.read_parquet if kind == "parquet" else pl.read_ipc
        frame = read(path, n_rows=row_limit)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated, not a whole {kind} file ({_first_line(error)})") from error
    if frame.is_empty():
        raise InputError(f"{path}: has no rows, expected some")
    return frame


def read_rows(
    path: Path | str,
    schema: Reads,
    *,
    separator: str | None = None,
    names: Sequence[str] | None = None,
    header: bool = True,
) -> Iterator[Chunk]:
    """The rows of a file that ``schema`` can transform, chunk by chunk in constant memory; unreadable rows by number.

    A row is unreadable when it has the wrong number of fields, bytes that are not UTF-8, or a value that does not fit its
    column's kind. Each chunk's frame has the types that `Schema.transform` takes.

    Args:
        path, separator: as for `read_table`.
        schema: what the rows are for.
        names: of a text file's columns, where its header does not name them.
        header: whether a text file has one.

    Raises:
        InputError: the file itself cannot be read, or lacks a column of the schema.
    """
    path = Path(path)
    kind = _format(path)
    chunks = _csv_chunks(path, separator, names, header) if kind == "csv" else _frame_chunks(path, kind)
    yield from readable(chunks, schema, path)


def readable(chunks: Iterable[Chunk], schema: Reads, path: Path) -> Iterator[Chunk]:
    """Chunks of the file at ``path`` without the rows that ``schema`` cannot transform, which are among the bad ones."""
    for chunk in chunks:
        schema.check_columns(chunk.frame.columns, str(path))
        misfit = schema.misfits(chunk.frame)
        if not misfit:
            yield chunk
            continue
        fits = pl.Series([i not in misfit for i in range(len(chunk.frame))], dtype=pl.Boolean)
        bad = chunk.bad | {int(chunk.rows[i]): reason for i, reason in misfit.items()}
        yield Chunk(chunk.frame.filter(fits), chunk.rows.filter(fits), dict(sorted(bad.items())))


def first_fields(path: Path | str, separator: str | None = None) -> list[list[str]]:
    """The fields of a text file's first two lines, for who reads columns by their place; none of a file of another kind.

    Raises `InputError` where the file cannot be read.
    """
    path = Path(path)
    if _format(path) != "csv":
        return []
    try:
        with _open(path) as file:
            lines = [file.readline(LONGEST).decode("utf-8-sig") for _ in range(2)]
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as text ({_first_line(error)})") from error
    return list(csv.reader(lines, delimiter=_separator(path, separator)))


def _format(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file{': ' + suggest(path.name, beside) if 0 < len(beside) < 50 else ''}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty, expected a table")
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown type of file, expected one that ends in {', '.join(SUFFIXES)}")
    return "csv" if name.removesuffix(".gz").endswith(("csv", "tsv")) else "parquet" if name.endswith("parquet") else "arrow"


def _separator(path: Path, separator: str | None) -> str:
    return separator or ("\t" if ".tsv" in path.name.lower() else ",")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _header(path: Path, separator: str) -> list[str]:
    """The column names of a text file; `InputError` when they repeat or when another separator fits better."""
    try:
        with _open(path) as file:
            line = file.readline(LONGEST).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the header, byte {error.start}: not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated, not a whole gzip file ({_first_line(error)})") from error
    names = next(csv.reader([line], delimiter=separator), [])
    for other in (",", ";", "\t", "|"):
        if len(names) <= 1 and other in line:
            raise InputError(f"{path}: one column {line!r}, separated by {separator!r}: is the separator {other!r}?")
    for i, column in enumerate(names):
        if column in names[:i]:
            raise InputError(f"{path}: the column name {column!r} repeats in the header, expected distinct names")
        if not column:
            raise InputError(f"{path}: column {i + 1} has no name in the header, expected one")
    return names


def _read_csv(path: Path, text: Sequence[str], separator: str | None, row_limit: int | None) -> pl.DataFrame:
    separator = _separator(path, separator)
    names = _header(path, separator)
    overrides = {column: pl.String for column in text if column in names}

    def read(look: int | None) -> pl.DataFrame:
        return pl.read_csv(
            path,
            separator=separator,
            null_values=list(MISSING_WORDS),
            schema_overrides=overrides,
            infer_schema_length=look,
            n_rows=row_limit,
        )

    try:
        frame = read(10_000)
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{path}: is empty, expected a table") from error
    except pl.exceptions.ComputeError as error:
        _check_rows(path, separator, row_limit)
        # A later row widens a column's type: fine when it is still a number, as 1.5 after 10,000 whole numbers.
        guessed, frame = pl.read_csv(path, separator=separator, null_values=list(MISSING_WORDS), n_rows=10_000), read(None)
        for column in names:
            if guessed[column].dtype.is_numeric() and frame[column].dtype == pl.String and column not in overrides:
                for row in misfits(frame[column], "numeric").arg_true():
                    raise InputError(
                        f"{path}: row {row + 1}, column {column!r}: {frame[column][row]!r}, expected a number like those "
                        f"before (or state the column's kind: {column}:categorical)"
                    ) from error
    if frame.is_empty():
        raise InputError(f"{path}: has a header but no rows, expected some")
    if frame[:, -1].null_count():  # polars fills short rows with missing values, so the last column would have one
        _check_rows(path, separator, row_limit)
    return frame


def _check_rows(path: Path, separator: str, row_limit: int | None) -> None:
    """`InputError` at the first row of a text file that has the wrong number of fields or is not UTF-8."""
    for chunk in _csv_chunks(path, separator):
        for row, reason in chunk.bad.items():
            if row_limit is None or row <= row_limit:
                raise InputError(f"{path}: row {row}: {reason}")


def _frame_chunks(path: Path, kind: str) -> Iterator[Chunk]:
    try:
        lazy = pl.scan_parquet(path) if kind == "parquet" else pl.scan_ipc(path)
        total = lazy.select(pl.len()).collect().item()
        for start in range(0, total, CHUNK_ROWS):
            frame = lazy.slice(start, CHUNK_ROWS).collect()
            yield Chunk(frame, pl.int_range(start + 1, start + 1 + len(frame), eager=True), {})
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: damaged or truncated, not a whole {kind} file ({_first_line(error)})") from error


def _csv_chunks(
    path: Path, separator: str | None, names: Sequence[str] | None = None, header: bool = True
) -> Iterator[Chunk]:
    separator = _separator(path, separator)
    names = names or _header(path, separator)
    start = 1
    try:
        with _open(path) as file:
            if header:
                file.readline()
            for block in _whole_rows(file, path):
                chunk, count = _parse(block, names, separator, start)
                start += count
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated after row {start - 1} ({_first_line(error)})") from error


def _whole_rows(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Blocks of about ``BLOCK`` bytes that end where a row ends: at a line's end with an even number of quotes before it."""
    kept = b""
    while True:
        read = file.read(BLOCK)
        block = kept + read
        if not read:
            if block:
                yield block
            return
        end, quotes = len(block), block.count(b'"')
        while True:
            cut = block.rfind(b"\n", 0, end)
            quotes -= block.count(b'"', cut + 1, end)
            if cut < 0 or quotes % 2 == 0:
                break
            end = cut
        if cut < 0 and len(block) > LONGEST:
            raise InputError(f"{path}: a row is longer than {LONGEST >> 20} MiB, is a quote left open?")
        if cut >= 0:
            yield block[: cut + 1]
        kept = block[cut + 1 :]


def _parse(block: bytes, names: Sequence[str], separator: str, start: int) -> tuple[Chunk, int]:
    """The rows of ``block``, as text, numbered from ``start``; and how many rows there are, unreadable ones included."""
    try:
        frame = pl.read_csv(
            block,
            separator=separator,
            has_header=False,
            new_columns=list(names),
            infer_schema=False,
            null_values=list(MISSING_WORDS),
        )
        separators = block.count(separator.encode())
        if frame.width == len(names) and (
            frame[:, -1].null_count() == 0 or (b'"' not in block and separators == len(frame) * (len(names) - 1))
        ):
            rows = pl.int_range(start, start + len(frame), eager=True)
            return Chunk(frame, rows, {}), len(frame)
    except pl.exceptions.PolarsError:
        pass  # some row cannot be read: go through them one by one
    return _parse_slowly(block, names, separator, start)


def _parse_slowly(block: bytes, names: Sequence[str], separator: str, start: int) -> tuple[Chunk, int]:
    """As `_parse`, row by row: finds the rows that cannot be read."""
    good: list[list[str | None]] = []
    rows: list[int] = []
    bad: dict[int, str] = {}
    count = 0
    lines = (line.decode("utf-8", "surrogateescape") for line in block.splitlines(keepends=True))
    for count, fields in enumerate(csv.reader(lines, delimiter=separator), 1):
        row = start + count - 1
        wrong = [field for field in fields if any("\udc80" <= letter <= "\udcff" for letter in field)]
        if len(fields) != len(names) and not (len(names) == 1 and not fields):
            bad[row] = f"{len(fields)} fields, expected {len(names)}"
        elif wrong:
            bad[row] = f"{wrong[0].encode('utf-8', 'surrogateescape')!r} is not UTF-8 text"
        else:
            good.append([None if field in MISSING_WORDS else field for field in fields or [""]])
            rows.append(row)
    frame = pl.DataFrame(good, schema=dict.fromkeys(names, pl.String), orient="row")
    return Chunk(frame, pl.Series(rows, dtype=pl.Int64), bad), count


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
