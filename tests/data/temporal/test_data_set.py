"""Events of files with ids of any kind: numbered, split, read again by the schema, and refused by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.events import streams

from polytask.data.temporal import EventSchema, load_event_data, load_events
from polytask.errors import InputError


def test_a_table_has_nodes_of_one_kind_and_numbers_for_features(tmp_path: Path) -> None:
    data = load_event_data(streams.write(tmp_path / "a.csv", streams.rows(0, 100)))
    schema = data.schema
    assert list(schema.nodes)[:2] == ["person 0", "person 1"] and schema.first == 6 and not schema.apart
    assert [len(part) for part in (data.train, data.validation, data.test)] == [70, 15, 15]
    assert list(schema.features) == ["weight"] and data.train.width == 1
    assert [schema.nodes[k] for k in data.train.destination[:3].tolist()] == ["place 0", "place 1", "place 1"]
    assert "left out, no numbers: note" in data.provenance["report"][1]
    assert data.train.features is not None and data.train.features[:3, 0].tolist() == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("header", [streams.JODIE + "\n", ""])
def test_jodies_files_have_users_and_items(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "\n".join(streams.jodie(0, 100)) + "\n")
    data, plain = load_event_data(path), load_events(path)
    assert data.schema.apart and data.schema.first == 6 and len(data.schema.nodes) == 10
    events = data.schema.load(path)
    for name in ("time", "features", "labels", "rows"):
        assert torch.equal(getattr(events, name), getattr(plain, name))
    pairs = torch.unique(torch.stack([events.pairs, plain.pairs], 1), dim=0)
    assert len(pairs) == len(torch.unique(plain.pairs)) == len(torch.unique(events.pairs))


def test_users_may_have_names_and_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(f"ann {k % 3},ann {k % 2},{k}" for k in range(20)))
    schema = load_event_data(path).schema
    assert list(schema.nodes) == ["ann 0", "ann 1", "ann 2", "ann 0", "ann 1"] and schema.first == 3


def test_other_files(tmp_path: Path) -> None:
    streams.write(tmp_path / "a.csv", streams.rows(0, 100))
    frame = pl.read_csv(tmp_path / "a.csv").drop("note")
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "semicolons.csv", separator=";")
    expected = load_event_data(tmp_path / "a.csv").train
    for name, separator in {"a.parquet": None, "semicolons.csv": ";"}.items():
        found = load_event_data(tmp_path / name, separator=separator).train
        assert torch.equal(found.pairs, expected.pairs) and torch.equal(found.time, expected.time)
    place = np.arange(100)
    np.savez(tmp_path / "a.npz", src=place % 6 + 5, dst=place % 4 + 8, ts=place, features=np.ones((100, 2)))
    data = load_event_data(tmp_path / "a.npz")
    assert list(data.schema.nodes) == ["5", "6", "7", "8", "9", "10", "11"] and data.schema.first == 3
    assert list(data.schema.features) == ["feature 1", "feature 2"]
    assert len(data.schema.load(tmp_path / "a.npz")) == 100


def test_a_schema_comes_back_from_json(tmp_path: Path) -> None:
    path = streams.write(tmp_path / "a.csv", streams.rows(0, 100))
    schema = load_event_data(path).schema
    again = EventSchema.from_json(json.loads(json.dumps(schema.to_json())) | {"kind": "events"})
    assert torch.equal(again.load(path).pairs, schema.load(path).pairs)
    assert again.destinations.tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("person 0,place 0,,1,", "row 100: column 'timestamp': missing, expected a number"),
        ("person 0,place 0,noon,1,", "row 100: column 'timestamp': 'noon', expected a number"),
        ("person 0,place 0,inf,1,", "row 100: column 'timestamp': 'inf', expected a number"),
        ("person 0,place 0,5,1,", "row 100: time 5.0, expected none before that of the row in front of it"),
        ("person 0,,999,1,", "row 100: column 'target': missing, expected the id of a node"),
        ("person 0,place 0,999,,", "row 100: column 'weight': missing, expected a number"),
        ("person 0,place 0", "row 100: 2 fields, expected 5"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, row: str, line: str) -> None:
    path = streams.write(tmp_path / "a.csv", [*streams.rows(0, 99), row])
    with pytest.raises(InputError) as caught:
        load_event_data(path)
    assert str(caught.value) == f"{path}: {line}"


def test_files_that_cannot_be(tmp_path: Path) -> None:
    streams.write(tmp_path / "a.csv", ["1,2"], "from,to")
    with pytest.raises(InputError, match="2 fields in row 1, expected the columns source, target and timestamp"):
        load_event_data(tmp_path / "a.csv")
    pl.DataFrame({"source": [1], "target": [2]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="the column 'timestamp' is missing, expected source, target, timestamp"):
        load_event_data(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"nowhere.csv: no such file"):
        load_event_data(tmp_path / "nowhere.csv")
    streams.write(tmp_path / "few.csv", streams.rows(0, 1))
    with pytest.raises(InputError, match="expected at least 1 each"):
        load_event_data(tmp_path / "few.csv")


def test_a_schema_knows_its_nodes(tmp_path: Path) -> None:
    schema = load_event_data(streams.write(tmp_path / "a.csv", streams.rows(0, 100))).schema
    path = streams.write(tmp_path / "b.csv", ["person 0,nobody,1,1,"])
    with pytest.raises(InputError, match=r"row 1: column 'target': unknown node 'nobody', expected the id of a node"):
        schema.load(path)
    streams.write(path, ["person 0,place 0,1"], "source,target,timestamp")
    with pytest.raises(InputError, match=r"the column 'weight' is missing"):
        schema.load(path)
    frame = pl.DataFrame({"source": ["person 0"] * 3, "target": ["place 1"] * 3, "timestamp": [9.0, 3.0, 5.0]})
    questions = schema.questions(5.0)
    assert questions.misfits(frame) == {1: "column 'timestamp': 3.0 before 5.0, the last event that the memory has seen"}
    source, destination, time = questions.tensors(frame)
    assert source.tolist() == [0, 0, 0] and destination.tolist() == [7, 7, 7] and time.tolist() == [9, 3, 5]
