"""Reading tables: each broken file gives one line that says what and where; streaming reads the same rows."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import polars as pl
import pytest

from polytask.data.table import Schema, read_rows, read_table
from polytask.data.table import read as read_module
from polytask.data.table.read import _csv_chunks, _parse_slowly
from polytask.errors import InputError

GOOD = "age,city,income\n31,Delft,1.5\n42,Gouda,\n53,Delft,3.5\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def fails(path: Path, *parts: str, **settings: object) -> None:
    with pytest.raises(InputError) as caught:
        read_table(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"])
def test_text_files(tmp_path: Path, name: str) -> None:
    frame = read_table(write(tmp_path, name, GOOD if "csv" in name else GOOD.replace(",", "\t")))
    assert frame.to_dict(as_series=False) == {
        "age": [31, 42, 53],
        "city": ["Delft", "Gouda", "Delft"],
        "income": [1.5, None, 3.5],
    }


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_binary_files(tmp_path: Path, name: str) -> None:
    frame = read_table(write(tmp_path, "a.csv", GOOD))
    (frame.write_parquet if "parquet" in name else frame.write_ipc)(tmp_path / name)
    assert read_table(tmp_path / name).equals(frame)
    assert len(read_table(tmp_path / name, row_limit=2)) == 2


def test_missing_empty_folder_and_unknown(tmp_path: Path) -> None:
    write(tmp_path, "people.csv", GOOD)
    fails(tmp_path / "peeple.csv", "no such file", "did you mean 'people.csv'?")
    fails(write(tmp_path, "empty.csv", ""), "is empty")
    fails(tmp_path, "is a folder")
    fails(write(tmp_path, "a.xlsx", GOOD), "unknown type of file", ".parquet")
    fails(write(tmp_path, "header.csv", "a,b\n"), "no rows")


def test_header(tmp_path: Path) -> None:
    fails(write(tmp_path, "semicolon.csv", GOOD.replace(",", ";")), "is the separator ';'?")
    assert read_table(tmp_path / "semicolon.csv", separator=";").width == 3
    fails(write(tmp_path, "twice.csv", "a,b,a\n1,2,3\n"), "column name 'a' repeats")
    fails(write(tmp_path, "nameless.csv", "a,,c\n1,2,3\n"), "column 2 has no name")


def test_rows_with_the_wrong_number_of_fields(tmp_path: Path) -> None:
    fails(write(tmp_path, "short.csv", "a,b,c\n1,2,3\n4,5\n"), "row 2: 2 fields, expected 3")
    fails(write(tmp_path, "long.csv", "a,b,c\n1,2,3\n4,5,6\n7,8,9,10\n"), "row 3: 4 fields, expected 3")
    fails(write(tmp_path, "quoted.csv", 'a,b,c\n"1,1",2,3\n"x\ny",5\n'), "row 2: 2 fields, expected 3")


def test_not_utf8(tmp_path: Path) -> None:
    fails(write(tmp_path, "latin.csv", "a,b\n1,x\n2,\xe9t\xe9\n".encode("latin-1")), "row 2", "is not UTF-8")
    fails(write(tmp_path, "header.csv", "\xe9,b\n1,x\n".encode("latin-1")), "header", "not UTF-8")


def test_truncated(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": range(5000)})
    for name, writer in {"a.parquet": frame.write_parquet, "a.arrow": frame.write_ipc}.items():
        writer(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        fails(write(tmp_path, f"half-{name}", whole[: len(whole) // 2]), "damaged or truncated")
        with pytest.raises(InputError, match="damaged or truncated"):
            list(read_rows(tmp_path / f"half-{name}", Schema({"a": "numeric"}, (), (), ())))
    packed = gzip.compress(frame.write_csv().encode())
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    fails(cut, "damaged or truncated")
    cut.write_bytes(b"a,b\n1,2\n")
    fails(cut, "damaged or truncated")


def test_text_in_a_numeric_column_at_row_1_000_001(tmp_path: Path) -> None:
    rows = b"1,2\n" * 1_000_000
    path = write(tmp_path, "late.csv", b"a,b\n" + rows + b"3,many\n")
    fails(path, "row 1000001, column 'b': 'many', expected a number", "b:categorical")
    assert read_table(path, text=["b"])["b"].dtype == pl.String


def test_whole_numbers_that_become_fractions_late(tmp_path: Path) -> None:
    path = write(tmp_path, "late.csv", "a\n" + "1\n" * 20_000 + "1.5\n")
    assert read_table(path)["a"].to_list()[-2:] == [1.0, 1.5]


def schema_of(frame: pl.DataFrame) -> Schema:
    return Schema.fit(frame)


def test_read_rows_leaves_out_bad_rows_by_number(tmp_path: Path) -> None:
    good = pl.DataFrame({"n": range(50), "c": ["x", "y"] * 25, "d": ["2024-01-01", "2024-02-03"] * 25})
    schema = schema_of(good)
    text = b'n,c,d\n1,x,2024-01-01\n2,y\n"3",x,2024-01-02\nfour,x,2024-01-03\n5,\xff,2024-01-03\n6,y,soon\n\n?,x,\n'
    path = write(tmp_path, "new.csv", text)
    (chunk,) = read_rows(path, schema)
    assert chunk.rows.to_list() == [1, 3, 8]
    assert chunk.frame["n"].to_list() == ["1", "3", None]
    assert chunk.bad == {
        2: "2 fields, expected 3",
        4: "column 'n': 'four', expected a number",
        5: "b'\\xff' is not UTF-8 text",
        6: "column 'd': 'soon', expected a date such as 2024-05-31 or 2024-05-31 13:45:00",
        7: "0 fields, expected 3",
    }
    assert list(chunk.bad) == sorted(chunk.bad)
    schema.transform(chunk.frame)


def test_read_rows_wants_the_schemas_columns(tmp_path: Path) -> None:
    schema = schema_of(pl.DataFrame({"age": range(9), "city": list("abcabcabc")}))
    with pytest.raises(InputError, match="'city' is missing: did you mean 'cty'"):
        list(read_rows(write(tmp_path, "a.csv", "age,cty\n1,a\n"), schema))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.arrow"])
def test_chunks_are_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "BLOCK", 1000)
    monkeypatch.setattr(read_module, "CHUNK_ROWS", 77)
    texts = ["plain", "with, comma", 'with "quotes"', "two\nlines", "é", ""]
    frame = pl.DataFrame({"n": range(1000), "t": [texts[i % 6] for i in range(1000)], "m": [i / 4 for i in range(1000)]})
    path = tmp_path / name
    if "csv" in name:
        write(tmp_path, name, frame.write_csv())
    else:
        (frame.write_parquet if "parquet" in name else frame.write_ipc)(path)
    chunks = list(read_rows(path, Schema({"n": "numeric", "t": "text"}, (), (), ())))
    assert len(chunks) > 5 and not any(chunk.bad for chunk in chunks)
    joined = pl.concat([chunk.frame for chunk in chunks])
    assert joined["n"].cast(pl.Int64).to_list() == list(range(1000))
    assert joined["t"].fill_null("").to_list() == frame["t"].to_list()
    assert pl.concat([chunk.rows for chunk in chunks]).to_list() == list(range(1, 1001))


def test_the_fast_parser_agrees_with_the_slow_one(tmp_path: Path) -> None:
    text = 'a,b,c\n1,"x, y",3\n4,"u\nv",\n,"said ""so""",9\n'
    (fast,) = _csv_chunks(write(tmp_path, "a.csv", text), ",")
    slow, count = _parse_slowly(text.split("\n", 1)[1].encode(), ["a", "b", "c"], ",", 1)
    assert count == 3 and fast.frame.equals(slow.frame) and fast.rows.to_list() == slow.rows.to_list()


def test_streaming_takes_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "BLOCK", 64 << 10)
    path = write(tmp_path, "a.csv.gz", "a,b\n" + "12345,abcdefgh\n" * 400_000)
    schema = Schema({"a": "numeric", "b": "categorical"}, (), (), ())
    tracemalloc.start()
    rows = sum(len(chunk.frame) for chunk in read_rows(path, schema))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 400_000
    assert peak < 4 << 20  # of 6 MB of text, whatever polars holds of one block not counted


def test_an_open_quote_is_an_error_not_a_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "BLOCK", 1000)
    monkeypatch.setattr(read_module, "LONGEST", 5000)
    path = write(tmp_path, "a.csv", 'a,b\n1,"open\n' + "2,x\n" * 5000)
    with pytest.raises(InputError, match="is a quote left open"):
        list(read_rows(path, Schema({"a": "numeric"}, (), (), ())))
