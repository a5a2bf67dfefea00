"""The kinds of feature columns: how a kind is inferred, and how raw values become values of that kind."""

from __future__ import annotations

import polars as pl

KINDS = ("numeric", "boolean", "categorical", "date", "text")
"""Numbers, true or false, names of categories, dates and times, free text."""

MISSING_WORDS = ("", " ", "?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null")
"""Strings that are missing values: in text files in every column, elsewhere in those of strings."""

EXPECTED = {"numeric": "a number", "date": "a date such as 2024-05-31 or 2024-05-31 13:45:00"}
"""What the kinds that not every value fits expect."""

SAMPLE = 10_000
"""Rows that a look at a column takes."""


def infer_kind(values: pl.Series) -> str | None:
    """The kind of a feature column, or ``None`` for a type that polytask cannot learn from (lists, structs, bytes).

    Strings are numbers or dates when every value of a sample reads as one; free text when they hold three words or more on
    average and most differ; categories otherwise.
    """
    if values.dtype == pl.Boolean:
        return "boolean"
    if values.dtype.is_numeric() or values.dtype in (pl.Time, pl.Duration):
        return "numeric"
    if values.dtype in (pl.Date, pl.Datetime):
        return "date"
    if values.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return "categorical"
    if values.dtype != pl.String:
        return None
    known = values.drop_nulls().head(SAMPLE)
    for kind in ("numeric", "date"):
        if len(known) and typed(known, kind).null_count() == 0:
            return kind
    words = known.str.strip_chars().str.count_matches(r"\s+").mean()
    wordy = isinstance(words, float) and words >= 2
    return "text" if wordy and known.n_unique() > len(known) / 2 else "categorical"


def typed(values: pl.Series, kind: str) -> pl.Series:
    """``values`` as the type of ``kind``, Float64, Datetime or String; null where missing and where a value does not fit.

    Dates are ISO 8601 (2024-05-31, 2024-05-31T13:45:00); an offset from UTC is ignored.
    """
    if kind == "numeric":
        if values.dtype == pl.String:
            values = values.str.strip_chars()
        elif values.dtype in (pl.Time, pl.Duration):
            values = values.to_physical()
        return values.cast(pl.Float64, strict=False)
    if kind == "date":
        if values.dtype != pl.String:
            return values.cast(pl.Datetime("us"), strict=False).dt.replace_time_zone(None)
        text = values.str.strip_chars().str.replace("T", " ", literal=True)
        days = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
        times = text.str.slice(0, 19).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
        return days.zip_with(days.is_not_null(), times)
    if values.dtype.is_float() and not (values.is_finite() & (values != values.floor())).any():
        values = values.cast(pl.Int64, strict=False)  # 3.0 is the category "3", as it is where no value is missing
    values = values.cast(pl.String)
    values = values.set(values.is_in(list(MISSING_WORDS)), None)
    return values.str.to_lowercase() if kind == "boolean" else values


def misfits(values: pl.Series, kind: str) -> pl.Series:
    """Where a value is there but does not fit ``kind``, as booleans."""
    if kind not in EXPECTED:
        return pl.repeat(False, len(values), dtype=pl.Boolean, eager=True)
    missing = values.is_null()
    if values.dtype == pl.String:
        missing |= values.str.strip_chars().is_in(list(MISSING_WORDS))
    return typed(values, kind).is_null() & ~missing


def parts(values: pl.Series, kind: str) -> dict[str, pl.Series]:
    """The numbers that a numeric or date column becomes, by name: the value; or time, day of year, weekday and hour."""
    if kind == "numeric":
        return {"value": values}
    clock = values.dt.hour() + values.dt.minute() / 60
    numbers = {
        "time": values.dt.epoch("s"),
        "day_of_year": values.dt.ordinal_day(),
        "weekday": values.dt.weekday(),
        "hour": clock,
    }
    return {part: series.cast(pl.Float64) for part, series in numbers.items()}
