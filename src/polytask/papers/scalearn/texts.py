"""Five tasks of text, two of them scarce, and the last blocks of a frozen encoder.

Sentences of film reviews (SST): whether they are positive, and how positive, in five classes. Pairs of sentences (SICK): how
related they are, and whether one entails the other. Turns of conversations (Topical-Chat): their mood. The second task of
reviews and that of pairs are scarce, with `FEW` rows to train on, which a seed draws; the three others have `MANY`. So each
scarce task has a rich one that is near to it, and two that are not. No row is in two tasks.

The encoder is MiniLM. Adapters are in its last two blocks, as the paper has them in all: what the layers below the first of
them give of each text is computed once, and kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.papers._experts.text import FILES as EXPERT_FILES
from polytask.papers._experts.text import TASKS as EXPERT_TASKS
from polytask.papers._minilm import Text, kept, minilm, read_gzip, tokenised
from polytask.task import Task

FILES = ("decanlp_mini/sst_fine_train.csv.gz", "decanlp_mini/sick_train.txt.gz", EXPERT_FILES[3])
TUNING_FILES = ("decanlp_mini/sst_fine_test.csv.gz", "decanlp_mini/sick_test.txt.gz")
"""Other reviews and pairs, for choosing learning rates."""

RICH, SCARCE = ("positive", "related", "mood"), ("rating", "entails")
TOKENS = 24
MANY = {"train": 1900, "validation": 300}
FEW = {"train": 100, "validation": 100, "test": 400}
WHERE = ("first", "block.output.LayerNorm")
"""The normalisations that adapters are at."""

Labelled = tuple[list[Text], list[Any]]


@dataclass(frozen=True)
class Split:
    """One task and its rows. Validation selects, test is reported; a rich task has none."""

    task: Task
    train: Examples
    validation: Examples
    test: Examples | None = None


class LastBlocks(nn.Module):
    """What follows the sum that the last block but one normalises: that normalisation, the last block, the mean over tokens.

    It takes ``{"sum": (N, tokens, width), "mask": (N, tokens)}`` and gives ``(N, width)``.
    """

    def __init__(self) -> None:
        super().__init__()
        bert = minilm()
        self.first: nn.Module = bert.encoder.layer[-2].output.LayerNorm
        self.block: Any = bert.encoder.layer[-1]
        self.width = int(bert.config.hidden_size)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        mask = inputs["mask"].to(torch.float32)
        away = (1 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
        hidden = self.block(self.first(inputs["sum"].float()), attention_mask=away)
        mean: Tensor = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return mean


def rich(folder: Path) -> dict[str, Split]:
    """The tasks with many rows, by name; the same for all seeds."""
    reviews, pairs = (_rows(folder / name)[0::2] for name in FILES[:2])
    clear = [row for row in reviews if row["label"] != "2"]
    turns = list(EXPERT_TASKS["mood"](folder))
    moods = sorted({mood for _, mood in turns})
    turns = [turns[i] for i in np.random.default_rng(0).permutation(len(turns))]
    rows: dict[str, Labelled] = {
        "positive": ([row["sentence"] for row in clear], [int(row["label"] in "34") for row in clear]),
        "related": ([_pair(row) for row in pairs], [float(row["relatedness_score"]) for row in pairs]),
        "mood": ([turn for turn, _ in turns], [moods.index(mood) for _, mood in turns]),
    }
    return {task: _split(task, *rows[task], MANY, None) for task in RICH}


def scarce(folder: Path, seed: int, files: Sequence[str] = FILES[:2]) -> dict[str, Split]:
    """The tasks with few rows, by name, which each seed draws anew."""
    reviews, pairs = (_rows(folder / name)[1::2] for name in files)
    judgments = sorted({row["entailment_judgment"] for row in pairs})
    rows: dict[str, Labelled] = {
        "rating": ([row["sentence"] for row in reviews], [int(row["label"]) for row in reviews]),
        "entails": ([_pair(row) for row in pairs], [judgments.index(row["entailment_judgment"]) for row in pairs]),
    }
    return {task: _split(task, *rows[task], FEW, seed) for task in SCARCE}


def _split(task: str, texts: Sequence[Text], labels: Sequence[Any], sizes: Mapping[str, int], seed: int | None) -> Split:
    """Consecutive rows in these sizes, in an order that the seed draws out of twice as many."""
    wanted = sum(sizes.values()) * (1 if seed is None else 2)
    if len(texts) < sum(sizes.values()):
        raise InputError(f"{len(texts)} rows of the task {task!r}, expected at least {sum(sizes.values())}")
    inputs, targets = kept("scalearn", _below, texts[:wanted], tokens=TOKENS), torch.tensor(labels[:wanted])
    order = torch.arange(len(targets))
    if seed is not None:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(targets)))
    parts, start = {}, 0
    for part, size in sizes.items():
        rows = order[start : start + size]
        parts[part] = Examples({name: tensor[rows] for name, tensor in inputs.items()}, {task: targets[rows]})
        start += size
    if targets.is_floating_point():
        return Split(Task.regression(task, scale="standard", metric="r2").fitted(parts["train"].targets[task]), **parts)
    return Split(Task.classification(task, classes=int(targets.max()) + 1), **parts)


@torch.no_grad()
def _below(texts: Sequence[Text], tokens: int) -> dict[str, Tensor]:
    """What `LastBlocks` takes: the sums ``(N, tokens, width)`` in half precision, and where there are tokens."""
    inputs, bert = tokenised(texts, tokens), minilm()
    sums: list[Tensor] = []
    bert.encoder.layer = bert.encoder.layer[:-1]
    bert.encoder.layer[-1].output.LayerNorm.register_forward_pre_hook(lambda module, args: sums.append(args[0].half()))
    for start in range(0, len(texts), 64):
        bert(**{name: tensor[start : start + 64] for name, tensor in inputs.items()})
    return {"sum": torch.cat(sums), "mask": inputs["attention_mask"].bool()}


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of reviews or of pairs, in an order drawn once; the even ones are for a rich task."""
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ".txt" in path.name else {}
    rows = list(csv.DictReader(io.StringIO(read_gzip(path)), **tabs))
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def _pair(row: Mapping[str, str]) -> Text:
    return row["sentence_A"], row["sentence_B"]
