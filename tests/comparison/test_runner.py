"""Trials give the same here and in another process, whatever is drawn while they train."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from polytask.comparison import runner
from polytask.comparison.trial import Trial
from polytask.data.graph import GraphData, graph_data_set


def as_workers_do(function: Any, arguments: Any, workers: int, ray: bool) -> Iterator[Any]:
    """What crosses to another process and back, without the seconds that a process takes to start."""
    return (function(*pickle.loads(pickle.dumps(each))) for each in arguments)


def test_workers_train_on_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    places = torch.arange(20)
    edges = torch.cat([torch.stack([places, (places + step) % 20], 1) for step in (1, 2)])
    data = graph_data_set(GraphData("ring", 20, edges, torch.eye(20)), ["link:exists"], width=4)
    trial = Trial(("exists",), seed=0, lr=1e-2, steps=12)
    monkeypatch.setattr(runner, "unordered", as_workers_do)
    found = []
    for workers in (1, 2):
        trials = runner.Runner(data, workers=workers)
        trials([trial])
        found.append(trials.results[trial]["test"])
    assert found[0] == found[1]
