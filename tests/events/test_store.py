"""A model of events on disk: its memory comes back, and goes on; the same however the stream was divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tests.events import streams

import polytask as pt
import polytask.papers.nat
import polytask.papers.pres
from polytask import events
from polytask.data.temporal import EventBatches, load_event_data
from polytask.errors import InputError
from polytask.files import sha256
from polytask.fitting import Recipe

SETTINGS = {"batch_size": 40, "epochs": 2, "lr": 1e-2}


def fitted(folder: Path, name: str) -> events.SavedEvents:
    data = load_event_data(streams.write(folder / "events.csv", streams.rows(0, 200)))
    events.fit_and_save(data, folder / name, Recipe(settings=SETTINGS), name)
    return events.load(folder / name)


@pytest.fixture(scope="module", params=list(events.event_models))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> events.SavedEvents:
    return fitted(tmp_path_factory.mktemp("events"), request.param)


def scores(path: Path) -> list[float]:
    return pl.read_parquet(path)["score"].to_list()


def test_what_was_trained_is_what_comes_back(saved: events.SavedEvents) -> None:
    """The same by hand: train, keep the best, observe validation, measure, observe the test."""
    data = load_event_data(saved.path.with_name("events.csv"))
    torch.manual_seed(0)
    model = saved.settings.build()
    train, validation, test = (data.batches(part, 40) for part in ("train", "validation", "test"))
    found = pt.fit(model, train, validation, evaluate_every=len(train), monitor="links/ap", **SETTINGS)
    model.eval().observe(validation)
    recipe: Any = saved.about["recipe"]
    assert recipe["validation"] == found.metrics and recipe["test"] == model.evaluate(test)
    model.observe(test)
    assert saved.model.seen == (200, 1990.0)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in saved.model.state_dict().items())


def test_two_halves_predict_what_the_whole_does(saved: events.SavedEvents, tmp_path: Path) -> None:
    first = streams.write(tmp_path / "first.csv", streams.rows(200, 217))
    second = streams.write(tmp_path / "second.csv", streams.rows(217, 240))
    whole = streams.write(tmp_path / "whole.csv", streams.rows(200, 240))
    before = sha256(saved.path / "model.safetensors")
    events.predict_events(events.load(saved.path), first, tmp_path / "1.parquet", observe=tmp_path / "model")
    assert events.load(tmp_path / "model").model.seen == (217, 2160.0)
    events.predict_events(events.load(tmp_path / "model"), second, tmp_path / "2.parquet", observe=tmp_path / "model")
    events.predict_events(events.load(saved.path), whole, tmp_path / "3.parquet", observe=tmp_path / "other")
    assert scores(tmp_path / "1.parquet") + scores(tmp_path / "2.parquet") == scores(tmp_path / "3.parquet")
    files = [tmp_path / name / "model.safetensors" for name in ("model", "other")]
    assert sha256(files[0]) == sha256(files[1]) != before == sha256(saved.path / "model.safetensors")
    assert (tmp_path / "model" / "history.jsonl").exists()


def test_questions_are_answered_by_what_was_saved(saved: events.SavedEvents, tmp_path: Path) -> None:
    lines = ["person 1,place 2,5000", "person 3,place 1,2000", "place 1,person 0,3000"]
    path = streams.write(tmp_path / "new.csv", lines, "source,target,timestamp")
    mine = events.load(saved.path)
    before = {name: value.clone() for name, value in mine.model.state_dict().items()}
    done = events.predict_events(mine, path, tmp_path / "out.parquet", batch_rows=2)
    assert (done.rows, done.bad) == (3, 0)
    assert all(torch.equal(value, before[name]) for name, value in mine.model.state_dict().items())
    nodes = {name: k for k, name in enumerate(mine.schema.nodes)}
    ends = [[nodes[name] for name in line.split(",")[:2]] for line in lines]
    expected = mine.model.score(*torch.tensor(ends).unbind(1), torch.tensor([5000.0, 2000.0, 3000.0]))
    assert scores(tmp_path / "out.parquet") == pytest.approx(expected.tolist(), abs=1e-5)
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["probability"].to_list() == pytest.approx(expected.sigmoid().tolist(), abs=1e-6)
    streams.write(path, streams.rows(200, 201))
    events.predict_events(mine, path, tmp_path / "asked.parquet")
    events.predict_events(mine, path, tmp_path / "seen.parquet", observe=tmp_path / "model")
    assert scores(tmp_path / "asked.parquet") == scores(tmp_path / "seen.parquet")  # the first event is a question, too


def test_batches_that_are_observed_enter_together(saved: events.SavedEvents, tmp_path: Path) -> None:
    path = streams.write(tmp_path / "new.csv", streams.rows(200, 230))
    mine, other = events.load(saved.path), events.load(saved.path)
    events.predict_events(mine, path, tmp_path / "out.parquet", observe=tmp_path / "model", batch_size=10)
    read = saved.schema.load(path)
    other.model.observe(EventBatches(read, 10, before=200))
    expected = other.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in mine.model.state_dict().items())


def test_evaluation_goes_on_and_leaves_the_memory(saved: events.SavedEvents, tmp_path: Path) -> None:
    path = streams.write(tmp_path / "later.csv", streams.rows(200, 260))
    found, count = events.evaluate_events(saved, path)
    assert count == 60 and saved.model.seen == (200, 1990.0)
    assert found["links"]["ap"] > 0.55  # a pair that has an event every minute is not a random one
    assert events.evaluate_events(saved, path)[0] == found


def test_what_cannot_be(saved: events.SavedEvents, tmp_path: Path) -> None:
    early = streams.write(tmp_path / "early.csv", streams.rows(198, 230))
    line = r"early.csv: row 1: time 1980.0 before 1990.0, the last event that the memory has seen"
    with pytest.raises(InputError, match=line):
        events.evaluate_events(saved, early)
    out, told = tmp_path / "out.csv", {}
    with pytest.raises(InputError, match=line):
        events.predict_events(events.load(saved.path), early, out, observe=tmp_path / "model")
    events.predict_events(saved, early, out, on_bad=lambda row, reason: told.update({row: reason}))
    assert told == {1: "column 'timestamp': 1980.0 before 1990.0, the last event that the memory has seen"}
    out.unlink()
    back = streams.write(tmp_path / "back.csv", [*streams.rows(210, 230), *streams.rows(205, 210)])
    with pytest.raises(InputError, match=r"back.csv: row 21: time 2050.0, expected none before that of the row in front"):
        events.predict_events(events.load(saved.path), back, out, observe=tmp_path / "model")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        events.predict_events(saved, back, out, observe=tmp_path / "thesis")
    assert not out.exists() and not (tmp_path / "model").exists()
    for load in (pt.load, events.load):
        with pytest.raises(InputError, match="is no saved model"):
            load(tmp_path)
    with pytest.raises(InputError, match=r"is a model of events, which evaluate, predict and explain take"):
        pt.load(saved.path)


def test_a_model_whose_settings_nobody_enrolled_is_named(saved: events.SavedEvents, tmp_path: Path) -> None:
    events.save_again(saved, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    about = json.loads(path.read_text())
    about["events"]["name"] = "other"
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=rf"is a {about['events']['class']}: import its module first"):
        events.load(tmp_path / "model")


def test_settings_that_a_stream_cannot_have(saved: events.SavedEvents, tmp_path: Path) -> None:
    data = load_event_data(saved.path.with_name("events.csv"))
    for settings, line in {
        "epochs": (1.5, "epochs is 1.5, expected a whole number of passes"),
        "steps": (10, "steps makes no sense with events"),
        "accumulate": (2, "accumulate makes no sense with events"),
    }.items():
        with pytest.raises(InputError, match=line[1]):
            events.fit_and_save(data, tmp_path / "model", Recipe(settings={settings: line[0]}))
    with pytest.raises(InputError, match="unknown model of events 'tng': did you mean 'tgn'"):
        events.rehearse(data, tmp_path / "model", Recipe(), "tng")
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
@pytest.mark.parametrize("observe", [False, True])
def test_the_memory_of_the_process_does_not_grow_with_the_table(tmp_path: Path, observe: bool) -> None:
    saved = fitted(tmp_path, "tgn")
    code = """
import resource, sys
from polytask import events
from polytask.data.table import read
read.BLOCK = 1 << 20  # of the small table too there are several
saved, observe = events.load(sys.argv[1]), sys.argv[4] if len(sys.argv) > 4 else None
done = events.predict_events(saved, sys.argv[2], sys.argv[3], observe=observe, batch_size=1000)
print(done.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = {}
    for name, count in {"small": 450_000, "large": 900_000}.items():
        path = streams.write(tmp_path / f"{name}.csv", streams.rows(200, 200 + count))
        words = [str(saved.path), str(path), str(tmp_path / f"{name}.parquet"), *([str(tmp_path / "again")] * observe)]
        # Rows are made in threads of polars: with an arena for each, the system's allocator keeps what none of them uses.
        one = dict(os.environ, MALLOC_ARENA_MAX="1")
        ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=one)
        rows, peak = ran.stdout.split()
        assert int(rows) == count
        peaks[name] = int(peak) / 1024
    # The large table has 18 MB more of text and 9 MB more of predictions, and a process holds either a few times. What torch
    # and polars keep for themselves grows in the first hundred thousands of rows, and no further.
    assert peaks["large"] < peaks["small"] + 25
